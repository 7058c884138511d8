"""What goes over the wire: the body of a chat completion, and its answer read back.

Guarantees: an answer is either read in full or refused as ``None``, never half-read; whatever a
server sends as a name is cut to a short printable text. Knows no network, no price, no clock.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from edge.errors import InputError
from edge.types import Usage

_LONGEST_NAME = 128
_MOST_TOKENS = 10**9


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A chat completion as read: ``usage`` is ``None`` where the server reported none."""

    text: str
    finish: str
    model: str
    id: str
    usage: Usage | None


def response_format(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the ``response_format`` that asks for JSON of this schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def request_body(
    model: str,
    messages: Sequence[Message],
    *,
    max_tokens: int,
    temperature: float,
    response_schema: dict[str, Any] | None,
) -> bytes:
    """Return the JSON body of the request.

    Raises:
        InputError: there is no message, ``max_tokens`` is below 1, or something is no valid JSON
            (an unpaired surrogate, NaN).

    """
    if not messages or max_tokens < 1:
        raise InputError("A request needs at least one message and max_tokens of at least 1.")
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": turn.role, "content": turn.content} for turn in messages],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": False,
    }
    if response_schema is not None:
        body["response_format"] = response_format(response_schema)
    encoded = _encode(body)
    if encoded is None:
        raise InputError("The request to the pool holds something that JSON in UTF-8 cannot say.")
    return encoded


def _encode(body: dict[str, Any]) -> bytes | None:
    # Raised after the except block: the error would hold the text.
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        return None


def read_json(body: bytes) -> Any:
    """Return the parsed body, or ``None`` where it is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def read_reply(body: bytes) -> Reply | None:
    """Return the completion in ``body``, or ``None`` where it is none.

    Missing or ``null`` content is an empty text: ``finish`` says why.
    """
    answer = read_json(body)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if not (isinstance(answer, dict) and isinstance(first, dict) and isinstance(message, dict)):
        return None
    text = _text(message.get("content"))
    if text is None:
        return None
    return Reply(
        text=text,
        finish=short_name(first.get("finish_reason")),
        model=short_name(answer.get("model")),
        id=short_name(answer.get("id")),
        usage=_usage(answer.get("usage")),
    )


def short_name(value: object) -> str:
    """Return a server's name for something as a short printable text, else an empty one."""
    if not isinstance(value, str):
        return ""
    return "".join(char for char in value if char.isprintable())[:_LONGEST_NAME]


def _text(content: object) -> str | None:
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            return None
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        return None
    # An escaped lone surrogate is legal JSON but could never be stored as UTF-8.
    return content.encode("utf-8", "replace").decode()


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    tokens_in, tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (_is_count(tokens_in) and _is_count(tokens_out)):
        return None
    return Usage(tokens_in, tokens_out)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MOST_TOKENS
