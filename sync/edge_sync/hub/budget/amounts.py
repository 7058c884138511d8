"""Amounts as people write and read them: dollars outside, whole micro-dollars inside, exactly."""

from __future__ import annotations

import re

from edge.errors import InputError
from edge_sync.money.lease import MOST_MICROUSD

_MICRO = 1_000_000
_DIGITS = 6
_CENT = 10_000
_CENTS_FROM = 100_000
_AMOUNT = re.compile(r"\$?(\d{1,12})(?:\.(\d+))?", re.ASCII)


def microusd(text: str) -> int:
    """Read an amount of dollars such as ``50``, ``$12.50`` or ``0.000125``.

    Raises:
        InputError: it is none, has more digits than a micro-dollar, or is too large.

    """
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        raise InputError(
            f"{text[:40]!r} is no amount of dollars.", hint="Write it as 50, $12.50 or 0.000125."
        )
    cents = (found[2] or "").rstrip("0")
    if len(cents) > _DIGITS:
        raise InputError(
            f"{text[:40]!r} is finer than a micro-dollar.", hint="Write at most six decimals."
        )
    amount = int(found[1]) * _MICRO + int(cents.ljust(_DIGITS, "0"))
    if amount > MOST_MICROUSD:
        raise InputError(
            f"{text[:40]!r} is more than {dollars(MOST_MICROUSD)}.", hint="Set a smaller amount."
        )
    return amount


def dollars(amount_microusd: int) -> str:
    """Return an amount with cents, and with more digits where it has them."""
    whole, rest = divmod(abs(amount_microusd), _MICRO)
    cents = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount_microusd < 0 else ''}${whole:,}.{cents}"


def cents(amount_microusd: int) -> str:
    """Return an amount rounded to cents, exact below ten of them: for tables."""
    if abs(amount_microusd) < _CENTS_FROM:
        return dollars(amount_microusd)
    return dollars((amount_microusd + _CENT // 2) // _CENT * _CENT)
