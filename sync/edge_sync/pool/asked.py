"""What a request asks for, and what a replica gives back: plain values that cross processes.

Pure. Guarantees: a field that would be silently ignored is refused, so that an answer is what was
asked for. Format: OpenAI's chat completions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from edge.errors import InputError

_ROLES = ("system", "developer", "user", "assistant")
_NUMBERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repeat_penalty": "repetition_penalty",
    "repetition_penalty": "repetition_penalty",
}
_WHOLE = frozenset({"top_k"})
_LIMITS = ("max_tokens", "max_completion_tokens")
_READ = frozenset(
    {*_NUMBERS, *_LIMITS, "messages", "model", "seed", "stop", "stream", "stream_options",
     "response_format"}
)  # fmt: skip
_OF_NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "n": (1,), "logprobs": (False,), "logit_bias": ({},), "tools": ([],), "tool_choice": ("none",)
}  # fmt: skip
_NOTES = frozenset({"user", "metadata"})
_MOST_STOPS = 16
_MOST_SEED = 2**63


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Attributes:
        max_tokens: >= 1.
        numbers: of the sampler, by the names of ``edge.types.SamplingParams``.
        seed: always set, so that another replica draws the same.
        schema: JSON Schema that the answer must fit; ``None`` for any text.
        stream: the text is wanted piece by piece.
        usage: the stream ends with the usage.

    """

    messages: tuple[Message, ...]
    max_tokens: int
    seed: int
    numbers: Mapping[str, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    stream: bool = False
    usage: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of an answer."""

    text: str


@dataclass(frozen=True, slots=True)
class End:
    """The end of an answer, with the tokens that the engine counted."""

    finish: str
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine gives no answer.

    Attributes:
        status: of HTTP; with 429 and 503 nothing was computed that counts.

    """

    status: int
    code: str
    message: str


Event: TypeAlias = Text | End | Failed


def read_asked(body: bytes, *, model: str, most_tokens: int, seed: int) -> Asked:
    """Read a request.

    Args:
        body: JSON.
        model: the name that a request may give.
        most_tokens: of an answer; the value where none is set.
        seed: where none is set.

    Raises:
        InputError: it is no request, or asks for something that is not done here; it is named.

    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError("The body is no JSON object.", hint="Send one as OpenAI's interface has.")
    given = {name: value for name, value in found.items() if value is not None}
    for name in sorted(given.keys() - _READ - _NOTES):
        if given[name] not in _OF_NO_EFFECT.get(name, ()):
            raise InputError(f"The pool does not do what the field {name[:40]!r} asks for.",
                             hint="Leave it out.")  # fmt: skip
    if given.get("model", model) != model:
        raise InputError(f"The pool has no model but {model!r}.", hint="Name it, or none.")
    stream = _flag(given.get("stream", False), "stream")
    options = given.get("stream_options", {})
    return Asked(
        messages=_messages(given.get("messages")),
        max_tokens=_limit(given, most_tokens),
        seed=_seed(given.get("seed", seed)),
        numbers=_numbers(given),
        stop=_stops(given.get("stop", ())),
        schema=_schema(given.get("response_format")),
        stream=stream,
        usage=stream and isinstance(options, dict) and options.get("include_usage") is True,
    )


def _messages(given: Any) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise InputError("messages are a list with at least one message.")
    return tuple(_message(each) for each in given)


def _message(given: Any) -> Message:
    role = given.get("role") if isinstance(given, dict) else None
    if role not in _ROLES:
        raise InputError(f"A message has one of the roles {', '.join(_ROLES)}.")
    content = given.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else None
    if not isinstance(content, str):
        raise InputError("The content of a message is text.")
    return Message("system" if role == "developer" else role, content)


def _limit(given: Mapping[str, Any], most: int) -> int:
    limits = [given[name] for name in _LIMITS if name in given]
    if not all(type(each) is int and each >= 1 for each in limits):
        raise InputError("max_tokens is a whole number of at least 1.")
    return int(min([*limits, most]))


def _seed(given: Any) -> int:
    if not isinstance(given, int) or isinstance(given, bool):
        raise InputError("seed is a whole number.")
    return given % _MOST_SEED


def _numbers(given: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {"temperature": 1.0}
    for name, ours in _NUMBERS.items():
        if name not in given:
            continue
        value = given[name]
        if type(value) not in ({int} if name in _WHOLE else {int, float}):
            raise InputError(f"{name} is a number.")
        found[ours] = value
    return found


def _stops(given: Any) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else given
    if (
        not isinstance(stops, list | tuple)
        or len(stops) > _MOST_STOPS
        or not all(isinstance(each, str) and each for each in stops)
    ):
        raise InputError(f"stop is a text, or up to {_MOST_STOPS} of them, none empty.")
    return tuple(stops)


def _schema(given: Any) -> dict[str, Any] | None:
    kind = given.get("type") if isinstance(given, dict) else given
    if kind is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    inner = given.get("json_schema") if kind == "json_schema" else None
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise InputError("response_format is text, json_object, or json_schema with a schema.")
    return schema


def _flag(given: Any, name: str) -> bool:
    if not isinstance(given, bool):
        raise InputError(f"{name} is true or false.")
    return given
