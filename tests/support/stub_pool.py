"""A pool in the same process, for what waits: it counts what it bills and knows nothing of edge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from edge.cloud.pool import Pool
from edge.runtime import Runtime
from edge.task import Pack

COST = 30 * 1 + 4 * 10
"""What one answer costs, in micro-dollars."""

PACK: dict[str, Any] = {
    "name": "field",
    "version": 1,
    "budget": {"cap_usd": "1", "period": "total"},
    "pools": {
        name: {
            "base_url": f"http://{name}.example/v1",
            "model": "small",
            "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 10},
            "retries": 0,
            "breaker_failures": 2,
        }
        for name in ("default", "other")
    },
    "tasks": {
        name: {
            "kind": "generate",
            "budget": {"max_output_tokens": 16},
            "privacy": {"allow_cloud": "raw"},
            "routing": {"pool": pool},
        }
        for name, pool in (("reply", "default"), ("note", "other"))
    },
}


class Clock:
    """Seconds since the epoch, as a test says."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class _Body(httpx.SyncByteStream):
    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def __iter__(self) -> Any:
        yield self._raw


class StubPool:
    """Answers every request with its text in capitals, or as ``step`` does.

    Attributes:
        asked: texts, in the order they came.
        billed: those it charged for.
        step: takes the text before it answers; what it returns is the response, if any.

    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.billed: list[str] = []
        self.step: Callable[[str], httpx.Response | None] = lambda _: None

    def handle(self, request: httpx.Request) -> httpx.Response:
        text = str(json.loads(request.content)["messages"][-1]["content"])
        self.asked.append(text)
        response = self.step(text)
        if response is not None:
            return response
        self.billed.append(text)
        return answer(text.upper())

    def runtime(self, folder: Path, *, offline: bool = False, **changes: Any) -> Runtime:
        """Open a runtime that asks this pool."""
        pack = Pack.model_validate({**PACK, **changes})

        def open_pool(name: str) -> Pool:
            transport = httpx.MockTransport(self.handle)
            return Pool(name, pack.pools[name], env={}, transport=transport)

        return Runtime(pack, folder, offline=offline, open_pool=open_pool)


def answer(text: str) -> httpx.Response:
    """Return a completion that costs ``COST``."""
    return status(
        200,
        {
            "model": "small-2",
            "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 30, "completion_tokens": 4},
        },
    )


def status(code: int, content: Any = None) -> httpx.Response:
    """Return a response of another status."""
    return httpx.Response(code, stream=_Body(json.dumps(content).encode()))
