"""``edge demo``: real utterances answered on the device, then the bill."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Sequence

from rich.console import JustifyMethod
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

import edge
from edge.cli import show
from edge.cli.run import AsJson, Pack, State
from edge.errors import InputError
from edge.runtime import Runtime
from edge.types import Result, Route

_WIDTH = 100
_FACTS: tuple[tuple[int, JustifyMethod], ...] = (
    (4, "right"),
    (8, "left"),
    (6, "left"),
    (6, "right"),
    (6, "right"),
)


def demo(*, pack: Pack = "kiosk", state: State = None, as_json: AsJson = False) -> None:
    """Answer every sample of the pack offline, and print what it would cost.

    Without --state everything is written into a folder that is removed afterwards.
    """
    with (
        tempfile.TemporaryDirectory(prefix="edge-demo-") as scratch,
        edge.open(pack, state=scratch if state is None else state, offline=True) as runtime,
    ):
        pairs = [(name, text) for name, t in runtime.tasks().items() for text in t.spec.samples]
        if not pairs:
            raise InputError(
                f"Pack {pack} has no samples to answer.",
                hint="Give a task of the pack some `samples`.",
            )
        load_s = show.with_bar(lambda tell: _warm(runtime, tell))
        results = [(text, runtime.run(name, text)) for name, text in pairs]
    if as_json:
        for text, result in results:
            show.print_json({"text": text, **result.as_dict()})
        return
    _print(results)
    _bill([result for _, result in results], load_s)


def _warm(runtime: Runtime, tell: object) -> float:
    """Load every model the samples need and return the seconds it took."""
    import time

    start = time.perf_counter()
    tasks = [(n, t) for n, t in runtime.tasks().items() if t.spec.samples and t.spec.model]
    for done, (_, task) in enumerate(tasks):
        if callable(tell):
            tell("loading models", done, len(tasks))
        runtime.models.draft(task, task.spec.samples[0])
    return time.perf_counter() - start


def _print(results: Sequence[tuple[str, Result]]) -> None:
    """Print each task's name, and under it each input with its answer and the facts."""
    width = min(show.console.width, _WIDTH)
    names = ("answer", "sure", "route", "device", "ms", "cost")
    show.console.print(_line([f"[dim]{name}[/dim]" for name in names]), width=width)
    for task, group in itertools.groupby(results, key=lambda pair: pair[1].task):
        show.console.print(f"\n[bold]{escape(task)}[/bold]")
        for text, result in group:
            show.console.print(Padding(escape(text), (0, 0, 0, 2)), width=width, highlight=False)
            show.console.print(_line(_cells(result)), width=width)
    show.console.print()


def _line(cells: Sequence[str]) -> Table:
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(width=3)
    grid.add_column(ratio=1)
    for width, justify in _FACTS:
        grid.add_column(width=width, justify=justify)
    grid.add_row("", *cells)
    return grid


def _cells(result: Result) -> list[str]:
    answer = escape(show.answer(result.value)) + (" ?" if result.route is Route.DEFERRED else "")
    return [
        f"[bold cyan]{answer}[/bold cyan]",
        show.confidence(result),
        show.route(result),
        result.device or "",
        f"{result.latency_ms:.1f}",
        show.dollars(result.cost_microusd),
    ]


def _bill(results: Sequence[Result], load_s: float) -> None:
    kept = [r for r in results if r.route in {Route.LOCAL, Route.CACHE}]
    waiting = [r for r in results if r.route is Route.DEFERRED]
    latency = sorted(r.latency_ms for r in results)
    spent = sum(r.cost_microusd for r in results)
    p95 = latency[min(len(latency) - 1, int(0.95 * len(latency)))]
    per_task = show.dollars(spent / len(kept)) if kept else "-"
    rows = [
        ("tasks", f"{len(results)}"),
        ("kept on the device", f"{len(kept)} ({len(kept) / len(results):.0%})"),
        ("deferred: not sure enough", f"{len(waiting)}, marked ?"),
        ("spent", show.dollars(spent)),
        ("cost per successful task", per_task),
        ("latency p50", f"{statistics.median(latency):.1f} ms"),
        ("latency p95", f"{p95:.1f} ms"),
        ("models loaded in", f"{load_s:.1f} s"),
        ("bytes sent", "0 (offline)"),
    ]
    show.table("The bill", ("item", "amount>"), rows)
