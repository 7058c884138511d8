"""Named numbers that tell right answers from wrong ones, read off what generating gave anyway.

No extra forward pass. Log-probabilities are of the unmasked rows, in nats; see
``edge.types.TokenStats``. Which signals a calibration uses is part of the calibration.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from edge.confidence.fields import FieldTokens, field_signals
from edge.types import TokenStats


def generation_signals(
    stats: Sequence[TokenStats],
    *,
    missing_fields: int = 0,
    fields: Collection[FieldTokens] = (),
) -> dict[str, float]:
    """Return the signals of one generated answer.

    Over all tokens: ``mean_logprob``, ``min_logprob``, ``q10_logprob``, ``min_margin``,
    ``max_entropy``, ``tokens``. Over the tokens of values: ``value_mean_logprob``,
    ``value_min_logprob``, ``value_q10_logprob``, ``value_margin`` (the smallest),
    ``outside_mass`` (the largest). Over fields: ``first_margin``, the smallest at the begin of a
    value; ``worst_field``, the smallest mean log-probability of a value; ``name_margin``, the
    smallest of a name, left out where there is none. An answer without fields is one value. What
    has no tokens is 0.

    Args:
        stats: one entry per chosen token, the closing one included.
        missing_fields: extracted values that do not occur in the input, the signal ``missing``.
        fields: of a JSON answer.

    """
    whole = _over(stats)
    values = [each.value for each in fields if each.value] or [tuple(stats)]
    value = _over([entry for each in values for entry in each])
    single = [_over(each) for each in values]
    names = [entry.margin for each in fields for entry in each.named]
    shown = ("mean_logprob", "min_logprob", "q10_logprob", "min_margin", "max_entropy", "tokens")
    return {
        **{name: whole[name] for name in shown},
        "missing": float(missing_fields),
        "value_mean_logprob": value["mean_logprob"],
        "value_min_logprob": value["min_logprob"],
        "value_q10_logprob": value["q10_logprob"],
        "value_margin": value["min_margin"],
        "outside_mass": value["outside_mass"],
        "first_margin": min(each["first_margin"] for each in single),
        "worst_field": min(each["mean_logprob"] for each in single),
        **({"name_margin": min(names)} if names else {}),
    }


def as_row(signals: Mapping[str, float], features: Sequence[str]) -> list[float] | None:
    """Return the named signals in order, or ``None`` where one is absent or not finite."""
    row = [signals.get(name, float("nan")) for name in features]
    return row if all(np.isfinite(row)) else None


_NOTHING = dict.fromkeys(
    (
        "mean_logprob",
        "min_logprob",
        "q10_logprob",
        "min_margin",
        "max_entropy",
        "outside_mass",
        "first_margin",
    ),
    0.0,
)


def _over(stats: Sequence[TokenStats]) -> dict[str, float]:
    return _NOTHING | field_signals(FieldTokens((), tuple(stats)))
