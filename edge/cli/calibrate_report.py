"""What ``edge calibrate`` found: for a person, for a program, and as a picture."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from edge.cli import drawing, show
from edge.confidence.certificate import Certificate, NotCertifiable
from edge.lab import metrics, plots
from edge.lab.calibrating import Calibrated, Point, points, reliability

_WIDE = 80
_CURVE = 100
_COLUMNS = ("keep from>", "kept>", "wrong>", "escalated>", "$ per 1,000>", "right>", "certified>")


@dataclass(frozen=True, slots=True)
class Report:
    """A calibration with where it went.

    Attributes:
        written: the calibration's file.
        risk: that was asked for.
        cloud_accuracy: probability that the pool is right.

    """

    task: str
    found: Calibrated
    written: Path
    risk: float
    cloud_accuracy: float

    def tell(self) -> None:
        """Print everything for a person."""
        typer.echo(self._summary() + "\n")
        typer.echo(_wrapped(self._verdict()))
        typer.echo(_wrapped(self._promise()))
        if len(self.found.confidence):
            typer.echo("\nWrong among the surest answers; dotted: the risk asked for")
            curve, kept = self._curve(), self._kept()
            _echo(drawing.risk_coverage(curve, risk=self.risk, kept=kept))
            typer.echo(
                "         kept, the surest first" + ("   ▲ certified" if kept is not None else "")
            )
            typer.echo("\nHow sure, and how often right; ┃ is what was said")
            _echo(drawing.reliability(reliability(self.found)))
            self._table()
        typer.echo(f"Written to {self.written}.")

    def plain(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        found = self.found
        curve = self._curve() if len(found.confidence) else None
        certified = isinstance(found.outcome, Certificate)
        return {
            "task": self.task,
            "key": asdict(found.calibration.key),
            "rows": found.rows,
            "valid": found.valid,
            "accuracy": found.right / found.rows,
            "fitted_on": found.fitted,
            "held_back": len(found.confidence),
            "prior": found.calibration.prior or None,
            "features": list(found.calibration.features),
            "error_auroc": found.error_auroc,
            "smooth_ece": found.smooth_ece,
            "certificate": asdict(found.outcome) if certified else None,
            "refusal": None if certified else {**asdict(found.outcome), "text": str(found.outcome)},
            "stricter": [asdict(each) for each in found.calibration.certificates[1:]],
            "points": [{**asdict(each), "escalated": each.escalated} for each in self._points()],
            "risk_coverage": _thinned(curve) if curve else [],
            "reliability": [asdict(each) for each in reliability(found)],
            "written": str(self.written),
        }

    def draw(self, path: Path) -> None:
        """Write both diagrams as PNG."""
        plots.plot_calibration(
            path,
            self._curve(),
            bins=reliability(self.found),
            title=f"{self.task}: {len(self.found.confidence)} answers that the fit has not seen",
            risk=self.risk,
            kept=self._kept(),
        )

    def _summary(self) -> str:
        found = self.found
        lost = found.rows - found.valid
        invalid = f"; {lost} not valid, which are never kept" if lost else ""
        prior = found.calibration.prior
        towards = f" towards the weights of {prior}" if prior else ""
        auroc, ece = _figure(found.error_auroc), _figure(found.smooth_ece)
        return (
            f"{self.task}: {found.rows} labelled answers, {found.right / found.rows:.1%} right"
            f"{invalid}\nfitted on {found.fitted}{towards}\n"
            f"{len(found.confidence)} others speak for it: error AUROC {auroc}, smooth calibration "
            f"error {ece}"
        )

    def _verdict(self) -> str:
        outcome = self.found.outcome
        if isinstance(outcome, NotCertifiable):
            return f"No certificate for {_percent(self.risk)}: {outcome}."
        share = outcome.kept / max(1, len(self.found.answers))
        return (
            f"Certificate: keep answers of confidence {outcome.threshold:.4f} or more. That keeps "
            f"{outcome.kept} of {len(self.found.answers)} ({share:.1%}), {outcome.errors} of them "
            "wrong."
        )

    def _promise(self) -> str:
        outcome = self.found.outcome
        if isinstance(outcome, NotCertifiable):
            return "The confidence is fitted and written; nothing is promised of it."
        if outcome.delta is None:
            what = "Promised in the mean over such labels"
            of = "of all tasks are kept and wrong"
        else:
            what = f"Promised with probability {1 - outcome.delta:.0%} over the labels"
            of = "of the kept answers are wrong"
        bound = _percent(outcome.alpha)
        return f"{what}: at most {bound} {of}, on traffic like the labelled answers."

    def _table(self) -> None:
        rows = self._points()
        show.table(
            "",
            _COLUMNS,
            [
                (
                    f"{each.threshold:.4f}",
                    f"{each.kept:.1%}",
                    f"{each.wrong:.1%}",
                    f"{each.escalated:.1%}",
                    "-" if each.usd_per_1000 is None else f"{each.usd_per_1000:.4f}",
                    f"{each.accuracy:.1%}",
                    "" if each.promised is None else _percent(each.promised),
                )
                for each in rows
            ],
        )
        priced = any(each.usd_per_1000 is not None for each in rows)
        money = (
            "the worst case, as the budget holds it"
            if priced
            else "unknown, since the task's pool is not in the pack"
        )
        text = f"Wrong: of the kept. Dollars: {money}. "
        text += f"Right: of all, with a cloud that is right {self.cloud_accuracy:.0%} of the time."
        typer.echo(_wrapped(text))

    def _points(self) -> list[Point]:
        return points(self.found, cloud_accuracy=self.cloud_accuracy)

    def _curve(self) -> metrics.Curve:
        return metrics.risk_coverage(self.found.confidence, self.found.correct)

    def _kept(self) -> float | None:
        outcome = self.found.outcome
        return outcome.kept_share if isinstance(outcome, Certificate) else None


def _echo(lines: list[str]) -> None:
    typer.echo("\n".join(lines))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDE, break_long_words=False, break_on_hyphens=False)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _thinned(curve: metrics.Curve) -> list[list[float]]:
    """Return at most 100 (share, risk) pairs of a curve."""
    count = min(_CURVE, len(curve.share))
    shares = [(at + 1) / count for at in range(count)]
    return [[round(share, 4), round(curve.at(share), 6)] for share in shares]
