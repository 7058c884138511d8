"""``edge head train``: a classification task from a file of labelled examples."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape

from edge.cli import show
from edge.cli.labelling import ROWS
from edge.cli.models import store
from edge.cli.run import AsJson, State
from edge.confidence.fusion import row_digest, row_name
from edge.config import models_folder, state_folder
from edge.errors import InputError, StoreError
from edge.lab.heads import HeadReport, TrainedHead, train_head
from edge.local import LocalModels
from edge.pack import load_pack
from edge.store.weights import ModelStore

app = typer.Typer(no_args_is_help=True)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,39}")
_MOST = 200_000
_CONFUSED = 8


@app.callback()
def _group() -> None:
    """Train classification heads."""


@app.command("train")
def train(
    name: Annotated[str, typer.Argument(help="The new task's name.")],
    examples: Annotated[Path, typer.Argument(help='JSON lines {"text": …, "label": …}.')],
    *,
    encoder: Annotated[str, typer.Option(help="The sentence encoder.")] = "minilm-l6-int8",
    keep_above: Annotated[
        float, typer.Option(help="Keep answers of at least this confidence.", min=0, max=1)
    ] = 0.7,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Train a head and add a task of that name, which `edge run NAME` answers from then on."""
    if not _NAME.fullmatch(name):
        raise InputError(f"The task name {name!r} is not valid.", hint="Use letters, digits, - _.")
    check_free(name, state_folder(state))
    texts, labels = read_examples(examples)
    models = store(state)
    local = LocalModels(models)
    with contextlib.closing(local), local.encoder(encoder) as embedder:
        trained = show.with_bar(
            lambda tell: train_head(
                texts,
                labels,
                embed=embedder.embed,
                encoder_digest=embedder.info.digest,
                progress=tell,
            )
        )
    folder = save(
        name, trained, rows=texts, models=models, encoder=encoder, state=state_folder(state)
    )
    add_task(name, keep_above=keep_above, state=state_folder(state))
    if as_json:
        show.print_json({"task": name, "folder": str(folder), **_plain(trained.report)})
    else:
        _print(name, trained.report)


def check_free(name: str, state: Path) -> None:
    """Make sure that neither a model nor a task that ships would answer in the new one's place.

    Raises:
        InputError: the name is taken.

    """
    hint = "Choose another name."
    if f"{name}-head" in ModelStore(models_folder()).names():
        raise InputError(f"The name {name!r} is that of a shipped model, {name}-head.", hint=hint)
    for pack in sorted((models_folder() / "packs").glob("*.yaml")):
        if name in load_pack(pack).tasks and not (state / "tasks" / f"{name}.yaml").exists():
            raise InputError(f"The pack {pack.stem} has a task named {name!r}.", hint=hint)


def read_examples(path: Path) -> tuple[list[str], list[str]]:
    """Read labelled texts.

    Raises:
        InputError: the file cannot be read, or a line is not an example; the line is named.

    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not valid UTF-8.", hint="Convert it to UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if len(lines) > _MOST:
        raise InputError(f"{path.name} has more than {_MOST} lines.", hint="Take a sample.")
    texts, labels = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            text, label = _example(line, f"Line {number} of {path.name}")
            texts.append(text)
            labels.append(label)
    return texts, labels


def _example(line: str, where: str) -> tuple[str, str]:
    hint = 'Write {"text": "…", "label": "…"}.'
    try:
        row = json.loads(line)
        text, label = row["text"], row["label"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{where} is not an example.", hint=hint) from error
    if not isinstance(text, str) or not isinstance(label, str):
        raise InputError(f"{where} has a text or label that is not a string.", hint=hint)
    try:
        (text + label).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where} holds half of a surrogate pair.", hint=hint) from error
    return text, label


def save(
    name: str,
    trained: TrainedHead,
    *,
    rows: Sequence[str],
    models: ModelStore,
    encoder: str,
    state: Path,
) -> Path:
    """Write head, manifest and the digests of its rows into the state folder, whole or not at all.

    By the digests ``edge calibrate`` knows the rows on which the head cannot be judged.
    """
    target = state / "models" / f"{name}-head"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            made = Path(scratch) / target.name
            made.mkdir()
            weights = made / f"{target.name}.safetensors"
            trained.head.save(weights)
            digests = made / "rows.txt"
            digests.write_bytes(_digests(rows))
            manifest = _manifest(target.name, weights, trained, models=models, encoder=encoder)
            manifest["files"].append(_listed(digests, ROWS))
            (made / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
            if target.exists():
                shutil.rmtree(target)
            made.rename(target)
    except OSError as error:
        raise StoreError(f"The head cannot be written to {target}: {error.strerror}.") from error
    return target


def _manifest(
    name: str, weights: Path, trained: TrainedHead, *, models: ModelStore, encoder: str
) -> dict[str, Any]:
    report = trained.report
    return {
        "name": name,
        "kind": "head",
        "engine": "head",
        "files": [_listed(weights, "weights")],
        "quantization": "float16 weights, int8 prototypes",
        "licence": "unspecified: the examples' own",
        "recipe": "edge head train",
        "parameters": int(trained.head.weight.size + trained.head.bias.size),
        "encoder": {"name": encoder, "sha256": models.manifest(encoder).digest},
        "quality": {"cross_validation": round(report.accuracy, 4), "n": report.rows},
    }


def _listed(path: Path, role: str) -> dict[str, Any]:
    raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    return {"path": path.name, "role": role, "sha256": digest, "bytes": len(raw)}


def _digests(texts: Sequence[str]) -> bytes:
    return "\n".join(sorted({row_digest(row_name(text)) for text in texts})).encode("ascii")


def add_task(name: str, *, keep_above: float, state: Path) -> None:
    """Write the task's file into the state folder."""
    task = {
        "kind": "classify",
        "model": f"{name}-head",
        "routing": {"keep_above": keep_above, "below": "defer"},
    }
    path = state / "tasks" / f"{name}.yaml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(task), "utf-8")
    except OSError as error:
        raise StoreError(f"The task cannot be written to {path}: {error.strerror}.") from error


def _plain(report: HeadReport) -> dict[str, Any]:
    return {
        "accuracy": round(report.accuracy, 4),
        "calibration_error": report.ece,
        "rows": report.rows,
        "counts": report.counts,
        "confused": [list(entry) for entry in report.confused],
    }


def _print(name: str, report: HeadReport) -> None:
    calibrated = (
        "not calibrated: too few right or wrong answers"
        if report.ece is None
        else f"calibration error {report.ece:.3f}"
    )
    typer.echo(
        f"{name}: {report.accuracy:.1%} right by cross-validation over {report.rows} examples, "
        f"{len(report.counts)} labels; {calibrated}"
    )
    if report.confused:
        rows = [(escape(t), escape(p), n) for t, p, n in report.confused[:_CONFUSED]]
        show.table("Confused most often", ("label", "taken for", "times>"), rows)
    typer.echo(f'Try it: edge run {name} "…"')
