"""The references of a JSON Schema: each must lead to a schema inside of it, and none in a circle.

Nothing is ever fetched. Works on plain values; knows nothing of tasks and answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeAlias

from edge.errors import ConfigError

_Place: TypeAlias = tuple[Any, Any]
"""A ``referencing.Resource`` and the ``Resolver`` that its references start from."""

_Beside: TypeAlias = dict[int, list[Any]]
"""By a schema's id: the schemas that judge the same value as it does."""

_REFERENCES = ("$ref", "$dynamicRef")
_LISTS = ("allOf", "anyOf", "oneOf")
_SINGLES = ("not", "if", "then", "else")
_HINT = "Copy what it needs into $defs and refer to it as #/$defs/NAME."


def check_references(what: str, schema: dict[str, Any]) -> None:
    """Make sure that a schema is one, and that all its references can be followed inside of it.

    Args:
        what: names the schema in an error.
        schema: plain JSON; no part of it stands in two places.

    Raises:
        ConfigError: a reference leads out of the schema, to nothing, or back to itself without
            going into the value.
        SchemaError: the schema, or what a reference leads to, is no JSON Schema.

    """
    from jsonschema import Draft202012Validator
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT202012

    root: Resource[Any] = DRAFT202012.create_resource(schema)
    registry: Registry[Any] = Registry()
    beside: _Beside = {}
    waiting: list[tuple[Any, Any]] = []
    Draft202012Validator.check_schema(schema)
    waiting += _walk(what, (root, registry.resolver_with_root(root)), beside)
    while waiting:
        target, resolver = waiting.pop()
        if id(target) not in beside:
            # A reference may lead to where no schema is looked for otherwise.
            Draft202012Validator.check_schema(target)
            resource = Resource.from_contents(target, default_specification=DRAFT202012)
            waiting += _walk(what, (resource, resolver), beside)
    _check_circles(what, beside)


def _walk(what: str, start: _Place, beside: _Beside) -> Iterator[_Place]:
    """Go through a schema and all parts of it; yield where its references lead."""
    waiting = [start]
    while waiting:
        resource, resolver = waiting.pop()
        part = resource.contents
        if not isinstance(part, dict) or id(part) in beside:
            continue
        targets = [_resolved(what, part[key], resolver) for key in _REFERENCES if key in part]
        beside[id(part)] = [*_applied(part), *(contents for contents, _ in targets)]
        yield from targets
        waiting += [(each, resolver.in_subresource(each)) for each in resource.subresources()]


def _resolved(what: str, reference: str, resolver: Any) -> _Place:
    from referencing.exceptions import Unresolvable

    try:
        found = resolver.lookup(reference)
    except (Unresolvable, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{what} refers to {reference[:200]!r}, which is not in it; nothing is fetched.",
            hint=_HINT,
        ) from error
    return found.contents, found.resolver


def _applied(part: dict[str, Any]) -> Iterator[Any]:
    """Yield the schemas inside of one that judge the same value."""
    for key in _LISTS:
        yield from part.get(key, ())
    yield from (part[key] for key in _SINGLES if key in part)
    yield from part.get("dependentSchemas", {}).values()


def _check_circles(what: str, beside: _Beside) -> None:
    """Make sure that no schema judges a value by way of itself: that would never end."""
    graph = {at: [id(each) for each in others] for at, others in beside.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise ConfigError(
            f"{what} has a reference that leads back to itself and never into the value.",
            hint="Refer to the schema itself only from its properties or items.",
        ) from error
