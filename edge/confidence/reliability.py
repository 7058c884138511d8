"""Expected calibration error: the one measure that fitting a calibration reports.

Guo et al. 2017, over bins of equal mass. The other metrics are in ``edge.lab.metrics``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BINS = 10


def expected_calibration_error(
    confidence: NDArray[np.float64], correct: NDArray[np.float64], *, bins: int = _BINS
) -> float:
    """Return the mean gap between confidence and accuracy over equal-mass bins, 0..1."""
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    gaps = [abs(confidence[part].mean() - correct[part].mean()) * len(part) for part in parts]
    return float(sum(gaps) / max(len(order), 1))
