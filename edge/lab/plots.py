"""Pictures of a calibration: matplotlib, which is an extra, is loaded when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import ConfigError, InputError
from edge.lab.calibrating import Bin
from edge.lab.metrics import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _ACCENT, _FAINT = "#1f2933", "#2b6cb0", "#9aa5b1"
_SIZE = (10.0, 4.6)  # inches
_DPI = 150


def check_plots(path: Path) -> None:
    """Make sure that a picture can be drawn and put there.

    Raises:
        ConfigError: matplotlib is not installed.
        InputError: the name does not end in .png, or its folder is not there.

    """
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "A plot needs matplotlib, which is not installed.",
            hint="Run `pip install 'edge-runtime[plots]'`, or leave --plot out.",
        )
    if path.suffix.lower() != ".png":
        raise InputError(f"The plot {path.name} is no PNG.", hint="Let its name end in .png.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"The folder of the plot {path} is not there.", hint="Make it first.")


def plot_calibration(
    path: Path,
    curve: Curve,
    *,
    bins: Sequence[Bin],
    title: str,
    risk: float,
    kept: float | None = None,
) -> None:
    """Write risk over share kept, and share right over confidence, side by side, as PNG.

    Args:
        path: of the picture; one that is there is replaced.
        curve: risk over the share kept.
        bins: of the reliability diagram.
        title: of the picture.
        risk: that was asked for; a dashed line.
        kept: share that the certificate keeps; a mark.

    Raises:
        OSError: the file cannot be written.

    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    figure.suptitle(title, color=_INK)
    left, right = figure.subplots(1, 2)
    _risk(left, curve, risk, kept)
    _reliability(right, bins)
    figure.savefig(path, format="png")


def _risk(axes: Axes, curve: Curve, risk: float, kept: float | None) -> None:
    share, value = 100 * curve.share, 100 * curve.value
    axes.fill_between(share, value, color=_ACCENT, alpha=0.15, linewidth=0)
    axes.plot(share, value, color=_ACCENT, linewidth=1.8)
    axes.axhline(100 * risk, color=_INK, linewidth=1, linestyle="--")
    axes.annotate(
        f"asked for: {100 * risk:.3g} %", (1, 100 * risk), xytext=(0, 4), color=_INK,
        textcoords="offset points", fontsize=9,
    )  # fmt: skip
    if kept is not None:
        axes.plot([100 * kept], [100 * curve.at(kept)], "o", color=_INK, zorder=3)
        axes.annotate(
            f"certified: {100 * kept:.1f} % kept", (100 * kept, 100 * curve.at(kept)),
            xytext=(-8, 14), textcoords="offset points", ha="right", color=_INK, fontsize=9,
        )  # fmt: skip
    axes.set(xlim=(0, 100), xlabel="kept, % of valid answers", ylabel="wrong among the kept, %")
    axes.set_ylim(0, max(float(value.max()), 100 * risk) * 1.15)
    axes.set_title("Risk over coverage", fontsize=11)
    _plainly(axes)


def _reliability(axes: Axes, bins: Sequence[Bin]) -> None:
    low = min(min(each.confidence, each.accuracy) for each in bins)
    start = max(0.0, round(low - 0.1, 1))
    axes.plot([start, 1], [start, 1], color=_FAINT, linewidth=1, linestyle="--")
    for each in bins:
        spread = (each.accuracy * (1 - each.accuracy) / each.count) ** 0.5
        axes.errorbar(
            each.confidence, each.accuracy, yerr=spread, fmt="o", color=_ACCENT, ecolor=_FAINT,
            capsize=2,
        )  # fmt: skip
    axes.set(xlim=(start, 1.01), ylim=(start, 1.01))
    axes.set(xlabel="confidence, mean of a tenth", ylabel="share that is right")
    axes.set_title("Reliability (bars: one standard error)", fontsize=11)
    _plainly(axes)


def _plainly(axes: Any) -> None:
    axes.grid(color=_FAINT, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
