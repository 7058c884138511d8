"""Diagrams out of block characters, at most 80 columns wide and readable without colour.

Pure: values in, lines out.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

from edge.lab.calibrating import Bin
from edge.lab.metrics import Curve

_BLOCKS = " ▁▂▃▄▅▆▇█"
_EIGHTHS = 8
_WIDE = 66
_HIGH = 8
_BAR = 40
_STEPS = (0.004, 0.008, 0.012, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2, 0.3, 0.4, 0.6, 0.8)


def risk_coverage(
    curve: Curve, *, risk: float | None = None, kept: float | None = None
) -> list[str]:
    """Return the share of wrong answers among the surest, over the share kept.

    Args:
        curve: see ``edge.lab.metrics.risk_coverage``.
        risk: drawn as a dotted line.
        kept: marked below the axis.

    """
    levels = [curve.at((column + 1) / _WIDE) for column in range(_WIDE)]
    top = next((step for step in _STEPS if step >= max(*levels, risk or 0.0)), 1.0)
    line = None if risk is None else ceil(risk / top * _HIGH - 1e-9) - 1
    lines = []
    for row in reversed(range(_HIGH)):
        filled = [_cell(level / top * _HIGH - row) for level in levels]
        if row == line:
            filled = [each if each != " " else "·" for each in filled]
        edge = f"{100 * top * (row + 1) / _HIGH:5.3g} % " if row % 2 else " " * 8
        lines.append(f"{edge}│{''.join(filled)}".rstrip())
    lines.append(" " * 8 + "└" + "─" * _WIDE)
    last = _WIDE - 3 * (_WIDE // 4)
    places = ((25, _WIDE // 4), (50, _WIDE // 4), (75, _WIDE // 4), (100, last))
    marks = " " * 8 + "0" + "".join(f"{f'{share} %':>{width}}" for share, width in places)
    if kept is not None and kept > 0.0:
        lines.append(" " * (8 + max(1, round(kept * _WIDE))) + "▲")
    return [*lines, marks]


def reliability(bins: Sequence[Bin]) -> list[str]:
    """Return one line a group: a bar for the share that is right, a mark where it was said."""
    least = min((value for each in bins for value in (each.accuracy, each.confidence)), default=0)
    start = max(0.0, floor(10 * least - 0.5) / 10)
    axis = f"{f'{100 * start:.0f} %':<6}{'100 %':>{_BAR - 6}}"
    lines = [f"{'said':>7}  {'right':>5}  {'answers':>7}   {axis}"]
    for each in bins:
        right, said = (_BAR * (v - start) / (1.0 - start) for v in (each.accuracy, each.confidence))
        bar = "".join(_cell_across(right - place) for place in range(_BAR))
        spot = min(_BAR - 1, int(said))
        marked = f"{bar[:spot]}┃{bar[spot + 1 :]}"
        lines.append(f"{each.confidence:7.3f}  {each.accuracy:5.3f}  {each.count:7}   {marked}")
    return lines


def _cell(height: float) -> str:
    return _BLOCKS[round(_EIGHTHS * min(1.0, max(0.0, height)))]


def _cell_across(width: float) -> str:
    return "█" if width >= 1.0 else "▌" if width >= 0.5 else "░"  # noqa: PLR2004
