"""Grounding: an extracted value must occur in the input, and takes the input's own characters.

Case, runs of white space and space around punctuation do not count, and neither do quotes,
backslashes, braces and control characters, which cannot stand in an answer as they are. Pure: no
model, no I/O. Knows nothing of meaning: a wrong span that occurs in the input is grounded.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection

from edge.types import Json

MAX_DEPTH = 64
_ATOM = re.compile(r'\w+|[^\w\s"\\{}\x00-\x1f\x7f]')
_BETWEEN = r'[\s"\\{}\x00-\x1f\x7f]'


def ground(value: str, source: str) -> str | None:
    """Return the characters of ``source`` that ``value`` stands for, or ``None`` where absent.

    A place where the value fills whole words is preferred to one inside a longer word; of several
    the first is taken.
    """
    atoms = _ATOM.findall(value.casefold())
    if not atoms:
        return None
    folded, origin = _folded(source)
    inside = _pattern(atoms)
    start = r"(?<!\w)" if _is_word(atoms[0]) else ""
    end = r"(?!\w)" if _is_word(atoms[-1]) else ""
    found = re.search(start + inside + end, folded) or re.search(inside, folded)
    if found is None:
        return None
    return source[origin[found.start()] : origin[found.end() - 1] + 1]


def ground_object(
    obj: Json, source: str, *, skip: Collection[str] = ()
) -> tuple[Json, tuple[str, ...]]:
    """Ground every string in a JSON value.

    Args:
        obj: the parsed answer; it is not changed.
        source: the text it was extracted from.
        skip: keys whose values, with all they hold, are left as they are.

    Returns:
        The value with grounded strings replaced by the source's characters, and the places, such
        as ``address.city`` or ``items[0]``, of those that do not occur (left as they are). What is
        nested deeper than ``MAX_DEPTH`` counts as not occurring.

    """
    missing: list[str] = []
    grounded = _walk(obj, source, skip, place="", depth=0, missing=missing)
    return grounded, tuple(missing)


def _walk(
    value: Json, source: str, skip: Collection[str], *, place: str, depth: int, missing: list[str]
) -> Json:
    if depth > MAX_DEPTH:
        missing.append(place)
        return value
    if isinstance(value, str):
        found = ground(value, source)
        if found is None:
            missing.append(place)
            return value
        return found
    if isinstance(value, list):
        items: list[Json] = []
        for index, item in enumerate(value):
            inner = f"{place}[{index}]"
            items.append(_walk(item, source, skip, place=inner, depth=depth + 1, missing=missing))
        return items
    if isinstance(value, dict):
        fields: dict[str, Json] = {}
        for key, item in value.items():
            inner = f"{place}.{key}" if place else key
            fields[key] = (
                item
                if key in skip
                else _walk(item, source, skip, place=inner, depth=depth + 1, missing=missing)
            )
        return fields
    return value


def _folded(source: str) -> tuple[str, list[int]]:
    """Return the case-folded source and, for each of its characters, the index it came from."""
    characters: list[str] = []
    origin: list[int] = []
    for index, character in enumerate(source):
        for part in character.casefold():
            characters.append(part)
            origin.append(index)
    return "".join(characters), origin


def _pattern(atoms: list[str]) -> str:
    parts = [re.escape(atoms[0])]
    for before, after in itertools.pairwise(atoms):
        both_words = _is_word(before) and _is_word(after)
        parts.append(f"{_BETWEEN}{'+' if both_words else '*'}{re.escape(after)}")
    return "".join(parts)


def _is_word(atom: str) -> bool:
    return re.match(r"\w", atom) is not None
