"""Judges a draft: is it a valid answer, and how sure is it?

Deterministic checks first (schema, label, grounding), then the calibrated confidence the draft
carries. Pure functions over plain values.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from typing import Any

from edge.errors import ConfigError
from edge.references import check_references
from edge.strict import json_text
from edge.task import TaskSpec, spaced
from edge.types import Draft, Json, Kind, Reason, Verdict


def judge(task: TaskSpec, draft: Draft) -> Verdict:
    """Return whether a local draft is valid, and its confidence."""
    problem = draft.problem or value_problem(task, draft.value)
    reasons = (Reason.INPUT_TRUNCATED,) if draft.truncated else ()
    if problem is not None:
        return Verdict(valid=False, confidence=None, reasons=reasons, problem=problem)
    return Verdict(valid=True, confidence=draft.confidence, reasons=reasons)


def value_problem(task: TaskSpec, value: Json, *, labels: Sequence[str] = ()) -> str | None:
    """Return why a value cannot be this task's answer, or ``None``.

    Args:
        task: what was asked.
        value: the parsed answer.
        labels: what a classification may choose from; empty where unknown.

    """
    if task.kind is Kind.CLASSIFY and labels and value not in labels:
        return "the answer is not one of the labels"
    if task.kind is Kind.GENERATE and (not isinstance(value, str) or not value.strip()):
        return "the answer is empty"
    if task.kind is Kind.EMBED and not _is_vector(value):
        return "the answer is not a vector"
    if task.kind is not Kind.EXTRACT or task.output_schema is None:
        return None
    return _schema_problem(task.output_schema, value)


def is_right(found: Json, gold: Json) -> bool:
    """Whether an answer is the right one: the same label, or the same object but for case."""
    return gold is not None and plain(found) == plain(gold)


def plain(value: Json) -> Json:
    """Return an answer as it is compared: of an object, case and white space do not count."""
    if not isinstance(value, dict):
        return value
    return {name: spaced(str(entry)) for name, entry in value.items()}


def _is_vector(value: Json) -> bool:
    """Whether a value is a list of finite numbers."""
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _is_number(value: Json) -> bool:
    """Whether a value is a finite number; ``true`` is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _schema_problem(schema: dict[str, Any], value: Json) -> str | None:
    from referencing.exceptions import Unresolvable

    try:
        first = next(iter(_validator(_canonical(schema)).iter_errors(value)), None)
    except RecursionError:
        return "the answer is nested too deep for the schema"
    except OverflowError:
        return "the answer holds a number too large for the schema"
    except Unresolvable:
        return "the schema refers to something outside of it"
    if first is None:
        return None
    place = ".".join(str(part) for part in first.absolute_path) or "the top level"
    return f"the answer breaks the schema at {place} ({first.validator})"


def check_schema(task: str, schema: dict[str, Any]) -> None:
    """Make sure that a task's schema is itself one, and needs nothing outside of it.

    Raises:
        ConfigError: it is not a JSON Schema, not JSON, or a reference cannot be followed inside of
            it; the task and the reference are named.

    """
    from jsonschema import SchemaError

    what = f"The output_schema of task {task}"
    try:
        check_references(what, _as_json(what, schema))
    except SchemaError as error:
        raise ConfigError(f"{what} is no JSON Schema: {error.message}.") from error
    except RecursionError as error:
        raise ConfigError(
            f"{what} is nested too deep.", hint="Flatten it, or name its parts in $defs."
        ) from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{what} is no JSON Schema: {error}.") from error


def _as_json(what: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a schema in which nothing stands in two places.

    Raises:
        ConfigError: it holds something that JSON has not.

    """
    try:
        copy: dict[str, Any] = json.loads(json_text(schema))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{what} is not JSON: {error}.", hint="Write dates and the like in quotes."
        ) from error
    # Python writes a key such as 1 or true as text; the schema that is used must be the one meant.
    if copy != schema:
        raise ConfigError(
            f"{what} has a key that is not text.", hint="Write the names of properties in quotes."
        )
    return copy


def _canonical(schema: dict[str, Any]) -> str:
    return json.dumps(schema, sort_keys=True)


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    # An empty registry fetches nothing; the default one would open URLs and files.
    return Draft202012Validator(json.loads(schema), registry=Registry())
