"""JSON schemas of many shapes and sizes, the same for the same seed."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

WORDS = (
    "name", "city", "date", "note", "price", "count", "owner", "kind", "état", "status", "email",
    "items", "total", "first name", "id", "score", "title", "unit", "rating", "größe", "is_open",
)  # fmt: skip
PATTERNS = (
    "^[a-z]{2,8}$",
    "^[A-Z]{3}-[0-9]{2,6}$",
    "^(red|green|blue)( light| dark)?$",
    "^#[0-9a-f]{6}$",
)
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "ipv6", "email")
MAX_DEPTH = 4


def schemas(count: int, seed: int) -> list[Schema]:
    """Return objects and arrays from a handful of values to hundreds."""
    source = random.Random(seed)  # noqa: S311 - repeatable, not secret
    return [whole(source, at) for at in range(count)]


def whole(source: random.Random, at: int) -> Schema:
    """Return one schema; later ones are larger."""
    size = 1 + at % 10
    top = array(source, size, 0) if at % 6 == 5 else an_object(source, size, 0)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top}


def value(source: random.Random, size: int, depth: int) -> Schema:
    """Return the schema of any value."""
    flat = (text, text, integer, number, choice, constant, boolean)
    if depth >= MAX_DEPTH or source.random() < 0.65:
        return source.choice(flat)(source)
    return source.choice((an_object, an_object, array, any_of, a_map))(source, size // 2 + 1, depth)


def an_object(source: random.Random, size: int, depth: int) -> Schema:
    """Return an object, some of its properties optional, mostly closed."""
    names = source.sample(WORDS, min(len(WORDS), 1 + source.randrange(size + 1)))
    required = [name for name in names if source.random() < 0.7]
    found: Schema = {
        "type": "object",
        "properties": {name: value(source, size, depth + 1) for name in names},
        "required": required,
    }
    if source.random() < 0.8:
        found["additionalProperties"] = False
    elif source.random() < 0.5:
        found["additionalProperties"] = source.choice((integer, choice))(source)
    return found


def a_map(source: random.Random, _size: int, depth: int) -> Schema:
    """Return an object whose keys are free."""
    return {"type": "object", "additionalProperties": value(source, 1, depth + 2)}


def array(source: random.Random, size: int, depth: int) -> Schema:
    """Return a list of bounded length."""
    least = source.randrange(2)
    most = least + 1 + source.randrange(4)
    items = value(source, size, depth + 1)
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def any_of(source: random.Random, size: int, depth: int) -> Schema:
    """Return a choice between schemas."""
    count = 2 + source.randrange(3)
    return {"anyOf": [value(source, size, depth + 1) for _ in range(count)]}


def text(source: random.Random) -> Schema:
    """Return a string with a pattern, a format or a length."""
    how = source.randrange(4)
    if how == 0:
        return {"type": "string", "pattern": source.choice(PATTERNS)}
    if how == 1:
        return {"type": "string", "format": source.choice(FORMATS)}
    least = source.randrange(3)
    return {
        "type": "string",
        "minLength": least,
        "maxLength": least + source.choice((6, 20, 50, 100, 255)),
    }


def integer(source: random.Random) -> Schema:
    """Return an integer, with bounds or a step or neither."""
    low = source.randrange(-50, 100)
    return source.choice(
        (
            {"type": "integer", "minimum": low, "maximum": low + source.randrange(1, 5000)},
            {"type": "integer", "exclusiveMinimum": low},
            {"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": 5},
            {"type": "integer"},
        )
    )


def number(source: random.Random) -> Schema:
    """Return a number, with bounds or a step or neither."""
    low = source.randrange(-50, 100) / 4
    return source.choice(
        (
            {"type": "number", "minimum": low, "exclusiveMaximum": low + 7.5},
            {"type": "number", "minimum": 0, "maximum": 100, "multipleOf": 0.25},
            {"type": "number"},
        )
    )


def choice(source: random.Random) -> Schema:
    """Return an enumeration, mostly of words."""
    words: list[Any] = source.sample(WORDS, 2 + source.randrange(8))
    return {
        "enum": [*words, source.choice((None, 7, 0.5, True))] if source.randrange(4) == 0 else words
    }


def constant(source: random.Random) -> Schema:
    """Return a single value."""
    return {"const": source.choice((*WORDS, 3, None, True))}


def boolean(source: random.Random) -> Schema:
    """Return true or false, or null too."""
    return {"type": source.choice(("boolean", ["boolean", "null"]))}
