"""Pictures: drawn where matplotlib is here, a remedy where it is not."""

import numpy as np
import pytest

from edge.errors import ConfigError, InputError
from edge.lab import plots
from edge.lab.calibrating import Bin
from edge.lab.metrics import Curve


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(plots, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="needs matplotlib") as failed:
        plots.check_plots(tmp_path / "a.png")
    assert "edge-runtime[plots]" in failed.value.hint


@pytest.mark.parametrize(
    ("name", "words"),
    [("a.svg", "is no PNG"), ("nowhere/a.png", "folder of the plot .* not there")],
)
def test_a_place_that_cannot_be_is_refused(monkeypatch, tmp_path, name, words):
    monkeypatch.setattr(plots, "find_spec", lambda _name: "here")
    with pytest.raises(InputError, match=words):
        plots.check_plots(tmp_path / name)


def test_both_diagrams_are_one_png(tmp_path):
    pytest.importorskip("matplotlib")
    share = np.arange(1, 51) / 50
    plots.plot_calibration(
        tmp_path / "a.png",
        Curve(share, 0.1 * share),
        bins=[Bin(0.5, 0.6, 25), Bin(0.9, 0.95, 25)],
        title="spam",
        risk=0.05,
        kept=0.6,
    )
    raw = (tmp_path / "a.png").read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(raw[16:20], "big") == 1500
