"""Examples for the actions model: loading, slot substitution, and the text form of a call.

An example is an utterance with an intent and slots. The answer is one JSON object whose structure
is spelled with single tokens and whose values are, token for token, copied from the prompt.
Deterministic for a seed; reads only `train` files, never a bench split.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.task import spaced

DOMAINS = {
    "restaurant8k": "FindRestaurant",
    "buses_1": "FindBus",
    "events_1": "FindEvents",
    "homes_1": "FindHome",
    "rentalcars_1": "RentCar",
}
OPEN_TITLES = ("album", "track", "entity_name", "object_name", "movie_name", "playlist")
VALIDATION_SHARE = 20  # one row in so many


@dataclass(frozen=True)
class Slot:
    """One value and where it stands in the utterance (character offsets)."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Example:
    """One labelled utterance; ``requested`` are the slots the system had just asked for."""

    text: str
    intent: str
    slots: tuple[Slot, ...]
    requested: tuple[str, ...] = ()

    def value(self, slot: Slot) -> str:
        """Return the characters of one slot."""
        return self.text[slot.start : slot.end]

    def call(self) -> dict[str, Any]:
        """Return the gold call; a slot that occurs more than once keeps its first value."""
        call: dict[str, Any] = {"intent": self.intent}
        for slot in self.slots:
            call.setdefault(slot.name, " ".join(self.value(slot).split()))
        return call


def load_snips(path: Path) -> list[Example]:
    """Read one snips file."""
    return [_example(row, row["intent"]) for row in _rows(path)]


def load_domain(path: Path, domain: str) -> list[Example]:
    """Read one file of restaurant8k or a sister domain."""
    return [_example(row, DOMAINS[domain]) for row in _rows(path)]


def split(examples: list[Example]) -> tuple[list[Example], list[Example]]:
    """Return train and validation rows, by a hash of the text, so that no text is in both."""
    held = [e for e in examples if _bucket(e.text) == 0]
    return [e for e in examples if _bucket(e.text) != 0], held


def _bucket(text: str) -> int:
    return int(hashlib.sha256(spaced(text).encode()).hexdigest(), 16) % VALIDATION_SHARE


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def _example(row: dict[str, Any], intent: str) -> Example:
    found = sorted(row["slots"], key=lambda slot: slot["start"])
    slots = tuple(Slot(s["slot"], s["start"], s["end"]) for s in found if s["start"] < s["end"])
    return Example(row["text"], intent, slots, tuple(row.get("requested", ())))


class Substitution:
    """Replaces slot values by others of their kind, so that values must be copied, not learnt."""

    def __init__(self, examples: list[Example], *, share: float, open_share: float) -> None:
        self._share = share
        self._open_share = open_share
        values: dict[str, set[str]] = {}
        for example in examples:
            for slot in example.slots:
                values.setdefault(slot.name, set()).add(example.value(slot))
        self._values = {name: sorted(found) for name, found in values.items()}
        self._titles = sorted({v for name in OPEN_TITLES for v in self._values.get(name, ())})

    def apply(self, example: Example, rng: random.Random) -> Example:
        """Return the example with some of its values replaced."""
        text, slots, cursor = "", [], 0
        for slot in example.slots:
            if slot.start < cursor:
                return example
            text += example.text[cursor : slot.start]
            value = self._other(slot.name, example.value(slot), rng)
            slots.append(Slot(slot.name, len(text), len(text) + len(value)))
            text += value
            cursor = slot.end
        return Example(
            text + example.text[cursor:], example.intent, tuple(slots), example.requested
        )

    def _other(self, name: str, value: str, rng: random.Random) -> str:
        draw = rng.random()
        if draw < self._open_share and name in OPEN_TITLES and self._titles:
            return rng.choice(self._titles)
        return rng.choice(self._values[name]) if draw < self._share else value


def prompt_text(example: Example, *, ask: bool = True) -> str:
    """Return the prompt as the pack's template renders it, special tokens spelled out."""
    words = spaced(example.text)
    asked = "".join(f"<ask> {spaced(name)}" for name in example.requested) if ask else ""
    return f"{asked}<utt>{words}<again>{words}<answer>"


def tagged_pieces(example: Example) -> list[tuple[str, str]] | None:
    """Return the spaced utterance in pieces, each with its slot (empty outside of slots).

    ``None`` where a slot ends within a word, so that the pieces are not those of the whole.
    """
    pieces, cursor = [], 0
    for slot in example.slots:
        if slot.start < cursor:
            return None
        pieces.append((spaced(example.text[cursor : slot.start]), ""))
        pieces.append((spaced(example.value(slot)), slot.name))
        cursor = slot.end
    pieces.append((spaced(example.text[cursor:]), ""))
    whole = "".join(text for text, _ in pieces)
    return [piece for piece in pieces if piece[0]] if whole == spaced(example.text) else None


def answer_text(example: Example) -> str:
    """Return the answer; each value carries the space that its first token begins with."""
    body = f'{{"intent": "{example.intent}"'
    seen = set()
    for slot in example.slots:
        if slot.name not in seen:
            seen.add(slot.name)
            body += f', "{slot.name}": "{spaced(example.value(slot))}"'
    return body + "}"


def same_call(answer: dict[str, Any], gold: dict[str, Any]) -> bool:
    """Return whether two calls agree, case and runs of white space aside."""
    return _plain(answer) == _plain(gold)


def _plain(call: dict[str, Any]) -> dict[str, str]:
    return {name: spaced(str(value)) for name, value in call.items()}
