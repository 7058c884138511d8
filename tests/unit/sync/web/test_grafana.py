"""The Grafana dashboard under docs asks for what the hub's /metrics gives."""

import json
import re
from pathlib import Path

from edge_sync.server.metrics import Metrics

DOCS = Path(__file__).parents[4] / "docs"
_NAMES = re.compile(r"\b(?:edge_hub|process)_[a-z_]+")


def test_every_panel_asks_for_a_metric_that_the_hub_gives(filled):
    board = json.loads((DOCS / "grafana.json").read_text())
    given = Metrics(filled.hub).text().decode()
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in _NAMES.findall(target["expr"])
    }
    known = set(re.findall(r"^# TYPE (\S+)", given, re.MULTILINE))
    assert len(asked) > 8
    for name in asked:
        family = name.removesuffix("_bucket")
        assert family in known, f"{name} is not in /metrics"


def test_panels_do_not_overlap():
    taken = set()
    for panel in json.loads((DOCS / "grafana.json").read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
