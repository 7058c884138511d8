"""The most a request can cost, and the request that keeps to it.

Pure. Guarantees: no answer of an honest upstream is dearer than the bound: a token of a byte-level
vocabulary stands for at least one byte, so a request has at most as many tokens as bytes (tools are
counted twice, as templates print them with more spaces), and the answer is limited by a field that
is always set. What is not known to be bounded by these is refused: unknown fields, and contents
that are not text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from edge.cloud.pricing import TEMPLATE_TOKENS
from edge_sync.gateway.refusals import Refused
from edge_sync.gateway.usage import read_object

CHAT, COMPLETIONS, EMBEDDINGS = "/chat/completions", "/completions", "/embeddings"
MOST_CHOICES = 8
_COMMON = frozenset(
    {"model", "user", "seed", "temperature", "top_p", "n", "stop", "stream", "stream_options",
     "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "metadata",
     "top_k", "min_p", "repeat_penalty", "repetition_penalty", "grammar", "response_format"}
)  # fmt: skip
FIELDS = {
    CHAT: _COMMON
    | {"messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice",
       "parallel_tool_calls", "reasoning_effort", "chat_template_kwargs"},
    COMPLETIONS: _COMMON | {"prompt", "suffix", "echo", "best_of"},
    EMBEDDINGS: frozenset({"model", "user", "input", "encoding_format", "dimensions"}),
}  # fmt: skip
_LIMITS = ("max_tokens", "max_completion_tokens")
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """Whole micro-dollars for a million tokens."""

    input_microusd_per_mtok: int
    output_microusd_per_mtok: int

    def cost_microusd(self, tokens_in: int, tokens_out: int) -> int:
        """Return what tokens cost, rounded up."""
        exact = (
            self.input_microusd_per_mtok * tokens_in + self.output_microusd_per_mtok * tokens_out
        )
        return -(-exact // _MILLION)


@dataclass(frozen=True, slots=True)
class Bounded:
    """A request that cannot use more than it says.

    Attributes:
        fields: the JSON object to forward; the model is the upstream's to set.
        tokens_in, tokens_out: the most it can use.
        stream: whether the answer comes in events.
        hide_usage: the device did not ask for the event with the usage.

    """

    fields: dict[str, Any]
    tokens_in: int
    tokens_out: int
    stream: bool
    hide_usage: bool


def bound(path: str, body: bytes, *, limit: int) -> Bounded:
    """Return the request with its limits set.

    Args:
        path: one of ``FIELDS``.
        body: as it was sent.
        limit: the most tokens that one answer may have, and the value where none is set.

    Raises:
        Refused: it is no JSON object, or nothing bounds what it asks for.

    """
    fields = read_object(body)
    if fields is None:
        raise Refused(
            "bad_request", "The body is no JSON object.", hint="Send one as OpenAI's interface has."
        )
    if unknown := sorted(fields.keys() - FIELDS[path]):
        raise _unbounded(f"the field {unknown[0][:40]!r}", "Leave it out.")
    turns = _turns(path, fields)
    tools = fields.get("tools")
    size = len(body) + (len(json.dumps(tools)) if tools else 0)
    tokens_in = size + TEMPLATE_TOKENS * (turns + 1)
    if path == EMBEDDINGS:
        return Bounded(fields, tokens_in, 0, stream=False, hide_usage=False)
    each = _limit(path, fields, limit)
    choices = max(_number(fields, name, 1, MOST_CHOICES, 1) for name in ("n", "best_of"))
    prompts = turns if path == COMPLETIONS else 1
    stream = fields.get("stream") or False
    if not isinstance(stream, bool):
        raise _unbounded("stream", "It is true or false.")
    hide = stream and _ask_for_usage(fields)
    return Bounded(fields, tokens_in, each * choices * prompts, stream=stream, hide_usage=hide)


def _turns(path: str, fields: dict[str, Any]) -> int:
    """Return how many texts there are; each must be one."""
    if path != CHAT:
        name = "input" if path == EMBEDDINGS else "prompt"
        given = fields.get(name)
        texts = given if isinstance(given, list) else [given]
        if not texts or not all(_is_text(each) for each in texts):
            raise _unbounded(name, "It is a text, or a list of texts.")
        return len(texts)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _unbounded("messages", "They are a list.")
    if not all(isinstance(each, dict) and _content(each.get("content")) for each in messages):
        raise _unbounded("a message", "Contents are text; images and sound are not taken.")
    return len(messages)


def _content(content: Any) -> bool:
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return content is None or isinstance(content, str)


def _is_text(value: Any) -> bool:
    # Token numbers take a digit and a comma each, so that bytes bound them as well.
    return isinstance(value, str) or (
        isinstance(value, list) and all(type(each) is int for each in value)
    )


def _limit(path: str, fields: dict[str, Any], limit: int) -> int:
    """Return the limit of one answer, and set it where it is missing."""
    names = [name for name in _LIMITS if fields.get(name) is not None and name in FIELDS[path]]
    if not names:
        fields["max_tokens"] = limit
        return limit
    return max(_number(fields, name, 0, limit, limit) for name in names)


def _number(fields: dict[str, Any], name: str, least: int, most: int, default: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if type(value) is not int or not least <= value <= most:
        raise _unbounded(name, f"It is a whole number from {least} to {most}.")
    return value


def _ask_for_usage(fields: dict[str, Any]) -> bool:
    """Have a stream end with its usage; say whether the device did not ask for that."""
    options = fields.get("stream_options")
    options = options if isinstance(options, dict) else {}
    fields["stream_options"] = {**options, "include_usage": True}
    return options.get("include_usage") is not True


def _unbounded(what: str, hint: str) -> Refused:
    return Refused(
        "unbounded", f"Nothing bounds the cost: {what} is not as it should be.", hint=hint
    )
