"""``edge models``: what models are here, and whether their files are whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Optional

import typer
from rich.console import JustifyMethod
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from edge.cli import show
from edge.cli.run import AsJson, State
from edge.config import models_folder, state_folder
from edge.errors import EdgeError
from edge.store.weights import Manifest, ModelStore

app = typer.Typer(no_args_is_help=True)
_WIDTH = 100
_INDENT = 2
_FACTS: tuple[tuple[int, JustifyMethod], ...] = (
    (0, "left"),
    (7, "left"),
    (8, "left"),
    (7, "right"),
)
_FIGURES = {
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "cross_validation": "accuracy, cross-validated,",
    "cosine_to_fp32_mean": "cosine to fp32",
}


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
    width = min(show.console.width, _WIDTH)
    heads = [f"[dim]{name}[/dim]" for name in ("kind", "engine", "size", "measured")]
    show.console.print(_line(heads), width=width)
    for manifest in found:
        show.console.print(f"\n[bold]{escape(manifest.name)}[/bold]", highlight=False)
        show.console.print(_line(_cells(manifest)), width=width, highlight=False)
        made = ", ".join(part for part in (manifest.quantization, manifest.licence) if part)
        line = Padding(f"[dim]{escape(made)}[/dim]", (0, 0, 0, _INDENT))
        show.console.print(line, width=width, highlight=False)
    show.console.print()


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


def _line(cells: Sequence[str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for width, justify in _FACTS:
        grid.add_column(width=width, justify=justify)
    grid.add_column()
    grid.add_row("", *cells)
    return grid


def _cells(manifest: Manifest) -> list[str]:
    size = show.size(sum(file.bytes for file in manifest.files))
    return [manifest.kind, manifest.engine, size, f"[cyan]{escape(measured(manifest))}[/cyan]"]


def measured(manifest: Manifest) -> str:
    """Return the figure that says most of a model's quality, in words; may be empty."""
    quality = manifest.quality
    inner = {name: value for name, value in quality.items() if isinstance(value, dict)}
    # A figure on rows that shaped the training comes after one on rows that did not.
    ordered = sorted(inner.items(), key=lambda pair: "validation" in pair[0])
    for on, figures in (("", quality), *ordered):
        for key, words in _FIGURES.items():
            if isinstance(figures.get(key), int | float):
                rows = f" over {figures['n']}" if "n" in figures else ""
                return f"{words} {figures[key]:.3f}{rows}{f' ({on})' if on else ''}"
    return ""
