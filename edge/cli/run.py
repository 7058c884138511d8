"""``edge run``: one task over a text, a pipe of texts, or a stream of JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Optional

import typer
from rich.markup import escape

import edge
from edge.cli import show
from edge.errors import InputError
from edge.types import Result

Pack = Annotated[str, typer.Option(help="A shipped pack's name, or a YAML file.")]
State = Annotated[Optional[str], typer.Option(help="Folder for ledger, queue and traces.")]  # noqa: UP045
Offline = Annotated[bool, typer.Option("--offline", help="Open no socket.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


def run(
    task: Annotated[str, typer.Argument(help="The task's name.")],
    text: Annotated[
        str, typer.Argument(help="The input; - reads one input a line from standard input.")
    ] = "-",
    *,
    pack: Pack = "kiosk",
    state: State = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Answer a text, or every line of standard input."""
    with edge.open(pack, state=state, offline=offline or None) as runtime:
        for entry in _lines() if text == "-" else iter([text]):
            result = runtime.run(task, entry)
            if as_json or not sys.stdout.isatty():
                show.print_json(result.as_dict())
            else:
                _print(result)


def _lines() -> Iterator[str]:
    """Yield the lines of standard input; an empty one is skipped."""
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"Line {number} of the input is not valid UTF-8: {error.reason}.",
                hint="Convert it to UTF-8, for example with iconv.",
            ) from error
        if line.strip():
            yield line


def _print(result: Result) -> None:
    answer = escape(show.answer(result.value))
    line = "[dim]no answer[/dim]" if result.value is None else f"[bold]{answer}[/bold]"
    show.console.print(line, highlight=False)
    facts = [
        f"{show.route(result)}{' (provisional)' if result.provisional else ''}",
        f"confidence {show.confidence(result)}",
        f"{result.latency_ms:.1f} ms",
        show.dollars(result.cost_microusd),
        escape(f"{result.model} on {result.device}") if result.model else "no model",
        ", ".join(reason.value for reason in result.reasons),
    ]
    show.console.print("  ".join(facts), highlight=False)
