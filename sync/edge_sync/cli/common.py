"""What the commands share: the hub's folder, who acts, questions, and how times are shown."""

from __future__ import annotations

import getpass
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.markup import escape

from edge.cli import show
from edge.config import state_folder
from edge.errors import InputError
from edge_sync.hub.home import Hub

HOME_VARIABLE = "EDGE_HUB_HOME"
Home = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="The hub's folder; EDGE_HUB_HOME without it."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Groups = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--group", help="Only this group; may be given again. All without."),
]

_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,3})?) ?(s|m|min|h|d|w)")
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_STEPS = (
    (172_800, 86_400, 3_600, "d"),
    (3_600, 3_600, 60, "h"),
    (60, 60, 1, "min"),
    (1, 1, 1, "s"),
)


class Styled(str):
    """Text with rich's marks; all other text is shown as it is."""

    __slots__ = ()


def home_folder(home: Path | None) -> Path:
    """Return the hub's folder: as given, of the environment, or the platform's place."""
    told = home or os.environ.get(HOME_VARIABLE)
    if told:
        return state_folder(told)
    rest = {name: value for name, value in os.environ.items() if name != "EDGE_STATE"}
    return state_folder(None, env=rest).with_name("edge-hub")


@contextmanager
def opened(home: Path | None, *, migrating: bool = False) -> Iterator[Hub]:
    """Yield the hub of a folder, open; brought to this version's schema first where asked."""
    with Hub.open(home_folder(home), migrating=migrating) as hub:
        yield hub


def who() -> str:
    """Return who stands in the audit log for what this command does."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError, ImportError):
        return "cli:unknown"


def seconds(text: str, *, option: str) -> float:
    """Return a duration such as ``90 s``, ``30m``, ``24h`` or ``7d``, in seconds.

    Raises:
        InputError: it is none.

    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise InputError(
            f"{option} is {text!r}, which is no duration.", hint="Write it as 30m, 24h or 7d."
        )
    return float(found[1]) * _UNITS[found[2]]


def confirm(question: str, *, yes: bool) -> None:
    """Ask, unless ``yes``; leave with exit code 1 where the answer is no.

    Raises:
        InputError: there is no terminal to ask at.

    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(
            "This has to be confirmed, and there is no terminal to ask at.", hint="Pass --yes."
        )
    if not typer.confirm(question, err=True):
        typer.echo("Nothing was changed.", err=True)
        raise typer.Exit(1)


def told(line: str) -> None:
    """Print one line for a person: no marks, nothing cut."""
    show.console.print(escape(line), highlight=False, soft_wrap=True)


def table(
    title: str, columns: Iterable[str], rows: Iterable[Iterable[object]], *, empty: str = ""
) -> None:
    """Print a table as ``show.table``, or ``empty`` for no rows; only ``Styled`` has marks."""
    rows = list(rows)
    if not rows and empty:
        told(empty)
        return
    show.table(
        escape(title),
        columns,
        ([cell if isinstance(cell, Styled) else escape(str(cell)) for cell in row] for row in rows),
    )


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values in two columns without a heading."""
    rows = [(name, value) for name, value in pairs if value not in {None, ""}]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        shown = value if isinstance(value, Styled) else escape(str(value))
        line = f"[dim]{escape(name.ljust(width))}[/dim]  {shown}"
        show.console.print(line, highlight=False, soft_wrap=True)


def ago(at: float | None, now: float) -> str:
    """Return how long ago a time was, or how far ahead it lies, in one unit."""
    if at is None:
        return "never"
    if abs(now - at) < 1:
        return "now"
    return f"{span(now - at)} ago" if at <= now else f"in {span(at - now)}"


def span(length_s: float) -> str:
    """Return a length of time in its largest unit: ``45 s``, ``3 min``, ``26 h``, ``12 d``."""
    for least, size, grain, unit in _STEPS:
        # Rounded to the next smaller unit: what ends in a day less a moment ends in 24 h.
        if round(length_s / grain) * grain >= least:
            return f"{round(length_s / size)} {unit}"
    return "0 s"


def day_time(at: float) -> str:
    """Return a moment by the local clock, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def count(number: int, what: str) -> str:
    """Return a number with its noun: ``1 device``, ``3 devices``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
