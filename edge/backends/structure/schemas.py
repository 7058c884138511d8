"""JSON schemas as grammar text: their shape, the order of properties, where one goes wrong.

Works on plain values; whether a schema can be enforced is for the compiler to say. Never recurses
into something deeper than ``MAX_DEPTH``, never fetches a reference.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from edge.errors import InputError

MAX_DEPTH = 100
MAX_VALUES = 50_000
_BITS = 63
_SUB_MAPS = ("$defs", "definitions", "properties", "patternProperties")
_SUB_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SUB_SCHEMAS = ("items", "additionalProperties")
_NOTES = {"title", "description", "default", "examples", "$comment", "$schema", "$id"}
_DEFINITIONS = {"$defs", "definitions"}
_CLOSED = _NOTES | _DEFINITIONS | {"type", "properties", "required", "additionalProperties"}
_LOCAL_REFS = ("#/$defs/", "#/definitions/")
_MOST_RULES = 256 * 1024


def check_schema_shape(schema: dict[str, Any]) -> None:
    """Make sure that a schema is JSON of a sane size that refers to nothing outside of itself.

    Raises:
        InputError: it is too deep or too large, holds something that JSON has not, or a reference
            leaves it.

    """
    waiting: list[tuple[Any, str, int]] = [(schema, "", 0)]
    count = 0
    while waiting:
        value, place, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise InputError(
                f"The JSON schema is nested deeper than {MAX_DEPTH} levels, at {place[:200]}…",
                hint="Flatten it, or name its parts in $defs.",
            )
        if count > MAX_VALUES:
            raise InputError(f"The JSON schema holds more than {MAX_VALUES} values.")
        waiting.extend(
            (inner, f"{place}/{_escaped(key)}", depth + 1) for key, inner in _inner(value, place)
        )
        if place.endswith("/$ref") and isinstance(value, str) and not value.startswith("#"):
            raise InputError(
                f"The JSON schema refers to {value[:200]!r} at {place}; nothing is fetched.",
                hint="Copy what it refers to into $defs.",
            )


def _inner(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield a value's parts by key; refuse what is no JSON."""
    if isinstance(value, dict):
        if any(not isinstance(key, str) for key in value):
            raise InputError(f"The JSON schema has a key that is no text at {place or 'the top'}.")
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from ((str(at), inner) for at, inner in enumerate(value))
    else:
        _check_scalar(value, place)


def _check_scalar(value: Any, place: str) -> None:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The JSON schema holds no JSON value at {place or 'the top'}: {error}."
        ) from error


def _escaped(key: str) -> str:
    """Return a key as a part of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def json_rule(schema: Any, *, compact: bool = False) -> str:
    """Return a schema as the body of a grammar rule."""
    item, key = (",", ":") if compact else (", ", ": ")
    layout = {"whitespace_flexible": False, "item_separator": item, "key_separator": key}
    whole = {} if schema is True else dict(schema)
    return "%json " + json.dumps({**whole, "x-guidance": layout})


def any_order(schema: dict[str, Any], *, compact: bool) -> str | None:
    """Return the grammar of a schema with its properties in any order, each at most once.

    Uses one bit of a rule's parameter per property, as llguidance's parametric grammars allow.

    Returns:
        ``None`` where the top level is not a closed object of at most 63 properties, a reference
        goes elsewhere than to ``$defs``, or the grammar would be very long.

    """
    if not _is_closed(schema) or not all(ref.startswith(_LOCAL_REFS) for ref in _refs(schema)):
        return None
    rules: list[str] = []
    definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
    _object_rules(rules, "start", schema, definitions, compact=compact)
    text = "\n".join(rules)
    return text if len(text) <= _MOST_RULES else None


def _is_closed(schema: Any) -> bool:
    """Whether a schema names all the properties of an object and says nothing else of it."""
    if not isinstance(schema, dict) or not set(schema) <= _CLOSED:
        return False
    properties, required = schema.get("properties"), schema.get("required", [])
    return (
        schema.get("type") == "object"
        and schema.get("additionalProperties") is False
        and isinstance(properties, dict)
        and 0 < len(properties) <= _BITS
        and all(isinstance(part, dict) or part is True for part in properties.values())
        and isinstance(required, list)
        and all(name in properties for name in required)
    )


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _refs(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _refs(inner)


def _object_rules(
    rules: list[str], name: str, schema: dict[str, Any], definitions: Any, *, compact: bool
) -> None:
    """Add the rules of one closed object and, under them, of the closed objects it holds."""
    item, key = (",", ":") if compact else (", ", ": ")
    own = f"o{len(rules)}"
    names = list(schema["properties"])
    keys = [json.dumps(name, ensure_ascii=False) + key for name in names]
    needed = [f"bit_set({names.index(name)})" for name in dict.fromkeys(schema.get("required", []))]
    empty = "" if needed else ' | "{}"'
    first = [f"{quoted('{' + key)} {own}v{at} {own}r::{1 << at}" for at, key in enumerate(keys)]
    rest = [
        f"{quoted(item + key)} {own}v{at} {own}r::set_bit({at}) %if bit_clear({at})"
        for at, key in enumerate(keys)
    ]
    rules.append(f"{name}: ({' | '.join(first)}) {empty}")
    rules.append(f"""{own}r::_ : "}}" %if {_all_of(needed)} | {" | ".join(rest)}""")
    for at, part in enumerate(schema["properties"].values()):
        if _is_closed(part) and not _DEFINITIONS & set(part):
            _object_rules(rules, f"{own}v{at}", part, definitions, compact=compact)
        else:
            whole = {**definitions, **part} if isinstance(part, dict) and [*_refs(part)] else part
            rules.append(f"{own}v{at}: {json_rule(whole, compact=compact)}")


def quoted(text: str) -> str:
    """Return a text as a literal of a grammar."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _all_of(conditions: list[str]) -> str:
    if not conditions:
        return "true"
    whole = conditions[0]
    for condition in conditions[1:]:
        whole = f"and({whole}, {condition})"
    return whole


def locate(
    schema: dict[str, Any],
    problem: Callable[[dict[str, Any]], str | None],
    *,
    budget_s: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[str, str | None]:
    """Return the place of the innermost part that is wrong by itself, as a JSON pointer, and why.

    Args:
        schema: one that is wrong as a whole.
        problem: says of a schema why it is wrong, or ``None``.
        budget_s: how long to look; then the place found so far is given.
        clock: monotonic seconds.

    """
    late = clock() + budget_s
    definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
    place, why = "", None
    parts = _parts(schema)
    while clock() < late:
        at, part = next(parts, ("", None))
        if part is None:
            break
        found = problem({**definitions, **part}) if isinstance(part, dict) else None
        if found is not None:
            place, why, parts = f"{place}/{at}", found, _parts(part)
    return place or "the top level", why


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the schemas directly inside of a schema by place, definitions first."""
    for keyword in _SUB_MAPS:
        named = schema.get(keyword)
        if isinstance(named, dict):
            yield from ((f"{keyword}/{_escaped(key)}", part) for key, part in named.items())
    for keyword in _SUB_LISTS:
        listed = schema.get(keyword)
        if isinstance(listed, list | tuple):
            yield from ((f"{keyword}/{at}", part) for at, part in enumerate(listed))
    yield from ((keyword, schema[keyword]) for keyword in _SUB_SCHEMAS if keyword in schema)
