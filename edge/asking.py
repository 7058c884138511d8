"""What a pool is asked on behalf of a task, and how its answer is read.

Where the local draft leaves little open, only that is asked: the labels still likely, or the fields
not trusted. Guarantees: such a narrow question is never larger than the full one; the instruction
holds words of the pack alone, whatever was read from a text stands in the user's message; a merged
answer is judged by the task's whole schema. Pure; knows no pool, no money, no clock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edge.cloud.chat import Message
from edge.cloud.pricing import most_tokens_in
from edge.judge import value_problem
from edge.strict import json_text, strict_json
from edge.task import TaskSpec
from edge.types import Draft, Json, Kind

NONE = "none of these"
"""What a pool may answer where not all labels were offered."""

_MARGIN = 8  # tokens for quotes, a full stop and the end
_DEFINED = re.compile(r"#/\$defs/([^/~%]+)")
# These judge a field by itself; any other keyword may tie fields together.
_FIELD_BY_FIELD = frozenset(
    {"$schema", "$comment", "$defs", "title", "description", "default", "examples"}
    | {"type", "properties", "required", "additionalProperties"}
)
_PLACED = frozenset({"$id", "$anchor", "$dynamicRef", "$dynamicAnchor"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is sent to a pool, and what its answer is read against.

    Attributes:
        messages: the instruction, then the text.
        max_tokens: limit on the answer.
        schema: JSON Schema of the answer; ``None`` where it is no JSON.
        labels: what the answer may be (classify); empty where unknown.
        known: the fields of the draft that the answer is merged into; ``None`` where the answer
            stands by itself.
        narrow: less is asked than the task's whole question.

    """

    messages: tuple[Message, ...]
    max_tokens: int
    schema: dict[str, Any] | None = None
    labels: tuple[str, ...] = ()
    known: dict[str, Json] | None = None
    narrow: bool = False

    @property
    def size(self) -> int:
        """The most tokens that the request can count as."""
        return most_tokens_in(self.messages, response_schema=self.schema)


@dataclass(frozen=True, slots=True)
class Reading:
    """A pool's answer as read.

    Attributes:
        value: the answer, merged into the draft where only some fields were asked for.
        problem: why it cannot be the task's answer, or ``None``; quotes nothing of it.
        none_fits: the pool said that no label it was offered is right.

    """

    value: Json = None
    problem: str | None = None
    none_fits: bool = False


def question(
    spec: TaskSpec, text: str, *, labels: Sequence[str] = (), draft: Draft | None = None
) -> Question:
    """Return what to ask a pool.

    The question is narrow where the draft allows it and that makes it smaller. A draft of a text
    that was cut allows nothing: what it leaves open may stand in the part that was not read.

    Args:
        spec: the task.
        text: the input, as it may leave.
        labels: what a classification may choose from.
        draft: the local answer, with its ``candidates`` or ``doubtful`` fields.

    """
    full = _full(spec, text, tuple(labels))
    if draft is None or draft.truncated:
        return full
    if spec.kind is Kind.CLASSIFY:
        narrow = _few_labels(spec, text, full.labels, draft.candidates)
    else:
        narrow = _few_fields(spec, text, draft) if spec.kind is Kind.EXTRACT else None
    return narrow if narrow is not None and narrow.size < full.size else full


def read(spec: TaskSpec, asked: Question, answer: str) -> Reading:
    """Return what a pool's answer to a question comes to."""
    try:
        value = _value(spec.kind, answer)
    except ValueError:
        # Its message is left out: it may quote the answer.
        return Reading(problem="the answer is not JSON")
    if asked.narrow and spec.kind is Kind.CLASSIFY and str(value).casefold() == NONE:
        return Reading(problem="none of the labels offered is right", none_fits=True)
    if asked.known is not None and asked.schema is not None:
        if not isinstance(value, dict):
            return Reading(problem="the answer is not an object")
        fields = asked.schema["properties"]
        value = asked.known | {name: value[name] for name in fields if name in value}
    problem = value_problem(spec, value, labels=asked.labels)
    return Reading(value) if problem is None else Reading(problem=problem)


def subschema(schema: dict[str, Any], names: Sequence[str]) -> dict[str, Any] | None:
    """Return the schema of some fields of an object, with the definitions they refer to.

    Args:
        schema: JSON Schema of the object.
        names: of the fields.

    Returns:
        The smaller schema, or ``None`` where one cannot be cut out: a field is not among the
        properties, a keyword may tie fields together, or a reference leads to where it would not.

    """
    properties = schema.get("properties", {})
    named = {name: part for name, part in properties.items() if name in names}
    if not named or not set(names) <= named.keys() or not schema.keys() <= _FIELD_BY_FIELD:
        return None
    definitions = _definitions(named, schema.get("$defs", {}))
    if definitions is None or schema.get("type", "object") != "object":
        return None
    part: dict[str, Any] = {"type": "object", "properties": named}
    required = [name for name in schema.get("required", ()) if name in named]
    part |= {"required": required} if required else {}
    part |= {"additionalProperties": False}
    return part | ({"$defs": definitions} if definitions else {})


