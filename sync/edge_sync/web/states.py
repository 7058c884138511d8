"""Words and colours for the states of devices, rollouts, waves and charges."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class State:
    """A word, and how urgent it is: ``good``, ``warn``, ``bad`` or nothing."""

    word: str
    kind: str = ""


_ROLLOUT = {"running": "good", "paused": "warn", "halted": "bad", "aborted": "warn", "done": "good"}
_CHARGE = {"settled": "good", "unclear": "warn", "released": "", "reserved": "", "sent": "warn"}
DEVICE_WORDS = ("online", "offline", "refused", "quarantined", "revoked")


def of_rollout(state: str) -> State:
    """Return how a rollout's state is shown."""
    return State(state, _ROLLOUT.get(state, ""))


def of_charge(state: str) -> State:
    """Return how the state of a hold is shown."""
    return State(state, _CHARGE.get(state, ""))


def of_lease(state: str, why: str) -> State:
    """Return how the state of a lease is shown; why it was closed stands with it."""
    return State(
        f"{state}: {why}" if why else state, {"open": "good", "closing": "warn"}.get(state, "")
    )


def of_device(status: str, *, refused: bool, online: bool) -> State:
    """Return how a device's state is shown; the most urgent word wins."""
    if status == "revoked":
        return State("revoked", "bad")
    if status == "quarantined":
        return State("quarantined", "warn")
    if refused:
        return State("refused", "bad")
    return State("online", "good") if online else State("offline")
