"""How amounts, sizes and figures are written for a person."""

from types import SimpleNamespace

import pytest

from edge.cli import show
from edge.cli.models import measured


@pytest.mark.parametrize(
    ("microusd", "wanted"),
    [
        (0, "$0"),
        (1, "$0.000001"),
        (500_000, "$0.5"),
        (1_000_000, "$1"),
        (10_000_000, "$10"),
        (12_340_000, "$12.34"),
    ],
)
def test_dollars_have_as_many_digits_as_they_need(microusd, wanted):
    assert show.dollars(microusd) == wanted


@pytest.mark.parametrize(
    ("count", "wanted"), [(6_844, "7 KB"), (240_168, "240 KB"), (23_573_083, "23.6 MB")]
)
def test_sizes(count, wanted):
    assert show.size(count) == wanted


@pytest.mark.parametrize(
    ("quality", "wanted"),
    [
        ({}, ""),
        ({"n": 3, "note": "text"}, ""),
        ({"n": 1531, "ece": 0.1, "accuracy": 0.9262}, "accuracy 0.926 over 1531"),
        ({"cosine_to_fp32_mean": 0.9933, "n": 300}, "cosine to fp32 0.993 over 300"),
        (
            {"a_validation": {"n": 7, "exact_match": 0.9}, "a": {"n": 8, "exact_match": 0.8}},
            "exact match 0.800 over 8 (a)",
        ),
        ({"a_validation": {"exact_match": 0.9}}, "exact match 0.900 (a_validation)"),
    ],
)
def test_the_figure_that_says_most(quality, wanted):
    assert measured(SimpleNamespace(quality=quality)) == wanted
