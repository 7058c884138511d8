"""``edge-hub models``: the models that devices can be assigned."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import typer

from edge.cli import show
from edge_sync.cli.common import AsJson, Home, ago, count, opened, table, told, who
from edge_sync.hub import models

app = typer.Typer(no_args_is_help=True)
_DIGEST = "How its digest begins, where there are several of the name."
_SHORT = 12
_NONE = "No models yet: edge-hub models add FOLDER"


@app.command("add")
def add(
    folder: Annotated[Path, typer.Argument(help="Holds manifest.json and the files it names.")],
    *,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Check a model's files, copy them to the hub and sign their index."""
    with opened(home) as hub:
        made = models.add(hub, folder, who=who())
    if as_json:
        show.print_json(asdict(made))
        return
    told(f"{made.name}: {count(made.files, 'file')}, {show.size(made.bytes)}.")
    told("In a policy:")
    told(f"  models: {{{made.name}: {{digest: {made.digest}}}}}")


@app.command("list")
def list_models(
    *,
    home: Home = None,
    full: Annotated[bool, typer.Option("--full", help="Whole digests.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show all models, and which policies name them."""
    with opened(home) as hub:
        found, now = models.list_models(hub), hub.clock()
    if as_json:
        for model in found:
            show.print_json(asdict(model))
        return
    rows = (
        (
            model.name,
            model.digest if full else model.digest[:_SHORT],
            show.size(model.bytes),
            ago(model.added_at, now),
            model.added_by,
            ", ".join(map(str, model.revisions)) or "-",
        )
        for model in found
    )
    table("", ("name", "digest", "size>", "added", "by", "in policies"), rows, empty=_NONE)


@app.command("verify")
def verify(
    name: Annotated[Optional[str], typer.Argument(help="One model; all without.")] = None,  # noqa: UP045
    *,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Check the files of the hub's models; exit code 1 where one is not whole."""
    with opened(home) as hub:
        named = [each for each in models.list_models(hub) if name in {None, each.name}]
        if name is not None and not named:
            models.find(hub, name)
        found = [(each, models.verify(hub, each)) for each in named]
    for model, problems in found:
        if as_json:
            whole = {"model": model.name, "digest": model.digest, "whole": not problems}
            show.print_json({**whole, "problems": problems})
        else:
            told(f"{model.name} {model.digest[:_SHORT]}: {'; '.join(problems) or 'whole'}")
    if any(problems for _, problems in found):
        raise typer.Exit(1)


@app.command("rm")
def remove(
    name: Annotated[str, typer.Argument(help="Of the model.")],
    digest: Annotated[Optional[str], typer.Argument(help=_DIGEST)] = None,  # noqa: UP045
    *,
    home: Home = None,
) -> None:
    """Remove a model that no policy names."""
    with opened(home) as hub:
        model = models.find(hub, name, digest)
        models.remove(hub, model, who=who())
    told(f"{model.name} {model.digest[:_SHORT]} is removed.")
