"""What an answer says it used, whole or as a stream of events.

Pure. Guarantees: a usage that is missing, negative, no number or nothing at all is told apart from
a real one and never guessed. Format of streams: server-sent events (WHATWG HTML, 9.2), each a
``data:`` line with JSON, the last one ``[DONE]``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from edge_sync.gateway.records import Flag

MOST_TOKENS = 10**9
_DONE = b"[DONE]"


class NoEvents(Exception):  # noqa: N818 - says what it is
    """What came is no stream of events."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens in and out."""

    tokens_in: int
    tokens_out: int


def read_usage(answer: Any) -> tuple[Usage | None, Flag]:
    """Return the usage of an answer, or why there is none to rely on.

    Args:
        answer: JSON as it was read.

    """
    found = answer.get("usage") if isinstance(answer, dict) else None
    if found is None:
        return None, "no_usage"
    if not isinstance(found, dict):
        return None, "bad_usage"
    tokens_in, tokens_out = found.get("prompt_tokens"), found.get("completion_tokens", 0)
    if type(tokens_in) is not int or type(tokens_out) is not int:
        return None, "bad_usage"
    usage = Usage(tokens_in, tokens_out)
    if min(usage.tokens_in, usage.tokens_out) < 0 or not 0 < tokens_in + tokens_out <= MOST_TOKENS:
        return None, "bad_usage"
    return usage, ""


def read_object(body: bytes) -> dict[str, Any] | None:
    """Return a JSON object; ``None`` for anything else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class Events:
    """Takes a stream apart as it comes.

    Attributes:
        done: the stream said that it is over.
        failed: an event told of an error.

    Args:
        hide_usage: leave out the event that has nothing but the usage, which the gateway asked
            for and the device did not.
        most_bytes: of one event.

    """

    def __init__(self, *, hide_usage: bool, most_bytes: int = 2**20) -> None:
        self.done = self.failed = False
        self._hide = hide_usage
        self._most = most_bytes
        self._rest = b""
        self._usage: Any = None

    @property
    def usage(self) -> tuple[Usage | None, Flag]:
        """The last usage that was told, as of ``read_usage``."""
        return read_usage({"usage": self._usage})

    def feed(self, data: bytes) -> bytes:
        """Return the events that are whole now, as they are passed on.

        Raises:
            NoEvents: an event is longer than the most.

        """
        text = self._rest + data if self._rest else data
        end = text.rfind(b"\n\n")
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
            end = text.rfind(b"\n\n")
        self._rest = text[end + 2 :] if end >= 0 else text
        if len(self._rest) > self._most:
            raise NoEvents
        if end < 0:
            return b""
        events = text[: end + 2].split(b"\n\n")[:-1]
        return b"".join(event + b"\n\n" for event in events if self._take(event))

    def _take(self, event: bytes) -> bool:
        """Look at one event; say whether it is passed on."""
        at = event.rfind(b"data:")
        if at < 0:
            return True
        data = event[at + 5 :].strip()
        if data == _DONE:
            self.done = True
            return True
        if b'"usage"' not in data and b'"error"' not in data:
            return True
        found = read_object(data)
        if found is None:
            return True
        self.failed = self.failed or (bool(found.get("error")) and "choices" not in found)
        if found.get("usage") is None:
            return True
        self._usage = found["usage"]
        return not (self._hide and found.get("choices") == [])
