"""How the commands print: tables for a person, JSON for a program, errors in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from edge.types import Json, Result, Route

_T = TypeVar("_T")
_MICRO = 1_000_000
_MEGA = 1_000_000
_COLOURS = {
    Route.LOCAL: "green",
    Route.CACHE: "green",
    Route.CLOUD: "magenta",
    Route.DEFERRED: "yellow",
    Route.ABSTAINED: "red",
}

console = Console()
problems = Console(stderr=True)


def print_json(value: Any) -> None:
    """Print one JSON value on one line."""
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def dollars(microusd: float) -> str:
    """Return an amount as dollars with as many digits as it needs."""
    return "$0" if microusd == 0 else f"${microusd / _MICRO:.6f}".rstrip("0").rstrip(".")


def size(count: int) -> str:
    """Return a number of bytes in KB or MB."""
    return f"{count / 1e3:.0f} KB" if count < _MEGA else f"{count / _MEGA:.1f} MB"


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table; columns that end in ``>`` are aligned to the right.

    Where it is too wide lines go on below: nothing is cut.
    """
    made = Table(
        title=title or None,
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in columns:
        right = column.endswith(">")
        justify: JustifyMethod = "right" if right else "left"
        made.add_column(column.rstrip(">"), justify=justify, overflow="fold")
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    console.print(made)


def answer(value: Json) -> str:
    """Return an answer in words: a label, a text, or a call such as ``Name(slot=value)``."""
    if isinstance(value, dict):
        rest = ", ".join(f"{k}={v}" for k, v in value.items() if k != "intent")
        return f"{value.get('intent', 'call')}({rest})"
    if isinstance(value, list):
        return f"[{len(value)} numbers]"
    return "" if value is None else str(value)


def route(result: Result) -> str:
    """Return a coloured route."""
    colour = _COLOURS[result.route]
    return f"[{colour}]{result.route.value}[/{colour}]"


def confidence(result: Result) -> str:
    """Return the confidence with two digits, or a dash where it is not calibrated."""
    return "-" if result.confidence is None else f"{result.confidence:.2f}"


def with_bar(work: Callable[[Callable[[str, int, int], None]], _T]) -> _T:
    """Run ``work`` with a progress bar that it reports (what, done, of) to."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=problems, transient=True) as progress:
        bars: dict[str, Any] = {}

        def tell(what: str, done: int, of: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=of)
            progress.update(bars[what], completed=done, total=of)

        return work(tell)
