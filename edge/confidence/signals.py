"""Named numbers that tell right answers from wrong ones, read off what generating gave anyway.

No extra forward pass. Log-probabilities are of the unmasked rows, in nats; see
``edge.types.TokenStats``. Which signals a calibration uses is part of the calibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edge.types import TokenStats

NO_TOKENS = {"mean_logprob": 0.0, "min_logprob": 0.0, "q10_logprob": 0.0, "min_margin": 0.0}


def generation_signals(stats: Sequence[TokenStats], *, missing_fields: int = 0) -> dict[str, float]:
    """Return the signals of one generated answer.

    Args:
        stats: one entry per generated token, the closing one included.
        missing_fields: extracted values that do not occur in the input.

    """
    if not stats:
        return {**NO_TOKENS, "max_entropy": 0.0, "tokens": 0.0, "missing": float(missing_fields)}
    logprobs = np.array([entry.logprob for entry in stats])
    return {
        "mean_logprob": float(logprobs.mean()),
        "min_logprob": float(logprobs.min()),
        "q10_logprob": float(np.quantile(logprobs, 0.1)),
        "min_margin": float(min(entry.margin for entry in stats)),
        "max_entropy": float(max(entry.entropy for entry in stats)),
        "tokens": float(len(stats)),
        "missing": float(missing_fields),
    }


def as_row(signals: Mapping[str, float], features: Sequence[str]) -> list[float] | None:
    """Return the named signals in order, or ``None`` where one is absent or not finite."""
    row = [signals.get(name, float("nan")) for name in features]
    return row if all(np.isfinite(row)) else None
