"""Waves: who gets a new policy when, by share of the devices or by name of a group.

A device's place is a hash of the rollout and the device, so every replica of the hub finds the same
one, nothing is stored, and who is in stays in. Does not know how a wave fares.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edge.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_NUMBER = re.compile(r"\d+(\.\d+)?%?")
_HINT = "Write rising percentages that end with 100, groups before them: `lab,5,25,100`."
_MANY = 20
_ALL = 100.0
_CANDIDATES = 500
_SMALL = 20


@dataclass(frozen=True, slots=True)
class Wave:
    """One step: all devices below a cumulative percentage, or those of the named groups."""

    percent: float | None = None
    groups: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "+".join(self.groups) if self.percent is None else f"{self.percent:g} %"


def parse_waves(text: str) -> tuple[Wave, ...]:
    """Return the waves of ``5,25,100`` or ``lab+office,25,100``.

    Raises:
        ConfigError: they do not rise, do not reach all devices, or name no group.

    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > _MANY:
        raise ConfigError(f"{len(parts)} waves are more than {_MANY}.", hint="Name fewer waves.")
    return _checked(tuple(_wave(part) for part in parts), text)


def _wave(part: str) -> Wave:
    if _NUMBER.fullmatch(part):
        return Wave(percent=float(part.rstrip("%")))
    names = tuple(name.strip() for name in part.split("+"))
    wrong = [name for name in names if not _NAME.fullmatch(name)]
    if wrong:
        raise ConfigError(f"The wave {part!r} is no percentage and no group.", hint=_HINT)
    return Wave(groups=names)


def _checked(waves: tuple[Wave, ...], what: str) -> tuple[Wave, ...]:
    shares = [wave.percent for wave in waves if wave.percent is not None]
    before = [0.0, *shares]
    if any(later <= earlier for earlier, later in zip(before, shares, strict=False)):
        raise ConfigError(f"The waves {what!r} do not rise from one to the next.", hint=_HINT)
    if not shares or waves[-1].percent != _ALL:
        raise ConfigError(f"The waves {what!r} never reach all devices.", hint=_HINT)
    named = [name for wave in waves for name in wave.groups]
    if len(named) != len(set(named)):
        raise ConfigError(f"The waves {what!r} name a group twice.", hint=_HINT)
    return waves


def to_json(waves: Sequence[Wave]) -> list[dict[str, Any]]:
    """Return the waves as plain values."""
    return [
        {"groups": list(wave.groups)} if wave.percent is None else {"percent": wave.percent}
        for wave in waves
    ]


def from_json(body: Sequence[dict[str, Any]]) -> tuple[Wave, ...]:
    """Return the waves of plain values.

    Raises:
        ConfigError: they are no waves.

    """
    try:
        waves = tuple(
            Wave(percent=float(each["percent"]))
            if "percent" in each
            else Wave(groups=tuple(each["groups"]))
            for each in body
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{body!r} are no waves: {error}.", hint=_HINT) from error
    return _checked(waves, ",".join(map(str, waves)))


def place(rollout: int, device_id: str) -> float:
    """Return where a device stands in a rollout, at least 0 and below 1."""
    digest = hashlib.sha256(f"{rollout}:{device_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def wave_of(waves: Sequence[Wave], *, rollout: int, device_id: str, group: str) -> int:
    """Return the first wave a device belongs to, from 0."""
    share = _ALL * place(rollout, device_id)
    for at, wave in enumerate(waves):
        if group in wave.groups or (wave.percent is not None and share < wave.percent):
            return at
    return len(waves) - 1


def choose_id(after: int, waves: Sequence[Wave], devices: Iterable[tuple[str, str, bool]]) -> int:
    """Return an id above ``after`` under which the first wave is as large as it was asked to be.

    By chance alone 5 % of 60 devices are none in one rollout of twenty. Among the ids within 10 %
    (or half a device) the first with somebody online wins; without any, the nearest.

    Args:
        after: the last id that was used.
        waves: of the rollout.
        devices: id, group and whether it is online, of each device.

    """
    fleet = list(devices)
    first = waves[0].percent
    if first is None or not fleet:
        return after + 1
    target = max(1.0, len(fleet) * first / _ALL)
    best, least = after + 1, float("inf")
    for candidate in range(after + 1, after + 1 + _CANDIDATES):
        inside = [on for name, _, on in fleet if _ALL * place(candidate, name) < first]
        off = abs(len(inside) - target) + (0.0 if any(inside) else target)
        if off <= max(0.5, 0.1 * target):
            return candidate
        if off < least:
            best, least = candidate, off
    return best


def blind_spot(devices: int, *, chance: float = 0.05) -> float:
    """Return the largest share of devices a fault may hit and still miss all of a wave.

    A fault that hits a share f of devices spares all n of a wave with probability (1 - f) ** n; for
    the returned f that is ``chance``. No judgement can see what did not happen.
    """
    return 1.0 if devices <= 0 else 1.0 - float(chance ** (1.0 / devices))


def announcement(wave: int, devices: int) -> str:
    """Return what is told of a wave that begins, and what a first one is too small to show."""
    told = f"Wave {wave + 1} has begun: {devices} device{'' if devices == 1 else 's'}."
    if wave or devices >= _SMALL:
        return told
    return f"{told} It may miss a fault that hits fewer than {blind_spot(devices):.0%} of devices."
