"""What stands over the answers that a runtime keeps: certificate, watch, audits, and labels.

For a task that names a ``risk`` the threshold comes from its calibration's certificate, and a watch
looks at every answer: an alarm takes the next stricter certified threshold. State is in the state
folder, so a restart forgets nothing. Asks no model and no pool; money is ``edge.spending``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from edge.admit import Call
from edge.calibrations import Calibrations
from edge.confidence.calibration import Calibration
from edge.confidence.certificate import Certificate
from edge.confidence.watch import Alarm, Audit, Auditor, Watch, WatchPlan, ticket
from edge.errors import StoreError
from edge.judge import is_right
from edge.local import LocalTask
from edge.route import Terms
from edge.store.cache import Cache
from edge.store.states import States
from edge.types import Draft, Json

NOTHING = math.inf
"""The threshold that keeps nothing."""

_LATE = 10  # parts of a watch's horizon: an outcome older than one comes too late


@dataclass(frozen=True, slots=True)
class Checked:
    """What looking at one answer came to.

    Attributes:
        audit: whether it is to be checked; ``None`` where it was not kept.
        alarm: that this answer raised, or ``None``.
        rung: of the watch while it was answered.
        answers: that the watch had counted by then.

    """

    audit: Audit | None = None
    alarm: Alarm | None = None
    rung: int = 0
    answers: int = 0


NOT_CHECKED = Checked()


class Oversight:
    """The watches of one runtime. Safe to call from several threads and processes.

    Args:
        states: where they are kept.
        calibrations: by model and task.

    """

    def __init__(self, states: States, calibrations: Calibrations) -> None:
        self._states = states
        self._calibrations = calibrations

    def terms(self, task: LocalTask, context: Mapping[str, object]) -> Terms:
        """Return what is asked of a task's answers now.

        Raises:
            ConfigError: the task's calibration cannot be read.
            StoreError: the state of its watch cannot be read.

        """
        found = self._promise(task)
        if found is None:
            return Terms(rules=task.rules, context=context)
        watch = self._watch(task, *found)
        return Terms(
            threshold=NOTHING if watch.threshold is None else watch.threshold,
            certified=True,
            rung=watch.rung,
            rules=task.rules,
            context=context,
        )

    def looked_at(
        self, task: LocalTask, draft: Draft, trace_id: str, *, kept: bool, rung: int
    ) -> Checked:
        """Take one answer of the local model, kept or not at a rung; say whether to audit it.

        Raises:
            StoreError: the state of the watch cannot be written.

        """
        if draft.confidence is None:
            return NOT_CHECKED
        found = self._promise(task)
        audit = self._audit(task, trace_id) if kept else None
        if found is None:
            return Checked(audit)
        certificate, calibration = found
        alarms: list[Alarm | None] = []
        answers: list[int] = []
        confidence = draft.confidence

        def step(before: dict[str, object] | None) -> dict[str, object]:
            watch = self._from(before, task, certificate, calibration)
            answers.append(watch.answers)
            if not kept:
                watch = watch.passed()
            elif watch.rung == rung and audit is not None and not audit.chosen:
                watch = watch.kept()
            after, alarm = watch.seen(
                draft.signals.get("similarity", confidence),
                confidence,
                tickets=(
                    ticket(self._seed, trace_id, "similarity"),
                    ticket(self._seed, trace_id, "confidence"),
                ),
            )
            alarms.append(alarm)
            return after.to_dict()

        self._states.change(_name(task, certificate, calibration), step)
        return Checked(audit, alarms[-1], rung, answers[-1])

    def audited(
        self,
        task: LocalTask,
        trace_id: str,
        *,
        right: bool,
        propensity: float,
        rung: int,
        answers: int,
        at: float,
    ) -> Alarm | None:
        """Take what the cloud said of an audited answer; return the alarm it raised.

        An outcome that comes late is a label but no evidence: many of them at once, as after a time
        offline, would meet bets that saw no answer in between.

        Raises:
            StoreError: it cannot be written.

        """
        self._states.label(trace_id, task=task.name, right=right, source="audit", at=at)
        found = self._promise(task)
        if found is None:
            return None
        alarms: list[Alarm | None] = []

        def step(before: dict[str, object] | None) -> dict[str, object]:
            watch = self._from(before, task, *found)
            if watch.answers - answers > watch.plan.horizon // _LATE:
                alarms.append(None)
                return watch.to_dict()
            after, alarm = watch.audited(wrong=not right, propensity=propensity, rung=rung)
            alarms.append(alarm)
            return after.to_dict()

        self._states.change(_name(task, *found), step)
        return alarms[-1]

    def corrected(
        self, task: LocalTask, trace_id: str, *, right: bool, kept: bool, at: float
    ) -> bool:
        """Take a user's word on an answer; return whether users alone warn of too many errors.

        Only the first word against an answer that was kept counts towards a warning.

        Raises:
            StoreError: it cannot be written.

        """
        new = self._states.label(trace_id, task=task.name, right=right, source="user", at=at)
        found = self._promise(task)
        if found is None or right or not kept or not new:
            return False

        def step(before: dict[str, object] | None) -> dict[str, object]:
            return self._from(before, task, *found).corrected().to_dict()

        after = self._states.change(_name(task, *found), step)
        return Watch.from_dict(after).warned

    def watch_of(self, task: LocalTask) -> Watch | None:
        """Return the state of a task's watch; ``None`` where nothing is promised."""
        found = self._promise(task)
        return None if found is None else self._watch(task, *found)

    @functools.cached_property
    def _seed(self) -> str:
        """What decides which answers are audited: others on every device, the same on replay."""
        device = self._states.read("device") or self._states.change(
            "device", lambda before: before or {"seed": uuid.uuid4().hex}
        )
        return str(device["seed"])

    def _audit(self, task: LocalTask, trace_id: str) -> Audit | None:
        rate = task.spec.routing.audits
        if rate <= 0.0:
            return None
        return Auditor(self._seed, rate=rate, near_rate=rate).pick(trace_id)

    def _promise(self, task: LocalTask) -> tuple[Certificate, Calibration] | None:
        """Return the certificate for what the task asks, and its calibration."""
        routing = task.spec.routing
        if routing.risk is None or task.spec.model is None:
            return None
        calibration = self._calibrations.of(task.spec.model, task.name)
        if calibration is None:
            return None
        certificate = calibration.certificate(routing.risk, contract=routing.contract)
        return None if certificate is None else (certificate, calibration)

    def _watch(self, task: LocalTask, certificate: Certificate, calibration: Calibration) -> Watch:
        before = self._states.read(_name(task, certificate, calibration))
        return self._from(before, task, certificate, calibration)

    def _from(
        self,
        before: Mapping[str, object] | None,
        task: LocalTask,
        certificate: Certificate,
        calibration: Calibration,
    ) -> Watch:
        if before is not None:
            return Watch.from_dict(before)
        rate = task.spec.routing.audits or 0.02
        plan = WatchPlan(
            certificate.alpha,
            _ladder(certificate, calibration),
            rate=rate,
            contract=certificate.contract,
        )
        return Watch.start(
            plan,
            calibration.reference.get("similarity", ()),
            confidences=calibration.reference.get("confidence", ()),
        )


