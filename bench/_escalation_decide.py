"""What does one decision cost, and is it the same on replay and on every thread count?

A decision here is all that follows the local answer: the calibration turns its signals into a
confidence with an interval, and ``edge.route.decide`` takes the certified threshold, a rule of the
policy and the price of the budget into account. Replays run in fresh processes with 1 and 2
threads of OpenMP and BLAS, over the same tape and calibration; their bytes are compared by digest.

Run by itself, ``python bench/_escalation_decide.py CALIBRATION TAPE`` prints that digest.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path

from _common import Row, at_least, at_most
from _escalation_promise import KEY
from _escalation_tape import Stream, read_tape

from edge.cloud.pacing import Pacing, advance, limit, spend, start
from edge.confidence.calibration import Calibration
from edge.confidence.fusion import fit_calibration
from edge.policy.rules import read_rules
from edge.route import Action, Circumstances, Plan, Terms, decide, plan
from edge.task import Privacy, Routing, TaskSpec
from edge.types import Draft, Verdict

MOST_US = 50.0
NAME = "banking77"
_COST = 500
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_TASK = TaskSpec(
    kind="classify",
    model="m",
    privacy=Privacy(allow_cloud="raw"),
    routing=Routing(risk=0.05, value_usd=Decimal("0.05")),
)
_RULES = read_rules(
    NAME,
    [("confidence < 0.72 and account_tier == 'enterprise'", None)],
    context={"account_tier": "text"},
)


def one(
    calibration: Calibration,
    draft: Draft,
    the_plan: Plan,
    *,
    price: float,
    tier: str,
) -> tuple[str, Action]:
    """Return a line that holds every bit of a decision, and its action."""
    judged = calibration.judge(KEY, draft.signals)
    verdict = Verdict(valid=True, confidence=None if judged is None else judged.value)
    terms = Terms(
        threshold=0.8,
        certified=True,
        rules=_RULES,
        context={"account_tier": tier},
        cost_microusd=_COST,
        price=price,
    )
    found = decide(_TASK, the_plan, draft, verdict, terms=terms)
    return f"{judged!r} {found!r}", found.action


def drafts(stream: Stream) -> list[Draft]:
    """Return a stream's answers as the runtime holds them."""
    return [
        Draft(value="x", model="m", digest="d", device="cpu", signals=signals)
        for signals in stream.rows()
    ]


def replayed(calibration: Calibration, stream: Stream) -> str:
    """Return the digest of all decisions over a stream, the price moving with what is spent."""
    told = hashlib.sha256()
    made = drafts(stream)
    pacer = start(Pacing(_COST * len(made) // 10, float(len(made)), _COST))
    the_plan = plan(_TASK, Circumstances(offline=False, has_pool=True))
    for at, draft in enumerate(made):
        tier = "enterprise" if at % 3 == 0 else "free"
        line, action = one(calibration, draft, the_plan, price=pacer.price, tier=tier)
        if action is Action.ESCALATE and limit(pacer, _COST) is None:
            pacer = spend(pacer, _COST)
        pacer = advance(pacer)
        told.update(f"{line} {pacer.bar!r}\n".encode())
    return told.hexdigest()


def fitted(prior: Stream, stream: Stream) -> Calibration:
    """Return a calibration of all common signals, with an isotonic stage and an interval."""
    features = [name for name in stream.signals if name in prior.signals]
    correct = prior.right.tolist()
    return fit_calibration(KEY, prior.rows(), correct=correct, features=features)


def deciding(streams: Mapping[str, Stream], tape: Path) -> Iterator[Row]:
    """Yield the time of a decision, and whether replays are the same bit by bit."""
    if NAME not in streams or f"{NAME}-fit" not in streams:
        return
    stream = streams[NAME]
    calibration = fitted(streams[f"{NAME}-fit"], stream)
    yield at_most("decision", _microseconds(calibration, stream), MOST_US, "us")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibration.json"
        calibration.save(path)
        digests = {threads: _in_process(path, tape, threads=threads) for threads in (1, 2)}
    again = replayed(calibration, stream)
    same = float(digests[1] == again)
    yield at_least("decisions bit-identical on replay in another process", same, 1.0)
    same = float(digests[1] == digests[2])
    yield at_least("decisions bit-identical on 1 and 2 threads", same, 1.0)


def _microseconds(calibration: Calibration, stream: Stream) -> float:
    """Return the median over rounds of the mean microseconds of a decision."""
    made = drafts(stream)
    the_plan = plan(_TASK, Circumstances(offline=False, has_pool=True))
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        for draft in made:
            judged = calibration.judge(KEY, draft.signals)
            verdict = Verdict(valid=True, confidence=judged.value if judged else None)
            terms = Terms(
                threshold=0.8,
                certified=True,
                rules=_RULES,
                context={"account_tier": "enterprise"},
                cost_microusd=2_000,
            )
            decide(_TASK, the_plan, draft, verdict, terms=terms)
        times.append((time.perf_counter() - begin) / len(made))
    return statistics.median(times) * 1e6


def _in_process(calibration: Path, tape: Path, *, threads: int) -> str:
    environment = {**os.environ, **dict.fromkeys(_THREADS, str(threads))}
    command = [sys.executable, str(Path(__file__).resolve()), str(calibration), str(tape)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    print(replayed(Calibration.load(Path(sys.argv[1])), read_tape(Path(sys.argv[2]))[NAME]))
