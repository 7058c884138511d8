"""Bundles changed at random: by a byte, by a field of the JSON, by parts of other bundles.

The device holds an older bundle; the one that is changed brings a new root with a new timestamp
key, new metadata and a new policy. The donors of foreign parts are such that no part of theirs may
be taken: an older bundle of the same hub, one of another group, one of another hub.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from simulator import DEVICE, GROUP, NOW, PARTS, Device, HubSimulator, signer

from edge_sync.trust.trusted import REFUSALS, Accepted, Trusted
from edge_sync.wire import Bundle

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**53, 10**400, 1.5, "", "\x00", "9" * 70),
    *("2999-01-01T00:00:00Z", [], {}, [[]]),
)
LEVELS = ("byte", "field", "swap")
SAME, OTHER, REFUSED = "same", "other", "refused"


@dataclass(frozen=True)
class Stage:
    """A device, a bundle that it may take, another one, and donors of parts that it may not."""

    trusted: Trusted
    bundle: Bundle
    other: Bundle
    donors: tuple[Bundle, ...]

    def take(self, bundle: Bundle) -> Accepted:
        return self.trusted.accept(bundle, device_id=DEVICE, group=GROUP, now=NOW)

    def judge(self, bundle: Bundle) -> str:
        """Say whether a bundle is refused, or taken and the same as the good one, or another."""
        try:
            accepted = self.take(bundle)
        except REFUSALS:
            return REFUSED
        return SAME if meaning(accepted) == self.good else OTHER

    @cached_property
    def good(self) -> tuple[bytes | None, ...]:
        """What taking the good bundle leads to."""
        return meaning(self.take(self.bundle))


def set_stage() -> Stage:
    """Return the same stage at each call."""
    sim, stranger = HubSimulator(), HubSimulator()
    device = Device(sim)
    old = sim.bundle(device)
    sim.assign(2, serial=2)
    sim.update_targets()
    device.sync(sim)
    sim.replace_keys("timestamp", 8)
    sim.publish_root()
    sim.update_targets()
    sim.assign(3, serial=4, group="desktops")
    for_others = sim.bundle(device)
    sim.assign(3, serial=3)
    for role, number in (("root", 31), ("timestamp", 32), ("snapshot", 33), ("targets", 34)):
        stranger.replace_keys(role, number)
    stranger.delegate([signer(35).public_key])
    stranger.signers["assignment"] = [signer(35)]
    stranger.publish_root()
    stranger.assign(3, serial=9)
    stranger.update_targets()
    donors = (old, for_others, stranger.bundle(device))
    good = sim.bundle(device)
    sim.assign(3, serial=5)
    return Stage(device.trusted, good, sim.bundle(device), donors)


def meaning(accepted: Accepted) -> tuple[bytes | None, ...]:
    """Return the signed bytes of each part, and the policy's."""
    chain = accepted.trusted.chain
    parts = (chain.root, chain.timestamp, chain.snapshot, chain.targets, chain.assigned)
    return (*(part.payload for part in parts if part is not None), accepted.document_bytes)


def mutate(stage: Stage, random: Random, *, level: str) -> Bundle:
    """Return the good bundle with one to three changes at a level."""
    bundle = stage.bundle
    for _ in range(random.choice((1, 1, 2, 3))):
        if level == "swap":
            bundle = _swap(bundle, stage.donors, random)
            continue
        part = random.choice(("roots", *PARTS))
        text = _get(bundle, part)
        if text:
            change = _change_byte if level == "byte" else _change_field
            bundle = _put(bundle, part, change(text, random))
    return bundle


def _get(bundle: Bundle, part: str) -> str | None:
    if part == "roots":
        return bundle.roots[-1] if bundle.roots else None
    text: str | None = getattr(bundle, part)
    return text


def _put(bundle: Bundle, part: str, text: str | None) -> Bundle:
    if part == "roots":
        return bundle.model_copy(update={"roots": [*bundle.roots[:-1], text] if text else []})
    return bundle.model_copy(update={part: text})


def _change_byte(text: str, random: Random) -> str:
    at = random.randrange(len(text))
    kind = random.randrange(6)
    if kind == 0:
        return text[:at] + chr(ord(text[at]) ^ (1 << random.randrange(8))) + text[at + 1 :]
    if kind == 1:
        return text[:at] + text[at + 1 :]
    if kind == 2:
        return text[:at] + chr(random.randrange(0x20, 0x7F)) + text[at:]
    if kind == 3:
        return text[:at]
    if kind == 4:
        end = min(len(text), at + random.randrange(1, 40))
        return text[:end] + text[at:end] + text[end:]
    return text[:at] + random.choice((" ", "\x00", "é", "\ud800", "😀", "}", '"')) + text[at + 1 :]


def _change_field(text: str, random: Random) -> str:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return text
    places = list(_places(tree))
    if not places:
        return text
    holder, key = random.choice(places)
    kind = random.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = random.choice(ODD_VALUES)
    elif kind == 2:
        holder[key] = _near(holder[key], random)
    elif kind == 3:
        other, other_key = random.choice(places)
        holder[key] = json.loads(json.dumps(other[other_key]))
    elif isinstance(holder, dict):
        holder[f"{key}2"] = holder[key]
    return json.dumps(tree, separators=(",", ":"), sort_keys=random.random() < 0.5)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, branch in list(items) if isinstance(tree, dict | list) else ():
        yield tree, key
        if isinstance(branch, dict | list):
            yield from _places(branch)


def _near(value: Any, random: Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + random.choice((-1, 1, 1_000))
    if isinstance(value, str) and value:
        return _change_byte(value, random)
    if isinstance(value, list):
        return value * 2
    return value


def _swap(bundle: Bundle, donors: tuple[Bundle, ...], random: Random) -> Bundle:
    part, other = random.choice(("roots", *PARTS)), random.choice(("roots", *PARTS))
    kind = random.randrange(4)
    if kind == 0:
        return _put(bundle, part, _get(random.choice(donors), part))
    if kind == 1:
        return _put(bundle, part, _get(bundle, other) or "")
    if kind == 2:
        first, second = _get(bundle, part), _get(bundle, other)
        return _put(_put(bundle, part, second or ""), other, first or "")
    roots = [*bundle.roots, *random.choice(donors).roots]
    random.shuffle(roots)
    return bundle.model_copy(update={"roots": roots})
