"""Two replicas on one PostgreSQL: either may die at any time, and nobody loses anything."""

import secrets
import threading
import time
from contextlib import ExitStack

from sqlalchemy import func, select

from edge_sync.hub.audit import verify
from edge_sync.hub.home import Hub
from edge_sync.store.schema import devices, health, ledger_rows
from edge_sync.trust.trusted import Trusted
from edge_sync.wire import Bundle, EnrolReply, Health, LedgerRow

from .hub_process import GROUP, Device, assign, make_hub, serving

DEVICES = 4
KILLS = 2


def live(device, trusted, *, stop, done):
    """Sync, report a row and follow the policy, again and again; keep what was acknowledged."""
    have, count = trusted.have, 0
    while not stop.is_set():
        row = LedgerRow(
            row_id=secrets.token_hex(16), task="t", pool="p", state="settled", at=time.time()
        )
        reply = device.sync(rows=[row], health=[Health(revision=0, hour=1, tasks=1)], have=have)
        assert not reply.quarantined
        count += 1
        done["rows"].append(row.row_id)
        bundle = reply.bundle
        if bundle is None:
            answer = device.policy(etag=have.etag, root=have.root, wait=0.1)
            assert answer.status_code in {200, 304}, answer.text
            bundle = Bundle.model_validate_json(answer.content) if answer.content else None
        if bundle is not None:
            accepted = trusted.accept(bundle, device_id=device.id, group=GROUP, now=time.time())
            assert accepted.trusted.have.serial >= have.serial
            trusted, have = accepted.trusted, accepted.trusted.have
    done["tasks"][device.id] = count
    done["serial"][device.id] = have.serial


def test_either_replica_may_die_at_any_time(postgres, memory_path):
    home = memory_path / "hub"
    code = make_hub(home, postgres())
    done = {"rows": [], "tasks": {}, "serial": {}, "failed": []}
    stop = threading.Event()
    with ExitStack() as stack, Hub.open(home) as hub:
        replicas = [stack.enter_context(serving(home, name=name)) for name in "ab"]
        urls = [replica.url for replica in replicas]
        threads = []
        for number in range(DEVICES):
            device = Device(urls[number % 2 :] + urls[: number % 2])
            reply = EnrolReply.model_validate_json(device.enrol(code).content)
            trusted = Trusted.start(reply.root.encode(), fingerprint=None)

            def run(device=device, trusted=trusted):
                try:
                    live(device, trusted, stop=stop, done=done)
                except BaseException as error:
                    done["failed"].append(repr(error))
                    raise

            threads.append(threading.Thread(target=run))
        for thread in threads:
            thread.start()
        for kill in range(KILLS):
            time.sleep(0.4)
            serial = assign(hub)
            at = kill % 2
            listen = replicas[at].url.removeprefix("http://")
            replicas[at].kill()
            replicas[at] = stack.enter_context(serving(home, listen=listen, name=f"{kill}"))
        time.sleep(1.0)
        stop.set()
        for thread in threads:
            thread.join(60)
        assert done["failed"] == []
        assert set(done["serial"].values()) == {serial}
        with hub.store.reading() as connection:
            kept = set(connection.execute(select(ledger_rows.c.row_id)).scalars())
            total = connection.execute(select(func.sum(health.c.tasks))).scalar_one()
            states = set(connection.execute(select(devices.c.status)).scalars())
        assert kept == set(done["rows"])
        assert total == sum(done["tasks"].values()) == len(done["rows"])
        assert states == {"active"}
        assert verify(hub.store) is None
