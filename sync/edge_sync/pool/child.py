"""A server of OpenAI's interface, in a process of its own beside the replica, as an engine: vLLM.

``vllm serve`` is started on the loopback address and asked over HTTP, which is what vLLM documents;
nothing of its inside is imported. Guarantees: the usage is the one that the server reports; the
server ends with the replica, however that ends; where the server ends first, so does the replica,
and Ray starts another.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx

from edge.errors import ConfigError, LoadError
from edge_sync.pool.asked import Asked, End, Failed, Text
from edge_sync.pool.config import Settings
from edge_sync.pool.engine import Put

_CONNECT_S = 5.0
_POLL_S = 0.1
_DYING_S = 1.0
_MESSAGE_CHARS = 500


def vllm(settings: Settings) -> ChildEngine:
    """Start ``vllm serve`` and wait until it answers.

    Raises:
        ConfigError: vLLM is not installed.
        LoadError: it ended.

    """
    program = shutil.which("vllm")
    if program is None:
        raise ConfigError(
            "vLLM is not installed where the replica runs.",
            hint="Install it on every node: pip install vllm",
        )
    port = free_port()
    command = [
        program, "serve", settings.model, "--host", "127.0.0.1", "--port", str(port),
        "--served-model-name", settings.name, "--max-model-len", str(settings.context),
        *settings.arguments,
    ]  # fmt: skip
    return ChildEngine(command, f"http://127.0.0.1:{port}/v1", name=settings.name)


def free_port() -> int:
    """Return a port of the loopback address that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class ChildEngine:
    """A server as an engine; see ``edge_sync.pool.engine.Engine``.

    Args:
        command: starts the server.
        url: where it answers, up to ``/v1``.
        name: of the model there.
        died: called where the server ends by itself.

    Raises:
        LoadError: the server ended before it answered.

    """

    def __init__(
        self,
        command: Sequence[str],
        url: str,
        *,
        name: str,
        died: Callable[[], None] = lambda: os._exit(1),
    ) -> None:
        self._name = name
        self._closed = False
        timeout = httpx.Timeout(None, connect=_CONNECT_S)
        self._client = httpx.Client(base_url=url, timeout=timeout, trust_env=False)
        self._process = subprocess.Popen(  # noqa: S603 - the command is the pool's own
            [sys.executable, "-m", "edge_sync.pool.guard", *command], stdin=subprocess.PIPE
        )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._watch, args=(died,), daemon=True).start()

    def run(self, asked: Asked, put: Put, cancelled: Callable[[], bool]) -> None:
        """Pass a request on; see ``Engine``."""
        try:
            with self._client.stream("POST", "/chat/completions", json=self._body(asked)) as answer:
                if answer.is_success:
                    put(_pass_on(answer.iter_lines(), put, cancelled))
                else:
                    put(_refused(answer.status_code, answer.read()))
        except httpx.HTTPError as error:
            time.sleep(_DYING_S)  # where the server has died, this process does, and Ray asks anew
            put(Failed(500, "engine_failed", f"The server failed: {type(error).__name__}."))

    def check(self) -> None:
        """Raise where the server does not list its models."""
        self._client.get("/models", timeout=_CONNECT_S).raise_for_status()

    def close(self) -> None:
        """End the server."""
        self._closed = True
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._client.close()

    def _body(self, asked: Asked) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._name,
            "messages": [{"role": each.role, "content": each.content} for each in asked.messages],
            "max_tokens": asked.max_tokens,
            "seed": asked.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
            **asked.numbers,
        }
        if asked.stop:
            body["stop"] = list(asked.stop)
        if asked.schema is not None:
            inner = {"name": "answer", "schema": asked.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": inner}
        return body

    def _wait_until_it_answers(self) -> None:
        while True:
            if self._process.poll() is not None:
                raise LoadError(
                    f"The server of {self._name} ended with code {self._process.returncode} "
                    "before it answered.",
                    hint="Read what it wrote in Ray's log of the replica.",
                )
            try:
                if self._client.get("/models").is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(_POLL_S)

    def _watch(self, died: Callable[[], None]) -> None:
        self._process.wait()
        if not self._closed:
            died()


def _pass_on(lines: Iterator[str], put: Put, cancelled: Callable[[], bool]) -> End | Failed:
    """Pass pieces on; return how it ended."""
    finish, usage = "stop", None
    for line in lines:
        if cancelled():
            return Failed(499, "cancelled", "Nobody waits any more.")
        if not line.startswith("data:") or line.endswith("[DONE]"):
            continue
        event = json.loads(line[5:])
        usage = event.get("usage") or usage
        for choice in event.get("choices", ()):
            if text := choice.get("delta", {}).get("content"):
                put(Text(text))
            finish = choice.get("finish_reason") or finish
    if usage is None:
        return Failed(500, "engine_failed", "The server's stream ended without its usage.")
    return End(finish, usage["prompt_tokens"], usage["completion_tokens"])


def _refused(status: int, body: bytes) -> Failed:
    message = body.decode("utf-8", "replace")[:_MESSAGE_CHARS]
    if status < 500:  # noqa: PLR2004 - of HTTP
        return Failed(status, "refused", message)
    return Failed(500, "engine_failed", message)
