"""Diagrams of characters: within 80 columns, and showing what they are given."""

import numpy as np

from edge.cli.drawing import reliability, risk_coverage
from edge.lab.calibrating import Bin
from edge.lab.metrics import Curve


def rising(top):
    share = np.arange(1, 101) / 100
    return Curve(share, top * share**3)


def test_the_curve_fits_eighty_columns_and_fills_to_the_right():
    lines = risk_coverage(rising(0.16))
    assert max(map(len, lines)) <= 80
    heights = [line.count("█") for line in lines[:8]]
    assert heights == sorted(heights)
    assert lines[0].startswith("   16 %")
    assert lines[0].endswith("█")


def test_the_asked_risk_is_a_dotted_line_at_its_height():
    lines = risk_coverage(rising(0.16), risk=0.08)
    (dotted,) = [at for at, line in enumerate(lines) if "··" in line]
    assert lines[dotted].startswith("    8 %")


def test_the_certified_share_is_marked_below_the_axis():
    (line,) = [line for line in risk_coverage(rising(0.1), kept=0.5) if "▲" in line]
    axis = next(line for line in risk_coverage(rising(0.1)) if "└" in line)
    middle = (axis.index("└") + len(axis)) / 2
    assert abs(line.index("▲") - middle) <= 1
    assert not [line for line in risk_coverage(rising(0.1), kept=0.0) if "▲" in line]


def test_a_curve_without_errors_is_flat():
    lines = risk_coverage(rising(0.0))
    assert not [line for line in lines if "█" in line or "▁" in line]


def test_reliability_has_a_line_a_group_and_marks_what_was_said():
    lines = reliability([Bin(0.5, 0.9, 10), Bin(0.95, 1.0, 10)])
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    low, high = lines[1], lines[2]
    assert low.index("┃") < low.rindex("█")
    assert "░" not in high
    assert low.split()[:3] == ["0.500", "0.900", "10"]