def auditor(
    oversight: Oversight, tasks: Mapping[str, LocalTask], cache: Cache
) -> Callable[[Call, Mapping[str, Any], Json, Json], None]:
    """Return what takes the cloud's word on a kept answer that was picked for an audit."""

    def audited(call: Call, about: Mapping[str, Any], own: Json, answer: Json) -> None:
        right = is_right(own, answer)
        if not right:
            with suppress(StoreError):
                cache.forget_trace(call.trace_id)
        oversight.audited(
            tasks.get(str(about.get("tier")), call.local),
            call.trace_id,
            right=right,
            propensity=float(about["propensity"]),
            rung=int(about["rung"]),
            answers=int(about["answers"]),
            at=time.time(),
        )

    return audited


def _ladder(certificate: Certificate, calibration: Calibration) -> tuple[float, ...]:
    """Return the thresholds of this promise and of all stricter ones, rising."""
    stricter = {
        each.threshold
        for each in calibration.certificates
        if each.contract == certificate.contract and each.threshold >= certificate.threshold
    }
    return tuple(sorted(stricter))


def _name(task: LocalTask, certificate: Certificate, calibration: Calibration) -> str:
    """Name a watch; another certificate, or another ladder above it, has another one."""
    return f"watch/{task.name}/{_digest(certificate, _ladder(certificate, calibration))}"


@functools.lru_cache(maxsize=64)
def _digest(certificate: Certificate, ladder: tuple[float, ...]) -> str:
    whole = json.dumps([asdict(certificate), ladder], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:32]
