"""Evidence on shares: above or below a limit, or more among some than among others.

The first kind is valid however often one looks. Every share beyond the limit gets an equal stake of
a capital of 1, and the capital is what these bets have become: a likelihood ratio against the
limit, averaged. While the claim is wrong it seldom grows: reaching c has probability at most 1/c
over all looks (Ville 1939; the method of mixtures, Robbins, Ann. Math. Statist. 41, 1970). Pure;
knows nothing of devices.
"""

from __future__ import annotations

from math import exp, inf, lgamma, log, log1p

from edge.confidence.binomial import lower_tail


def log_capital(
    hits: float, trials: float, *, limit: float, above: bool, clump: float = 1.0
) -> float:
    """Return the log of what bets on "the share is above (or below) the limit" have become.

    Args:
        hits: among the trials.
        trials: 0 or more; after none the capital is 1.
        limit: between 0 and 1, both left out.
        above: which side is bet on.
        clump: how many trials count as one, as those of one device resemble each other.

    """
    n = round(max(0.0, trials) / clump)
    k = min(n, round(max(0.0, hits) / clump))
    # P(Beta(k + 1, n - k + 1) > limit) is P(at most k hits of n + 1 at the limit).
    if above:
        side = lower_tail(k, n + 1, risk=limit) / (1.0 - limit)
    else:
        side = lower_tail(n - k, n + 1, risk=1.0 - limit) / limit
    if side <= 0.0:
        return -inf
    whole = lgamma(k + 1) + lgamma(n - k + 1) - lgamma(n + 2)
    return whole + log(side) - k * log(limit) - (n - k) * log1p(-limit)


def more_by_chance(hits: int, of_these: int, *, others: int, of: int) -> float:
    """Return how likely so many of the hits, or more, fall on these by chance alone.

    Fisher's exact test, one-sided: the upper tail of the hypergeometric distribution. It needs
    nothing but that who belongs to these was drawn by lot. Valid for one look.

    Args:
        hits: among these.
        of_these: how many they are.
        others: hits among the others.
        of: how many those are.

    """
    total, everything = hits + others, of_these + of
    most = min(total, of_these)
    whole = _log_choices(everything, of_these)
    tail = sum(
        exp(_log_choices(total, k) + _log_choices(everything - total, of_these - k) - whole)
        for k in range(hits, most + 1)
        if of_these - k <= everything - total
    )
    return min(1.0, tail)


def _log_choices(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
