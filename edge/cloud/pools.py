"""The open clients of a runtime's pools, which outlive the policy that named them.

A pool keeps its breaker's memory as long as its settings stay; with other settings it is another
pool. An HTTP client is imported once a task leaves the device, and what signs calls once a pool is
a gateway of the fleet. Knows no budget.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edge.task import PoolSpec

if TYPE_CHECKING:
    from edge.cloud.pool import Pool


class Pools:
    """Pools by name and settings. Safe to call from several threads.

    Args:
        open_pool: opens one by its name; from its settings where ``None``.
        state: the state folder, whose device key signs calls to gateways.

    """

    def __init__(
        self, open_pool: Callable[[str], Pool] | None = None, *, state: Path | None = None
    ) -> None:
        self._open = open_pool
        self._state = state
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
        return from_settings(name, specs[name], self._state)


def from_settings(name: str, spec: PoolSpec, state: Path | None) -> Pool:
    """Return a pool's client.

    Args:
        name: of the pool.
        spec: its settings.
        state: the state folder, whose device key signs calls to a gateway.

    Raises:
        ConfigError: its settings name no usable address, or what signs calls is not installed.

    """
    from edge.cloud.gateway import signer
    from edge.cloud.pool import Pool

    signs = signer(state) if spec.gateway and state is not None else None
    return Pool(name, spec, env=os.environ, signer=signs)
