"""How a device gets its agent: over a runtime that an app has opened, or over a pack alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import httpx

import edge
from edge.errors import ConfigError, LoadError, SyncError
from edge.store.policies import Policies
from edge_sync.agent.activation import Activation, Runs
from edge_sync.agent.device import Device, Senses
from edge_sync.agent.exchange import Exchange
from edge_sync.agent.loop import Agent
from edge_sync.agent.report import Records

CODE, MIRRORS = "EDGE_HUB_CODE", "EDGE_HUB_MIRRORS"
"""Names of environment variables: an enrolment code, and URLs with commas between them."""


class Host(Runs, Protocol):
    """What an agent needs of a runtime; ``edge.Runtime`` is one."""

    @property
    def policies(self) -> Policies:
        """The policy file."""


class Standalone:
    """Checks and activates policies where no app runs; models are loaded for that time only.

    Args:
        pack: name or file of the pack that policies are laid over.
        state: the state folder.

    """

    def __init__(self, pack: str, state: Path) -> None:
        self._pack = pack
        self._state = state

    def activate(
        self,
        document: bytes | None,
        *,
        stopped: Mapping[str, Sequence[str]] | None = None,
        tightened: bool | None = None,
        check: bool = True,
        trust: Mapping[str, bytes] | None = None,
        etag: str | None = None,
    ) -> None:
        """See ``edge.Runtime.activate``.

        Raises:
            SyncError: the pack itself cannot be opened, which is not the policy's fault.

        """
        try:
            runtime = edge.open(self._pack, state=self._state, offline=True)
        except (ConfigError, LoadError) as error:
            raise SyncError(
                f"No policy can be taken, because the pack cannot be opened: {error.message}",
                hint=error.hint,
            ) from error
        with runtime:
            runtime.activate(
                document, stopped=stopped, tightened=tightened, check=check, trust=trust, etag=etag
            )


def start(
    runtime: Host,
    url: str,
    *,
    code: str | None = None,
    name: str = "",
    pack: str = "",
    env: Mapping[str, str] = os.environ,
) -> Agent:
    """Start the agent of a runtime; returns at once, and never waits for the hub.

    The device joins with the code when the hub first answers; a device that has joined needs none.

    Args:
        runtime: whose policy to keep current.
        url: of the hub; several replicas with commas between them.
        code: enrolment code; ``EDGE_HUB_CODE`` where ``None``.
        name: what people call the device.
        pack: name of the runtime's pack, for the report.
        env: the environment.

    Raises:
        ConfigError: the URL is none.
        StoreError: the state folder cannot be used.

    """
    state = Path(str(runtime.policies.inspect()["path"])).parent
    device, exchange = open_device(runtime, url, state=state, pack=pack, env=env)
    told = env.get(CODE, "") if code is None else code
    agent = Agent(device, exchange, code=told, name=name, boot_s=Senses().boot_s)
    agent.start()
    return agent


def open_device(
    runs: Runs,
    url: str,
    *,
    state: Path,
    pack: str,
    env: Mapping[str, str] = os.environ,
    transport: httpx.AsyncBaseTransport | None = None,
    senses: Senses | None = None,
) -> tuple[Device, Exchange]:
    """Open a device over a state folder, without a thread; raises as ``start``.

    Args:
        runs: checks policies and puts them in force.
        url: of the hub.
        state: the state folder.
        pack: name of the pack.
        env: the environment.
        transport: what carries the requests; the network where ``None``.
        senses: clocks and randomness.

    """
    exchange = Exchange(_listed(url), transport=transport)
    with ExitStack() as undo:
        policies = undo.enter_context(Policies.open(state))
        records = Records.open(state)
        undo.pop_all()
    activation = Activation(
        state,
        policies,
        runs,
        exchange,
        runtime=f"{edge.__version__} {pack}",
        mirrors=_listed(env.get(MIRRORS, "")),
    )
    return Device(records, policies, exchange, activation, pack=pack, senses=senses), exchange


def _listed(urls: str) -> list[str]:
    return [url.strip() for url in urls.split(",") if url.strip()]
