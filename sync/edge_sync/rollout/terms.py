"""Terms of a judgement: what counts as bad, how sure one must be, how long one waits.

Plain numbers with bounds; an admin may set each per rollout. Also says when to look: at growing
intervals, so that the looks at silence are few and their number is known beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import floor, isfinite, log
from typing import Any, Self

from edge.errors import ConfigError

_GROWTH = 1.1
_FIRST_S = 1.0
_RANGES = {
    "grace_s": (0.0, 86400.0),
    "clump": (1.0, 1000.0),
    "refusals": (1.0, 1000.0),
    "least_tasks": (1.0, 1e9),
    "slo_ms": (0.0, 1e7),
    "silence_share": (0.001, 0.9),
    "*_s": (0.0, 366 * 86400.0),
    "*_ratio": (1.0, 100.0),
    "*_risk": (1e-9, 0.5),
    "*_doubt": (1e-9, 0.5),
    "*_floor": (0.001, 0.9),
}
_SLOT_S, _SLOT_GROWTH = 900.0, 1.5


@dataclass(frozen=True, slots=True)
class Terms:
    """Limits of one rollout.

    Attributes:
        soak_s: how long a device must work under the new policy to count as well.
        deadline_s: a wave that has not shown by then that it is well is halted.
        grace_s: how late a report may be; above the interval of syncs.
        activated_share: of the devices online before the wave that must have activated.
        error_ratio, error_floor: errors per task are bad from this multiple of the usual share, or
            from this much above it, whichever is more.
        escalation_ratio, escalation_floor: likewise tasks that left or wait to leave the device.
        correction_ratio, correction_floor: likewise corrections by people.
        p95_ratio: the 95th percentile of latency is bad from this multiple, in steps of sqrt(2).
        slo_ms: it is not bad below this; 0 for none.
        silence_share: losing this share of the devices must be ruled out before a wave advances.
        silence_doubt: chance that a fault of that share passes.
        silence_risk: chance that all looks at silence together halt without a fault.
        living_s: devices last seen longer ago than this before the start are not waited for.
        living_share: of the others, how many must have been judged, unless fewer say enough.
        offline_share: share of silent devices that is taken for usual where there is no control.
        refusals: fewest refusals that halt, where more than ``refusal_share`` of the answers are.
        least_tasks: fewer tasks show nothing.
        clump: how many tasks count as one, as those of a device and an hour resemble each other.
        halt_risk: chance that one test halts a policy that is no worse than its limit.
        advance_risk: chance that one test passes a policy that is as bad as its limit.

    """

    soak_s: float = 4 * 3600.0
    deadline_s: float = 14 * 86400.0
    grace_s: float = 900.0
    activated_share: float = 0.8
    error_ratio: float = 2.0
    error_floor: float = 0.04
    escalation_ratio: float = 1.5
    escalation_floor: float = 0.02
    correction_ratio: float = 2.0
    correction_floor: float = 0.04
    p95_ratio: float = 1.4143
    slo_ms: float = 0.0
    silence_share: float = 0.25
    silence_doubt: float = 0.002
    living_s: float = 7 * 86400.0
    living_share: float = 0.9
    offline_share: float = 0.3
    refusal_share: float = 0.05
    refusals: float = 2.0
    silence_risk: float = 0.001
    least_tasks: float = 100.0
    clump: float = 2.0
    halt_risk: float = 0.0005
    advance_risk: float = 0.02

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: a term is out of range.

        """
        for name, value in asdict(self).items():
            low, high = _range(name)
            if not (isfinite(value) and low <= value <= high):
                told = f"The term {name} is {value!r}, not within {low:g}..{high:g}."
                raise ConfigError(told, hint=f"Set {name} to a number in that range.")
        if self.soak_s + self.grace_s > self.deadline_s:
            raise ConfigError(
                f"The deadline of {self.deadline_s:g} s is over before a device has soaked.",
                hint="Set deadline_s above soak_s + grace_s.",
            )

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """Return the terms with what was set, and defaults for the rest.

        Raises:
            ConfigError: a term is unknown, no number or out of range.

        """
        known = {each.name for each in fields(cls)}
        for name, value in body.items():
            if name not in known:
                told = f"There is no term {name!r} of a rollout."
                raise ConfigError(told, hint=f"Use one of {', '.join(sorted(known))}.")
            if isinstance(value, bool) or not isinstance(value, int | float):
                told = f"The term {name} is {value!r}, which is no number."
                raise ConfigError(told, hint=f"Set {name} to a number.")
        return cls(**{name: float(value) for name, value in body.items()})

    def to_dict(self) -> dict[str, float]:
        """Return all terms as plain values."""
        return asdict(self)

    @property
    def silence_looks(self) -> int:
        """How often silence is tested before the deadline, at most."""
        return silence_slot(self.deadline_s) + 2


def next_look_s(elapsed_s: float) -> float:
    """Return the age of a wave at which it is looked at next, in seconds."""
    return max(elapsed_s * _GROWTH, elapsed_s + _FIRST_S)


def silence_slot(elapsed_s: float) -> int:
    """Return in which of the growing spans of a wave's life this age falls, from 0.

    Silence is tested once in each, as the same devices are silent from look to look and no bet can
    be made on each of them anew.
    """
    return max(0, floor(log(max(elapsed_s, 1.0) / _SLOT_S) / log(_SLOT_GROWTH)) + 1)


def _range(name: str) -> tuple[float, float]:
    return _RANGES.get(name) or _RANGES.get(f"*_{name.rsplit('_', 1)[-1]}", (0.0, 1.0))
