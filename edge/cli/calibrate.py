"""``edge calibrate``: labelled answers in, a calibration with its certificate out."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from edge.calibrations import Calibrations
from edge.cli import labelling, show
from edge.cli.calibrate_report import Report
from edge.cli.models import store
from edge.cli.run import AsJson, Pack, State
from edge.confidence.calibration import Calibration
from edge.confidence.certificate import Certificate
from edge.config import state_folder
from edge.errors import ConfigError, InputError, StoreError
from edge.lab import plots
from edge.lab.calibrating import LEAST_RISK
from edge.lab.calibrating import calibrate as calibrated

Contract = Literal["kept_risk", "undetected_failures"]
_OUT = "Write the calibration there, not into the state folder."
_REPLACE = "Replace a calibration of another model or prompt."


def calibrate(
    task: Annotated[str, typer.Argument(help="The task's name.")],
    labelled: Annotated[
        Path, typer.Argument(help='JSON lines {"text": …, "label": …}, or "value" for extract.')
    ],
    *,
    risk: Annotated[float, typer.Option(help="Share of kept answers that may be wrong.")] = 0.05,
    delta: Annotated[float, typer.Option(help="Probability that the labels mislead.")] = 0.1,
    contract: Annotated[Contract, typer.Option(help="What is promised.")] = "kept_risk",
    share: Annotated[
        float, typer.Option(help="Of the rows, to certify; the others fit.", min=0.1, max=0.9)
    ] = 0.5,
    pack: Pack = "kiosk",
    state: State = None,
    out: Annotated[Optional[Path], typer.Option(help=_OUT)] = None,  # noqa: UP045
    plot: Annotated[Optional[Path], typer.Option(help="Draw both diagrams as PNG.")] = None,  # noqa: UP045
    replace: Annotated[bool, typer.Option("--replace", help=_REPLACE)] = False,
    as_json: AsJson = False,
) -> None:
    """Fit a task's confidence on labelled answers, and certify from where on to keep them.

    Exit code 1 where these labels certify nothing; the calibration is written all the same.
    """
    if not 0.0 < risk < 1.0 or not 0.0 < delta < 1.0:
        raise InputError(
            f"No promise can have risk {risk:g} and delta {delta:g}.", hint="Both lie within 0..1."
        )
    if risk < LEAST_RISK:
        raise InputError(
            f"A promise at risk {risk:g} takes more labels than anyone has.",
            hint=f"Ask for {LEAST_RISK:g} or more.",
        )
    if out is not None:
        _check_place(out)
    if plot is not None:
        plots.check_plots(plot)
    folder = state_folder(state)
    target = out or folder / "calibrations" / f"{task}.json"
    with labelling.open_desk(task, pack, folder) as desk:
        if desk.carried is not None and out is None:
            raise ConfigError(
                f"The pack names the calibration of task {task}, and it goes before the state "
                "folder's.",
                hint=f"Pass --out, here {desk.carried}.",
            )
        examples = labelling.read_labelled(labelled, desk)
        key, answers = show.with_bar(
            lambda tell: labelling.answered(
                desk, examples, tell, target=None if replace else target
            )
        )
        features, prior = labelling.features(desk, answers)
    found = calibrated(
        key,
        answers,
        features=features,
        risk=risk,
        delta=delta,
        contract=contract,
        share=share,
        prior=prior,
    )
    if out is None:
        written = Calibrations(store(state), folder).keep(task, found.calibration)
    else:
        written = _saved(found.calibration, out)
    report = Report(
        task, found, written, risk, cloud_accuracy=desk.task.spec.routing.cloud_accuracy
    )
    if plot is not None:
        report.draw(plot)
    show.print_json(report.plain()) if as_json else report.tell()
    if not isinstance(found.outcome, Certificate):
        raise typer.Exit(1)


def _check_place(path: Path) -> None:
    """Make sure, before anything is answered, that a calibration can be written there."""
    folder = path.absolute().parent
    if path.is_dir():
        why = "it is a folder"
    elif not folder.is_dir():
        why = f"the folder {folder} is not there"
    elif not os.access(folder, os.W_OK):
        why = f"the folder {folder} is not yours to write to"
    else:
        return
    raise StoreError(f"{path} cannot be written: {why}.", hint="Choose another place for --out.")


def _saved(calibration: Calibration, path: Path) -> Path:
    """Write a calibration whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    try:
        calibration.save(part)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise StoreError(
            f"{path} cannot be written: {error.strerror}.", hint="Choose another place for --out."
        ) from error
    return path
