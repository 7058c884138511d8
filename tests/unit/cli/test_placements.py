"""A placement is told in one sentence."""

from __future__ import annotations

import pytest

from edge.cli.placements import sentence


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        ({"asked": "cpu", "used": "cpu", "share": 1.0, "why": ""}, "on cpu"),
        ({"asked": "auto", "used": "cpu", "share": 1.0, "why": "only"}, "on cpu (only)"),
        ({"asked": "qnn", "used": "qnn", "share": 0.5, "why": "w"}, "on qnn 50% of it (w)"),
        ({"asked": "qnn", "used": "cpu", "share": 1.0, "why": "w"}, "on cpu, asked for qnn (w)"),
        ({"problem": "broken"}, "nowhere: broken"),
    ],
)
def test_a_placement_in_words(placement, words):
    assert sentence(placement) == words
