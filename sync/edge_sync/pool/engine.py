"""What a replica needs of an engine, and this project's own: llama.cpp, its scheduler, grammars.

Guarantees: the usage is what the engine counted; an answer to a ``response_format`` fits it unless
it was cut at its longest; errors come back as values, so that only the death of a process looks
like one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from edge.backends.generate import Generation, stream
from edge.backends.gguf import check_gguf
from edge.backends.llama.decoder import LlamaDecoder
from edge.backends.structure.constraint import Matcher, constrain
from edge.backends.structure.grammars import Grammar
from edge.errors import Busy, EdgeError, InputError
from edge.types import SamplingParams
from edge_sync.pool.asked import Asked, End, Event, Failed, Text
from edge_sync.pool.chat import Chat
from edge_sync.pool.config import Settings

Put = Callable[[Event], None]


class Engine(Protocol):
    """Answers requests, several at once, each in a thread of its caller."""

    def run(self, asked: Asked, put: Put, cancelled: Callable[[], bool]) -> None:
        """Answer a request.

        Args:
            asked: the request.
            put: takes the events of the answer; the last one is ``End`` or ``Failed``.
            cancelled: whether nobody waits any more.

        """
        ...

    def check(self) -> None:
        """Raise where the engine does not work any more; that is what Ray asks."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


def open_engine(settings: Settings) -> Engine:
    """Open the engine of the settings.

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError: the engine is not installed.

    """
    if settings.engine == "vllm":
        from edge_sync.pool.child import vllm

        return vllm(settings)
    return EdgeEngine(settings)


class EdgeEngine:
    """A GGUF model in this process; see ``Engine``.

    Args:
        settings: of the pool.
        clock: monotonic seconds.

    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        path = Path(settings.model)
        self._decoder = LlamaDecoder.open(
            path,
            name=settings.name,
            digest="",
            context=settings.context,
            threads=settings.threads or max(1, int(settings.resources.cpus)),
            max_sequences=settings.sequences,
            device=settings.device,
        )
        self._chat = _chat(settings, self._decoder)
        self._stall_s = settings.health.stall_s
        self._clock = clock
        self._stepped_at = clock()
        self._under_way = 0
        self._lock = threading.Lock()

    def run(self, asked: Asked, put: Put, cancelled: Callable[[], bool]) -> None:
        """Answer a request; see ``Engine``."""
        with self._lock:
            if self._under_way == 0:
                self._stepped_at = self._clock()
            self._under_way += 1
        try:
            end = self._generate(asked, put, cancelled)
        except InputError as error:
            end = Failed(400, "bad_request", str(error))
        except Busy as error:
            end = Failed(429, "too_many", str(error))
        except EdgeError as error:
            end = Failed(500, "engine_failed", str(error))
        finally:
            with self._lock:
                self._under_way -= 1
        put(end)

    def check(self) -> None:
        """Raise where there is work and no step of the model for too long."""
        idle_s = self._clock() - self._stepped_at
        if self._under_way and idle_s > self._stall_s:
            raise RuntimeError(f"the model has made no step for {idle_s:.0f} s")

    def close(self) -> None:
        """Free the model."""
        self._decoder.close()

    def _generate(self, asked: Asked, put: Put, cancelled: Callable[[], bool]) -> Event:
        matcher = self._matcher(asked)

        def stop() -> bool:  # asked before each step
            self._stepped_at = self._clock()
            return cancelled()

        answer = stream(
            self._decoder,
            self._chat.tokens(asked.messages, self._decoder),
            params=SamplingParams(**asked.numbers, seed=asked.seed),  # type: ignore[arg-type]
            max_tokens=asked.max_tokens,
            stop=asked.stop,
            cancel=stop,
            allowed=None if matcher is None else matcher.allowed,
            forced=None if matcher is None else matcher.forced,
            statistics=False,
        )
        for piece in answer:
            if isinstance(piece, Generation):
                return End(piece.finish, piece.usage.tokens_in, piece.usage.tokens_out)
            put(Text(piece))
        raise AssertionError("a stream ends with its Generation")  # pragma: no cover

    def _matcher(self, asked: Asked) -> Matcher | None:
        if asked.schema is None:
            return None
        return constrain(self._decoder, Grammar.json_schema(asked.schema)).matcher()


def _chat(settings: Settings, decoder: LlamaDecoder) -> Chat:
    facts = check_gguf(Path(settings.model)).metadata
    template = ""
    if settings.template == "model":
        template = str(facts["tokenizer.chat_template"])
    elif settings.template != "plain":
        template = Path(settings.template).read_text("utf-8")

    def piece(name: str) -> str:
        token = facts.get(f"tokenizer.ggml.{name}_token_id")
        return decoder.piece(int(token), special=True).decode() if token is not None else ""

    return Chat(template, bos=piece("bos"), eos=piece("eos"))