def _full(spec: TaskSpec, text: str, labels: tuple[str, ...]) -> Question:
    told = spec.cloud_prompt
    if not told and spec.kind is Kind.CLASSIFY:
        told = _choose_from(labels)
    elif not told and spec.kind is Kind.EXTRACT:
        told = "Extract the call as one JSON object that fits this JSON Schema:\n"
        told += json.dumps(spec.output_schema)
    elif not told:
        told = spec.description or "Answer the request."
    return Question(
        messages=(Message("system", told), Message("user", text)),
        max_tokens=_most_tokens(spec, labels),
        schema=spec.output_schema if spec.kind is Kind.EXTRACT else None,
        labels=labels,
    )


def _few_labels(
    spec: TaskSpec, text: str, labels: tuple[str, ...], candidates: Sequence[str]
) -> Question | None:
    # In the task's order: the draft's own would tell the pool what the device thinks.
    likely = tuple(label for label in labels if label in candidates)
    taken = NONE in {label.casefold() for label in labels}
    # A prompt of the pack names the labels itself; naming some again would only add to it.
    if taken or spec.cloud_prompt or not likely:
        return None
    offered = (*likely, NONE)
    return Question(
        messages=(Message("system", _choose_from(offered)), Message("user", text)),
        max_tokens=_most_tokens(spec, offered),
        labels=likely,
        narrow=True,
    )


def _choose_from(labels: Sequence[str]) -> str:
    told = "Classify the text. Answer with exactly one of these labels and nothing else:\n"
    return told + "\n".join(labels)


def _most_tokens(spec: TaskSpec, labels: Sequence[str]) -> int:
    """Return the limit on an answer; a label has at most as many tokens as UTF-8 bytes."""
    most = spec.budget.max_output_tokens
    # A limit that the pack sets is kept: its pool's model may think before it answers.
    if not labels or "max_output_tokens" in spec.budget.model_fields_set:
        return most
    longest = max(len(label.encode("utf-8", "replace")) for label in labels)
    return min(most, longest + _MARGIN)


def _few_fields(spec: TaskSpec, text: str, draft: Draft) -> Question | None:
    whole, value = spec.output_schema, draft.value
    part = subschema(whole, draft.doubtful) if whole is not None else None
    if whole is None or part is None or not isinstance(value, dict):
        return None
    known = {name: each for name, each in value.items() if name not in draft.doubtful}
    if not known or not _stands(spec, whole, known):
        return None
    told = "Extract only these fields of the call as one JSON object that fits this JSON Schema:\n"
    told += json.dumps(part)
    if spec.cloud_prompt:
        names = json.dumps(list(part["properties"]), ensure_ascii=False)
        told = f"{spec.cloud_prompt}\nAnswer with a JSON object of only these fields: {names}."
    # A redactor has seen the text and not the draft.
    if spec.privacy.allow_cloud == "raw":
        told += "\nThe last line of the message is not part of the text: fields known already."
        text += f"\n\n{json_text(known)}"
    return Question(
        messages=(Message("system", told), Message("user", text)),
        max_tokens=spec.budget.max_output_tokens,
        schema=part,
        known=known,
        narrow=True,
    )


def _stands(spec: TaskSpec, whole: dict[str, Any], known: dict[str, Json]) -> bool:
    """Whether the fields to keep are valid; with one that is not, no answer could be merged."""
    try:
        json_text(known)
    except (RecursionError, TypeError, ValueError):
        return False
    required = [name for name in whole.get("required", ()) if name in known]
    rest = spec.model_copy(update={"output_schema": {**whole, "required": required}})
    return value_problem(rest, known) is None


def _definitions(part: Any, definitions: dict[str, Any]) -> dict[str, Any] | None:
    """Return the definitions that a part needs; ``None`` where it needs more than those."""
    needed: dict[str, Any] = {}
    waiting = [part]
    while waiting:
        for reference in _references(waiting.pop()):
            match = _DEFINED.match(reference)
            if match is None or match[1] not in definitions:
                return None
            if match[1] not in needed:
                needed[match[1]] = definitions[match[1]]
                waiting.append(definitions[match[1]])
    return needed


def _references(part: Any) -> Iterator[str]:
    """Yield where the references in a part lead; ``""`` for what depends on where it stands."""
    waiting = [part]
    while waiting:
        at = waiting.pop()
        if isinstance(at, list):
            waiting += at
        elif isinstance(at, dict):
            if "$ref" in at:
                yield at["$ref"] if isinstance(at["$ref"], str) else ""
            if not at.keys().isdisjoint(_PLACED):
                yield ""
            waiting += at.values()


def _value(kind: Kind, text: str) -> Json:
    """Return a pool's answer as a value.

    Raises:
        ValueError: it should be JSON and is not.

    """
    plain = text.strip()
    if kind is not Kind.EXTRACT:
        return plain.strip("`\"' .") if kind is Kind.CLASSIFY else plain
    return strict_json(plain.removeprefix("```json").removeprefix("```").removesuffix("```"))
