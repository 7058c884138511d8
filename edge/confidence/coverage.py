"""How well an extraction covers the text it was taken from: three counts that tell wrong ones.

A model that reads lower-case tokens never saw which words are names; the text still tells. Pure:
one pass over the words. Knows no meaning, and nothing of how the answer came about.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator

from edge.types import Json

_WORD = re.compile(r"\w+")
_MOST_PLACES = 100  # where one value is looked for


def coverage(value: Json, source: str, *, skip: Collection[str] = ()) -> dict[str, float]:
    """Return counts over an extraction and its text.

    Keys: ``partial``, values that stand in the text only as part of longer words; ``left_out``,
    names and numbers of the text that no value holds; ``overlap``, words that two values hold. A
    number is a word with a digit. A name is a word of at least two letters, one of them a capital;
    the first word is none, and in a text without small letters there are none.

    Args:
        value: the answer, its strings spelled as in the text; what does not occur is passed over.
        source: the text.
        skip: keys whose values, with all they hold, are not of the text.

    """
    words = [match.span() for match in _WORD.finditer(source)]
    starts, ends = [start for start, _ in words], [end for _, end in words]
    held = [0] * len(words)
    partial = 0
    for text in _leaves(value, skip):
        best: tuple[bool, int, range] | None = None
        for start, end in _places(text, source):
            inside = range(bisect_left(starts, start), bisect_right(ends, end))
            cut = _cut(source, start) or _cut(source, end)
            place = (cut, sum(held[at] > 0 for at in inside), inside)
            best = place if best is None or place[:2] < best[:2] else best
        if best is not None:
            partial += best[0]
            for at in best[2]:
                held[at] += 1
    cased = source != source.upper()
    left_out = sum(
        not held[at] and at > 0 and _tells(source[start:end], cased=cased)
        for at, (start, end) in enumerate(words)
    )
    return {
        "partial": float(partial),
        "left_out": float(left_out),
        "overlap": float(sum(count > 1 for count in held)),
    }


def _leaves(value: Json, skip: Collection[str]) -> Iterator[str]:
    """Yield the strings and numbers of a value in order, however deep."""
    waiting = [value]
    while waiting:
        at = waiting.pop()
        if isinstance(at, dict):
            waiting += [item for name, item in reversed(at.items()) if name not in skip]
        elif isinstance(at, list):
            waiting += reversed(at)
        elif isinstance(at, str):
            yield at
        elif isinstance(at, int | float) and not isinstance(at, bool):
            yield f"{at}"


def _places(text: str, source: str) -> Iterator[tuple[int, int]]:
    start = source.find(text) if text else -1
    for _ in range(_MOST_PLACES):
        if start < 0:
            return
        yield start, start + len(text)
        start = source.find(text, start + 1)


def _cut(source: str, at: int) -> bool:
    """Whether a place between two characters is inside a word."""
    around = source[max(0, at - 1) : at + 1]
    return 0 < at < len(source) and _WORD.fullmatch(around) is not None


def _tells(word: str, *, cased: bool) -> bool:
    if any(letter.isdigit() for letter in word):
        return True
    return cased and len(word) > 1 and any(letter.isupper() for letter in word)
