"""What every bench shares: rows with bars, the machine, a table or one JSON object."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
PACKAGES = ("edge-runtime", "llama-cpp-python", "numpy", "onnxruntime", "tokenizers")


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes:
        bar: the number it was asked to reach; ``None`` where none was set.
        met: whether it did.
        sense: from which side, ``>=`` or ``<=``.

    """

    name: str
    value: float | str
    unit: str
    bar: float | None = None
    met: bool | None = None
    sense: str | None = None


def at_least(name: str, value: float, bar: float, unit: str = "") -> Row:
    """Return a row that is met from ``bar`` upwards."""
    return Row(name, round(float(value), 4), unit, bar, bool(value >= bar), ">=")


def at_most(name: str, value: float, bar: float, unit: str = "") -> Row:
    """Return a row that is met up to ``bar``."""
    return Row(name, round(float(value), 4), unit, bar, bool(value <= bar), "<=")


def machine() -> dict[str, object]:
    """Return what ran the bench."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_before": load,
        "date": time.strftime("%Y-%m-%d"),
    }


def versions() -> dict[str, str]:
    """Return the versions of what was measured."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def median_s(work: Callable[[], object], *, rounds: int, warm: int = 1) -> float:
    """Return the median seconds of one call."""
    times = []
    for at in range(warm + rounds):
        start = time.perf_counter()
        work()
        if at >= warm:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def shared(*parts: str) -> Path:
    """Return a path of the shared data, or end the bench with the reason why it cannot run."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        print(f"skipped: {'/'.join(parts)} is not in ../shared", file=sys.stderr)
        raise SystemExit(0)
    return path


def read_rows(path: Path) -> list[dict[str, object]]:
    """Return the objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def main(
    name: str,
    measure: Callable[[argparse.Namespace], Iterable[Row]],
    *,
    options: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run a bench: parse the options, measure, print, and exit 1 where a bar is missed.

    Args:
        name: of the bench.
        measure: yields the rows.
        options: further options that take a value, each with its help.

    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="end within 50 seconds")
    for option, told in options.items():
        parser.add_argument(option, help=told)
    arguments = parser.parse_args()
    where = machine()
    rows = list(measure(arguments))
    if arguments.json:
        whole = {"bench": name, "machine": where, "versions": versions()}
        print(json.dumps({**whole, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        _print(name, rows)
    sys.exit(any(row.met is False for row in rows))


def _print(name: str, rows: Iterable[Row]) -> None:
    table = Table(title=name, title_justify="left")
    for column, justify in (("row", "left"), ("value", "right"), ("bar", "right"), ("met", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        met = {True: "[green]yes[/green]", False: "[red]no[/red]", None: ""}[row.met]
        table.add_row(
            row.name,
            f"{row.value} {row.unit}".strip(),
            "" if row.bar is None else f"{row.sense} {row.bar:g}",
            met,
        )
    Console().print(table)
