"""How the dashboard writes numbers, money and times: short, with units, the same on every page.

Pure functions over plain values; ``None`` is a dash. Times are seconds since the epoch, shown in
UTC.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from edge_sync.hub.budget.amounts import cents

DASH = "–"  # noqa: RUF001 - the typographic dash of an empty cell
_STEPS = ((60.0, "s"), (60.0, "min"), (24.0, "h"), (365.0, "d"))
_SI = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))
"""From where on a letter is used, what it stands for, and the letter."""
_WHOLE_FROM = 10
"""Percent and milliseconds have a decimal below this."""
_SECOND_MS = 1_000
_LEAST_USD = 0.000_001
_USD_DIGITS = ((1.0, 2), (0.01, 4), (0.0, 6))
_NOW_S = 5
"""Differences below this are not told."""


def counted(number: int, noun: str) -> str:
    """Return ``1 device`` or ``2 devices``."""
    return f"{big(number)} {noun}{'' if number == 1 else 's'}"


def big(number: float | None) -> str:
    """Return a count: whole up to 9,999, then with k, M or G."""
    if number is None:
        return DASH
    for start, unit, letter in _SI:
        if number >= start:
            return f"{number / unit:.1f} {letter}"
    return f"{number:,.0f}"


def percent(share: float | None) -> str:
    """Return a share between 0 and 1 as a percentage."""
    if share is None:
        return DASH
    value = share * 100
    return f"{value:.0f} %" if value in {0, 100} or value >= _WHOLE_FROM else f"{value:.1f} %"


def milliseconds(value: float | None) -> str:
    """Return a latency with its unit."""
    if value is None:
        return DASH
    if value >= _SECOND_MS:
        return f"{value / _SECOND_MS:.1f} s"
    return f"{value:.0f} ms" if value >= _WHOLE_FROM else f"{value:.1f} ms"


def usd(microusd: float | None) -> str:
    """Return micro-dollars as dollars, small amounts with as many digits as they need."""
    if microusd is None:
        return DASH
    dollars = microusd / 1e6
    if dollars == 0:
        return "$0"
    if dollars < _LEAST_USD:
        return f"< ${_LEAST_USD:.6f}"
    digits = next(digits for start, digits in _USD_DIGITS if dollars >= start)
    return f"${dollars:,.{digits}f}"


def size(number: int) -> str:
    """Return bytes with a decimal unit."""
    for unit, step in (("MB", 1e6), ("kB", 1e3)):
        if number >= step:
            return f"{number / step:.1f} {unit}"
    return f"{number} bytes"


def ago(at: float | None, now: float) -> str:
    """Return how long ago something was."""
    if at is None:
        return "never"
    passed = now - at
    if passed < _NOW_S:
        return "just now"
    for step, unit in _STEPS:
        if passed < step or unit == "d":
            return f"{passed:.0f} {unit} ago"
        passed /= step
    return DASH


def moment(at: float) -> str:
    """Return a date and time in UTC."""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def day(at: float) -> str:
    """Return a date in UTC."""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d")


def version(revision: int | None) -> str:
    """Return a policy's number as people say it."""
    return f"v{revision}" if revision else "none"


def skew(seconds: float | None) -> str:
    """Return how far a device's clock is off."""
    if seconds is None:
        return DASH
    if abs(seconds) < _NOW_S:
        return "right"
    size_s, unit = abs(seconds), "s"
    for step, name in _STEPS:
        unit = name
        if size_s < step or name == "d":
            break
        size_s /= step
    return f"{size_s:.0f} {unit} {'ahead' if seconds > 0 else 'behind'}"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar, in percent of its width."""

    name: str
    count: str
    start: float
    width: float
    color: str


def parts(
    counts: Iterable[tuple[str, int, str]], whole: int, *, shown: Callable[[int], str] = big
) -> list[Part]:
    """Return the pieces of a bar from (name, count, colour); empty pieces are left out."""
    found, start = [], 0.0
    for name, count, color in counts:
        if count <= 0:
            continue
        width = min(100.0 - start, 100.0 * count / whole) if whole else 0.0
        found.append(Part(name, shown(count), round(start, 3), round(width, 3), color))
        start += width
    return found


def spark(values: list[float | None]) -> str:
    """Return the points of a line over a box of 100 x 30; nothing where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known or max(known) <= 0:
        return ""
    top, last = max(known), max(len(values) - 1, 1)
    return " ".join(
        f"{100 * at / last:.1f},{29 - 26 * (value or 0.0) / top:.1f}"
        for at, value in enumerate(values)
    )


FILTERS: dict[str, Callable[..., Any]] = {
    "ago": ago,
    "big": big,
    "bytes": size,
    "cents": cents,
    "counted": counted,
    "day": day,
    "milliseconds": milliseconds,
    "moment": moment,
    "percent": percent,
    "skew": skew,
    "usd": usd,
    "version": version,
}
