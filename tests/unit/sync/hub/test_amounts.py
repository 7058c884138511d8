"""Amounts of dollars: read and written exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import InputError
from edge_sync.hub.budget.amounts import cents, dollars, microusd


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("50", 50_000_000),
        ("$12.50", 12_500_000),
        (" 12.5 ", 12_500_000),
        ("0", 0),
        ("0.000001", 1),
        ("0.1", 100_000),
        ("1.10000000", 1_100_000),
        ("1000000000", 10**15),
        # Ten cents and a third as a float would be off by one.
        ("1.1", 1_100_000),
        ("4.35", 4_350_000),
        ("0.000125", 125),
    ],
)
def test_amounts_are_read_exactly(text, amount):
    assert microusd(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-5",
        "$-5",
        "+5",
        "5$",
        "5 $",
        "1,000",
        "1.000.000",
        "1e3",
        "nan",
        "inf",
        "0x10",
        ".5",
        "5.",
        "$",
        "fifty",
        "0.0000001",
        "1000000000.000001",
        "9" * 13,
        "9" * 5_000,
        "\u0665",
        "5\n5",
    ],
)
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(InputError):
        microusd(text)


@pytest.mark.parametrize(
    ("amount", "exact", "rounded"),
    [
        (0, "$0.00", "$0.00"),
        (1, "$0.000001", "$0.000001"),
        (12_500_000, "$12.50", "$12.50"),
        (8_991_000, "$8.991", "$8.99"),
        (8_995_000, "$8.995", "$9.00"),
        (99_999, "$0.099999", "$0.099999"),
        (100_000, "$0.10", "$0.10"),
        (-500_000, "-$0.50", "-$0.50"),
        (-8_991_000, "-$8.991", "-$8.99"),
        (10**15, "$1,000,000,000.00", "$1,000,000,000.00"),
        (999_999_999_999_999, "$999,999,999.999999", "$1,000,000,000.00"),
    ],
)
def test_amounts_are_written(amount, exact, rounded):
    assert (dollars(amount), cents(amount)) == (exact, rounded)


@given(st.integers(0, 10**15))
def test_what_is_written_is_read_again(amount):
    assert microusd(dollars(amount).replace(",", "")) == amount
