"""Numbers, money and times as the dashboard writes them."""

import pytest

from edge_sync.web import formats as f


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9_999, "9,999"), (12_345, "12.3 k"), (2.5e6, "2.5 M"), (None, f.DASH)],
)
def test_counts_are_short(number, text):
    assert f.big(number) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (0.0123, "1.2 %"), (0.5, "50 %"), (1, "100 %"), (None, f.DASH)]
)
def test_shares_are_percentages(share, text):
    assert f.percent(share) == text


@pytest.mark.parametrize(
    ("micro", "text"),
    [
        (0, "$0"),
        (0.2, "< $0.000001"),
        (184, "$0.000184"),
        (21_500, "$0.0215"),
        (118_500_000, "$118.50"),
        (None, f.DASH),
    ],
)
def test_small_amounts_keep_their_digits(micro, text):
    assert f.usd(micro) == text


@pytest.mark.parametrize(
    ("passed", "text"),
    [(1, "just now"), (59, "59 s ago"), (150, "2 min ago"), (7_300, "2 h ago"), (9e5, "10 d ago")],
)
def test_times_ago(passed, text):
    assert f.ago(1e9 - passed, 1e9) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.3, "right"), (-40, "40 s behind"), (3.2e8, "3704 d ahead"), (None, f.DASH)],
)
def test_clocks(seconds, text):
    assert f.skew(seconds) == text


def test_the_parts_of_a_bar_fill_it_and_never_more():
    parts = f.parts([("a", 30, "f1"), ("none", 0, "f2"), ("b", 90, "f3")], 100)
    assert [(p.name, p.start, p.width) for p in parts] == [("a", 0.0, 30.0), ("b", 30.0, 70.0)]


def test_a_line_needs_something_measured():
    assert f.spark([None, 0.0]) == ""
    assert f.spark([0.0, 2.0]).split() == ["0.0,29.0", "100.0,3.0"]
