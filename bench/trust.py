"""How long does a device verify a bundle, and does it ever take one that was tampered with?

Changed bundles and attacks are those of ``tests/contract``: a bundle is changed by bytes, by fields
of its JSON, or by parts of other bundles, and counts as taken where anything that is signed differs
from the good one. Verification is timed after a rotation of the root, on a hub with 50 and with 200
published policies; the policy has some 8 kB. Times are the processor's where no clock is named.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from random import Random

from _common import ROOT, Row, at_most, main

from edge_sync.trust.assignment import policy_path
from edge_sync.trust.repository import Repository
from edge_sync.trust.trusted import REFUSALS, Trusted
from edge_sync.wire import Bundle

sys.path.insert(0, str(ROOT / "tests" / "contract"))

from attacks import ATTACKS, Attack
from mutation import LEVELS, OTHER, SAME, Stage, mutate, set_stage

NOW = 1_800_000_000.0
DEVICE, GROUP, REQUEST = "d" * 32, "kiosks", "a" * 32
FEW, MANY = 50, 200
SEED = 20_261_124


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows."""
    rounds, changed = (200, 6_000) if arguments.quick else (2_000, 100_000)
    yield Row("python-tuf", version("tuf"), "")
    yield from verification(rounds)
    yield from attacks()
    yield from changes(changed)


def verification(rounds: int) -> Iterator[Row]:
    """Time the device's side and the hub's."""
    yield from verify(rounds, FEW)
    yield from verify(rounds // 4, MANY)
    hub, held, _ = fleet(FEW)
    attested = hub.sign_time(REQUEST, now=NOW)
    rows: tuple[tuple[str, Callable[[], object]], ...] = (
        ("verify the hub's time", lambda: held.time(attested, request_id=REQUEST)),
        ("sign the hub's time", lambda: hub.sign_time(REQUEST, now=NOW)),
        ("sign an assignment", lambda: assign(hub, FEW)),
        ("publish a policy", lambda: hub.publish({}, now=NOW)),
    )
    for name, work in rows:
        yield Row(f"{name}: p50", ms(timed(work, rounds // 4)[1], 0.5), "ms")


def verify(rounds: int, policies: int) -> Iterator[Row]:
    """Time a device that verifies what is new, and one that loads first what it kept."""
    _, held, new = fleet(policies)
    state, name = held.state, f"{policies} policies"
    yield Row(f"{name}: bundle", len(new.model_dump_json()), "bytes")
    wall, processor = timed(lambda: accept(held, new), rounds)
    yield at_most(f"{name}: verify, p50", ms(processor, 0.5), 10, "ms")
    yield at_most(f"{name}: verify, p99", ms(processor, 0.99), 10, "ms")
    yield Row(f"{name}: verify, p50 by the wall's clock", ms(wall, 0.5), "ms")
    wall, processor = timed(lambda: accept(Trusted.load(state), new), rounds)
    yield Row(f"{name}: load and verify, p50", ms(processor, 0.5), "ms")


def fleet(policies: int) -> tuple[Repository, Trusted, Bundle]:
    """Return a hub, the trust of a device that knows its first policy, and the newest bundle."""
    with tempfile.TemporaryDirectory() as folder:
        hub = Repository.create(Path(folder) / "keys", now=NOW)
        trusted = Trusted.start(hub.root.data, fingerprint=hub.fingerprint)
        hub = hub.publish({policy_path(n): document(n) for n in range(1, policies + 1)}, now=NOW)
        held = accept(trusted, bundle(hub, 1))
        hub = hub.rotate("root", now=NOW).refresh_timestamp(now=NOW)
        return hub, held, bundle(hub, policies, hub.root.data)


def attacks() -> Iterator[Row]:
    """Run the attack list."""
    taken = [case.name for case in ATTACKS if not refused(case)]
    for name in taken:
        print(f"taken: {name}", file=sys.stderr)
    yield Row("attacks", len(ATTACKS), "")
    yield at_most("attacks taken", len(taken), 0)


def changes(count: int) -> Iterator[Row]:
    """Judge changed bundles, as many at each level."""
    stage, random = set_stage(), Random(SEED)  # noqa: S311 - the same bundles in each run
    found: Counter[tuple[str, str]] = Counter()
    start = time.perf_counter()
    for at in range(count):
        level = LEVELS[at % len(LEVELS)]
        found[level, stage.judge(really_changed(stage, random, level))] += 1
    took = time.perf_counter() - start
    yield Row("changed bundles", count, f"seed {SEED}")
    for level in LEVELS:
        yield at_most(f"changed by {level}: taken", found[level, OTHER], 0)
        yield Row(f"changed by {level}: taken as the good one", found[level, SAME], "")
    yield Row("changed bundles judged a second", round(count / took), "")


def really_changed(stage: Stage, random: Random, level: str) -> Bundle:
    """Return a changed bundle that is not the good one by chance."""
    while True:
        found = mutate(stage, random, level=level)
        if found != stage.bundle:
            return found


def refused(case: Attack) -> bool:
    """Whether a device refuses an attack."""
    device, hostile = case.run()
    try:
        device.take(hostile)
    except REFUSALS:
        return True
    return False


def accept(trusted: Trusted, found: Bundle) -> Trusted:
    """Return the trust after a bundle."""
    return trusted.accept(found, device_id=DEVICE, group=GROUP, now=NOW).trusted


def assign(repository: Repository, revision: int) -> bytes:
    """Return an assignment whose serial is the revision."""
    return repository.assign(serial=revision, now=NOW, group=GROUP, revision=revision)


def bundle(repository: Repository, revision: int, *roots: bytes) -> Bundle:
    """Return what a hub would send."""
    files = repository.files
    return Bundle(
        roots=[root.decode() for root in roots],
        timestamp=files["timestamp"].decode(),
        snapshot=files["snapshot"].decode(),
        targets=files["targets"].decode(),
        assignment=assign(repository, revision).decode(),
        policy=document(revision).decode(),
    )


def document(revision: int) -> bytes:
    """Return a policy of some 8 kB."""
    rules = [{"when": f"confidence < 0.{n:02}", "then": "escalate"} for n in range(150)]
    return json.dumps({"format": "edge-policy-1", "revision": revision, "rules": rules}).encode()


def timed(work: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each call by the wall's clock and the processor's, each sorted."""
    work()
    wall, processor = [], []
    for _ in range(rounds):
        start, used = time.perf_counter(), time.process_time()
        work()
        processor.append(time.process_time() - used)
        wall.append(time.perf_counter() - start)
    return sorted(wall), sorted(processor)


def ms(times: list[float], share: float) -> float:
    """Return a quantile in milliseconds."""
    return round(times[min(len(times) - 1, int(share * len(times)))] * 1_000, 3)


if __name__ == "__main__":
    main("trust", measure)
