"""What generating gave anyway, field by field of a JSON answer.

Tokens are laid over the bytes of the answer. A field's value counts, with the quote that ends it;
punctuation, the names inside nested values and forced tokens do not. The field's own name is kept
apart: it was chosen too. Guarantees: any bytes can be read, broken JSON gives the fields up to the
break. Knows no task, no grammar and no model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge.types import TokenStats

NAME_CUT = 3.0
"""Margin of a field's name, in nats of odds, below which no field of the answer is trusted."""
VALUE_CUT = 3.0
"""Smallest margin within a value below which its field is not trusted."""

# A string as far as it goes, one mark, or what else stands between marks and white space.
_PART = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[{}\[\]:,]|[^\s{}\[\]:,"]+', re.DOTALL)
Span = tuple[int, int]


@dataclass(slots=True)
class Field:
    """A top-level field of an object, in bytes of its text.

    Attributes:
        name: as the JSON means it.
        named: where the name stands, its closing quote included.
        values: where the strings (from behind the opening quote to the closing one), numbers and
            words of its value stand; several for a nested one.

    """

    name: str
    named: Span
    values: list[Span] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FieldTokens:
    """What the sampler read off the tokens of one field, forced ones left out.

    Attributes:
        named: of its name.
        value: of its value.

    """

    named: tuple[TokenStats, ...]
    value: tuple[TokenStats, ...]


def scan(body: bytes) -> list[Field]:
    """Return the fields of the JSON object that a text begins with, in order."""
    found: list[Field] = []
    open_marks: list[bytes] = []
    names_next = False
    for match in _PART.finditer(body):
        part, start, end = match[0], match.start(), match.end()
        if part in {b"{", b"["}:
            open_marks.append(part)
            names_next = part == b"{"
        elif part in {b"}", b"]"}:
            open_marks = open_marks[:-1]
            if not open_marks:
                break
        elif part in {b",", b":"}:
            names_next = part == b"," and open_marks[-1:] == [b"{"]
        elif open_marks[:1] != [b"{"]:
            break
        elif not names_next:
            if found:
                found[-1].values.append((start + part.startswith(b'"'), end))
        elif len(open_marks) == 1:
            found.append(Field(_meant(part), (start + part.startswith(b'"'), end)))
    return found


def field_tokens(pieces: Sequence[bytes], stats: Sequence[TokenStats]) -> dict[str, FieldTokens]:
    """Return the tokens of every top-level field of an answer, by name.

    A token that straddles a border counts on both sides. Of a name that occurs twice, the tokens
    of both places count.

    Args:
        pieces: the bytes of each token; they joined are the answer.
        stats: one entry per token; that of a forced token has no log-probability.

    """
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    laid = [
        (end - len(piece), end, entry)
        for piece, end, entry in zip(pieces, ends, stats, strict=True)
        if not math.isnan(entry.logprob)
    ]
    found: dict[str, FieldTokens] = {}
    for each in scan(b"".join(pieces)):
        earlier = found.get(each.name, FieldTokens((), ()))
        found[each.name] = FieldTokens(
            (*earlier.named, *_within(laid, [each.named])),
            (*earlier.value, *_within(laid, each.values)),
        )
    return found


def field_signals(tokens: FieldTokens, *, copied: bool | None = None) -> dict[str, float]:
    """Return the signals of one field; those that nothing is known of are left out.

    Keys: ``tokens`` of the value that were chosen; ``mean_logprob``, ``min_logprob``,
    ``q10_logprob``, ``min_margin``, ``max_entropy``, ``outside_mass`` (largest probability that a
    mask took away) over them; ``first_margin`` and ``first_outside`` of the first one;
    ``name_margin``, the smallest of its name; ``copied``, 1 or 0.

    Args:
        tokens: of the field.
        copied: whether its value stands in the input; ``None`` where that was not looked at.

    """
    found = {"tokens": float(len(tokens.value))}
    if tokens.value:
        logprobs = np.array([entry.logprob for entry in tokens.value])
        outside = [max(0.0, 1.0 - entry.allowed_mass) for entry in tokens.value]
        found |= {
            "mean_logprob": float(logprobs.mean()),
            "min_logprob": float(logprobs.min()),
            "q10_logprob": float(np.quantile(logprobs, 0.1)),
            "min_margin": min(entry.margin for entry in tokens.value),
            "max_entropy": max(entry.entropy for entry in tokens.value),
            "outside_mass": max(outside),
            "first_margin": tokens.value[0].margin,
            "first_outside": outside[0],
        }
    if tokens.named:
        found["name_margin"] = min(entry.margin for entry in tokens.named)
    return found if copied is None else found | {"copied": float(copied)}


def doubtful(
    fields: Mapping[str, Mapping[str, float]], *, left_out: float = 0.0
) -> tuple[str, ...]:
    """Return the names of the fields that are not trusted.

    Where a name was chosen narrowly, or something of the input was left out, what fields there
    should be is in doubt, and with it every one of them.

    Args:
        fields: signals of each field, by name.
        left_out: names and numbers of the input that no field holds.

    """
    if left_out or any(each.get("name_margin", math.inf) < NAME_CUT for each in fields.values()):
        return tuple(fields)
    return tuple(
        name
        for name, each in fields.items()
        if each.get("min_margin", math.inf) < VALUE_CUT or each.get("copied", 1.0) < 1.0
    )


def _within(
    laid: Sequence[tuple[int, int, TokenStats]], spans: Sequence[Span]
) -> Iterator[TokenStats]:
    for start, end, entry in laid:
        if any(start < last and end > first for first, last in spans):
            yield entry


def _meant(name: bytes) -> str:
    try:
        return str(json.loads(name))
    except (ValueError, RecursionError):
        return name.strip(b'"').decode("utf-8", "replace")
