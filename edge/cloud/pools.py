"""The open clients of a runtime's pools, which outlive the policy that named them.

A pool keeps its breaker's memory as long as its settings stay; with other settings it is another
pool. An HTTP client is imported once a task leaves the device. Knows no budget.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from edge.task import PoolSpec

if TYPE_CHECKING:
    from edge.cloud.pool import Pool


class Pools:
    """Pools by name and settings. Safe to call from several threads.

    Args:
        open_pool: opens one by its name; from its settings where ``None``.

    """

    def __init__(self, open_pool: Callable[[str], Pool] | None = None) -> None:
        self._open = open_pool
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, str], Pool] = {}

    def get(self, name: str, specs: Mapping[str, PoolSpec]) -> Pool:
        """Return the pool of that name, opened at its first use.

        Raises:
            ConfigError: its settings name no usable address.

        """
        spec = specs.get(name)
        key = (name, spec.model_dump_json() if spec else "")
        with self._lock:
            if key not in self._pools:
                self._pools[key] = self._opened(name, specs)
            return self._pools[key]

    def close(self) -> None:
        """Close every client; calling twice is harmless."""
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()

    def _opened(self, name: str, specs: Mapping[str, PoolSpec]) -> Pool:
        if self._open is not None:
            return self._open(name)
        from edge.cloud.pool import Pool

        return Pool(name, specs[name], env=os.environ)
