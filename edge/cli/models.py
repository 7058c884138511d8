"""``edge models``: what models are here, and whether their files are whole."""

from __future__ import annotations

from typing import Annotated, Optional

import typer
from rich.markup import escape

from edge.cli import show
from edge.cli.run import AsJson, State
from edge.config import models_folder, state_folder
from edge.errors import EdgeError
from edge.store.weights import Manifest, ModelStore

app = typer.Typer(no_args_is_help=True)


def store(state: str | None) -> ModelStore:
    """Return the shipped models and those of the state folder."""
    return ModelStore(models_folder(), extra=[state_folder(state) / "models"])


@app.command("list")
def list_models(*, state: State = None, as_json: AsJson = False) -> None:
    """Show every model with its size, quantization and measured quality."""
    models = store(state)
    found = [models.manifest(name) for name in models.names()]
    if as_json:
        for manifest in found:
            show.print_json({**manifest.model_dump(mode="json"), "digest": manifest.digest})
        return
    rows = (
        (
            manifest.name,
            manifest.kind,
            manifest.engine,
            f"{sum(file.bytes for file in manifest.files) / 1e6:.1f}",
            manifest.quantization or "",
            escape(_quality(manifest)),
            manifest.licence,
        )
        for manifest in found
    )
    columns = ("model", "kind", "engine", "MB>", "quantization", "measured", "licence")
    show.table("", columns, rows)


@app.command("verify")
def verify(
    name: Annotated[Optional[str], typer.Argument(help="One model; all without.")] = None,  # noqa: UP045
    *,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Check sizes and digests; exit code 1 where a model is not whole."""
    models = store(state)
    found = {}
    for each in [name] if name else models.names():
        try:
            found[each] = [str(problem) for problem in models.verify(each)]
        except EdgeError as error:
            if name:
                raise
            found[each] = [error.message]
    for each, problems in found.items():
        if as_json:
            show.print_json({"model": each, "whole": not problems, "problems": problems})
        else:
            typer.echo(f"{each}: {'; '.join(problems) or 'whole'}")
    if any(found.values()):
        raise typer.Exit(1)


def _quality(manifest: Manifest) -> str:
    """Return the first figures of a manifest's quality in words."""
    words = []
    for key, value in manifest.quality.items():
        if isinstance(value, dict):
            inner = " ".join(f"{k} {v}" for k, v in list(value.items())[:2])
            words.append(f"{key}: {inner}")
        elif isinstance(value, float):
            words.append(f"{key} {value}")
    return ", ".join(words[:2])
