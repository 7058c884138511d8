"""Simulated devices that follow the whole protocol while policies are published."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from _hub_load import Answer, Line, connect, get
from _hub_server import Serving, Simulated, sync_request
from sqlalchemy import select

from edge_sync.hub.home import Hub
from edge_sync.hub.policies import check, publish
from edge_sync.store.schema import devices
from edge_sync.trust.trusted import Trusted
from edge_sync.wire import Bundle, SyncReply

_POLICY = """
task_budgets:
  max_output_tokens: {number}
"""
_SETTLE_S = 3.0


@dataclass
class Shared:
    """What all simulated devices of one hub have in common.

    Attributes:
        trusted: trust and revision by version tag; the same bytes lead each device to the same.
        verified_s: what the verifications took, each.
        activated: device, revision and time of each activation.
        wanted: how many activations are waited for.
        reached: set when there are as many.

    """

    trusted: dict[str, tuple[Trusted, int]]
    group: str
    verified_s: list[float] = field(default_factory=list)
    activated: list[tuple[str, int, float]] = field(default_factory=list)
    wanted: int = 0
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def activate(self, device_id: str, revision: int) -> None:
        """Take the time of an activation."""
        self.activated.append((device_id, revision, time.perf_counter()))
        if len(self.activated) == self.wanted:
            self.reached.set()

    def accept(self, held: str, answer: Answer, device_id: str) -> tuple[Trusted, int]:
        """Return trust and revision after an answer; the first device with it verifies it."""
        etag = answer.header(b"etag")
        known = self.trusted.get(etag)
        if known is None:
            began = time.perf_counter()
            bundle = Bundle.model_validate_json(answer.body)
            accepted = self.trusted[held][0].accept(
                bundle, device_id=device_id, group=self.group, now=time.time()
            )
            self.verified_s.append(time.perf_counter() - began)
            document = json.loads(accepted.document_bytes or b"{}")
            known = self.trusted[etag] = accepted.trusted, document["revision"]
        return known


async def publishing(
    hub: Serving, home: Path, fleet: list[Simulated], *, group: str, rounds: int
) -> tuple[list[float], float]:
    """Return the seconds from each publish to each activation, and milliseconds of one check.

    The clock starts before the admin's command begins to sign.
    """
    with Hub.open(home) as admin:
        root = admin.repository.root.data
        shared = Shared({'"1.0.0"': (Trusted.start(root, fingerprint=None), 0)}, group)
        running = [asyncio.create_task(_live(hub, one, shared)) for one in fleet]
        times: list[float] = []
        for number in range(rounds + 1):
            await asyncio.sleep(_SETTLE_S)
            shared.activated.clear()
            shared.wanted = len(fleet)
            shared.reached.clear()
            began = time.perf_counter()
            made = await asyncio.to_thread(_publish, admin, group, number)
            async with asyncio.timeout(60):
                await shared.reached.wait()
            if number:  # the first brings everybody the first metadata
                times += [at - began for _, _, at in shared.activated]
        await asyncio.sleep(_SETTLE_S)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        _require_reported(admin, made, len(fleet))
    return times, 1_000 * sum(shared.verified_s) / len(shared.verified_s)


def _publish(admin: Hub, group: str, number: int) -> int:
    text = _POLICY.format(number=50 + number).encode()
    checked = check(admin, text, what="bench.yaml")
    return publish(admin, checked, message="bench", who="bench", at_once=[group]).revision


def _require_reported(admin: Hub, revision: int, count: int) -> None:
    """See that the hub knows what every device runs."""
    with admin.store.reading() as connection:
        found = list(connection.execute(select(devices.c.revision)).scalars())
    if found != [revision] * count:
        raise SystemExit(f"{found.count(revision)} of {count} devices reported {revision}")


async def _live(hub: Serving, one: Simulated, shared: Shared) -> None:
    """Wait, verify, activate, sync, and wait again."""
    line: Line = await connect(hub.port)
    held = '"1.0.0"'
    while True:
        path = f"/v1/policy?wait=60&root={held[1:].partition('.')[0]}"
        answer = await line.ask(get(path, token=one.token, etag=held))
        if answer.status == 304:
            continue
        if answer.status != 200:
            raise SystemExit(f"the hub answered {answer.status}: {answer.body.decode()}")
        trusted, revision = shared.accept(held, answer, one.id)
        held = answer.header(b"etag")
        shared.activate(one.id, revision)
        await asyncio.sleep(0)  # other devices have processors of their own: their turn first
        reply = await line.ask(sync_request(one, rows=1, have=trusted.have))
        one.nonce = SyncReply.model_validate_json(reply.body).nonce
