"""Judges a draft: is it a valid answer, and how sure is it?

Deterministic checks first (schema, label, grounding), then the calibrated confidence the draft
carries. Pure functions over plain values.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from edge.errors import ConfigError
from edge.task import TaskSpec
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
    if task.kind is not Kind.EXTRACT or task.output_schema is None:
        return None
    first = next(iter(_validator(_canonical(task.output_schema)).iter_errors(value)), None)
    if first is None:
        return None
    place = ".".join(str(part) for part in first.absolute_path) or "the top level"
    return f"the answer breaks the schema at {place} ({first.validator})"


def check_schema(task: str, schema: dict[str, Any]) -> None:
    """Make sure that a task's schema is itself one.

    Raises:
        ConfigError: it is not a JSON Schema.

    """
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ConfigError(
            f"The output_schema of task {task} is no JSON Schema: {error.message}."
        ) from error


def _canonical(schema: dict[str, Any]) -> str:
    return json.dumps(schema, sort_keys=True)


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))
