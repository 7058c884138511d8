"""What ``edge simulate`` works with: recorded tasks of a state folder, and the policies to try."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.asking import question
from edge.calibrations import Calibrations
from edge.cloud.pricing import worst_case_microusd
from edge.errors import InputError
from edge.lab.simulating import Policy, Seen, seen
from edge.local import LocalModels, LocalTask, calibration_key
from edge.pack import find_pack, load_pack
from edge.roster import all_tasks, check_models, model_store
from edge.route import Circumstances, Terms, plan
from edge.store.states import States
from edge.store.traces import Traces
from edge.task import PoolSpec
from edge.types import Draft, Reason

_ALL = 2**62
Labels = dict[str, tuple[bool, str]]


@dataclass(frozen=True, slots=True)
class Trial:
    """A policy to try on one task, and what has to be said of it."""

    policy: Policy
    notes: tuple[str, ...]


_OTHERS_DRAFT = frozenset({Reason.NEXT_TIER, Reason.DEGRADED})


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a state folder holds.

    Attributes:
        traces: by task, the oldest first; each list holds at least one.
        unread: how many have no signals.
        next_tier: how many, by task, have another model's draft in place of the task's own, or one
            that a degrade step made.

    """

    traces: Mapping[str, list[Seen]]
    unread: int
    next_tier: Mapping[str, int]


def recorded(state: Path, task: str | None) -> Recorded:
    """Return the recorded tasks that can be replayed, and how many cannot.

    Raises:
        InputError: the state folder has no traces, or none that can be replayed.
        StoreError: they cannot be read.

    """
    rows = []
    if (state / "traces.db").is_file():
        with contextlib.closing(Traces.open(state)) as traces:
            rows = traces.latest(_ALL, task)
    if not rows:
        of = f" of task {task}" if task else ""
        raise InputError(
            f"The state folder {state} has no traces{of}.", hint="Pass the --state of the runtime."
        )
    found = _sorted(reversed(rows))
    if not found.traces:
        raise InputError(
            f"None of {len(rows)} recorded tasks can be replayed: {found.unread} have no signals, "
            f"{sum(found.next_tier.values())} went to the next tier or were degraded.",
            hint="Run the task without `then`, or pass another --state.",
        )
    return found


def _sorted(rows: Iterable[Mapping[str, Any]]) -> Recorded:
    traces: dict[str, list[Seen]] = defaultdict(list)
    above: Counter[str] = Counter()
    unread = 0
    for row in rows:
        made = seen(row)
        if not _OTHERS_DRAFT.isdisjoint(row["reasons"]):
            above[row["task"]] += 1
        elif made is None:
            unread += 1
        else:
            traces[row["task"]].append(made)
    return Recorded(dict(traces), unread, above)


def known_labels(state: Path) -> Labels:
    """Return what users and audits said of single answers, by trace id."""
    if not (state / "states.db").is_file():
        return {}
    with contextlib.closing(States.open(state)) as states:
        return {trace: (right, source) for trace, (right, source) in states.labels().items()}


def trials(
    pack: str, state: Path, names: set[str], *, keep_above: float | None, risk: float | None
) -> dict[str, Trial]:
    """Return the policy of each task that the pack has.

    Args:
        pack: a name or a file.
        state: the folder, for its own tasks, models and calibrations.
        names: of tasks.
        keep_above: in place of the pack's.
        risk: in place of the pack's.

    Raises:
        ConfigError: the pack or a calibration cannot be read.

    """
    loaded = load_pack(find_pack(pack))
    tasks = {n: t for n, t in all_tasks(loaded, state).items() if n in names}
    store = model_store(loaded, state)
    check_models(tasks, store)
    calibrations = Calibrations(store, state)
    with contextlib.closing(LocalModels(store, calibrations=calibrations)) as models:
        found = {}
        for name, task in sorted(tasks.items()):
            tried = _routed(task, keep_above, risk)
            pool = loaded.pools.get(tried.spec.routing.pool)
            labels = models.labels(tried) if pool else ()
            found[name] = _trial(tried, calibrations, pool, labels)
        return found


def _routed(task: LocalTask, keep_above: float | None, risk: float | None) -> LocalTask:
    update: dict[str, float | None] = {}
    if keep_above is not None:
        update = {"keep_above": keep_above, "risk": None}
    elif risk is not None:
        update = {"risk": risk}
    routing = task.spec.routing.model_copy(update=update)
    return replace(task, spec=task.spec.model_copy(update={"routing": routing}))


def _trial(
    task: LocalTask,
    calibrations: Calibrations,
    pool: PoolSpec | None,
    labels: tuple[str, ...],
) -> Trial:
    terms, notes = _terms(task, calibrations)
    if task.spec.routing.then is not None:
        notes.append(f"The next tier, {task.spec.routing.then}, is not replayed.")
    if task.rules:
        notes.append("Conditions see the signals; traces hold nothing of the app's context.")
    return Trial(
        Policy(
            task=task.spec,
            plan=plan(task.spec, Circumstances(offline=False, has_pool=pool is not None)),
            terms=terms,
            confidence=_confidence(task, calibrations),
            price=_price(task, pool, labels) if pool else None,
        ),
        tuple(notes),
    )


def _terms(task: LocalTask, calibrations: Calibrations) -> tuple[Terms, list[str]]:
    """Return what the task's certificate asks of an answer, as the runtime's oversight does."""
    risk = task.spec.routing.risk
    if risk is None or task.spec.model is None:
        return Terms(rules=task.rules), []
    calibration = calibrations.of(task.spec.model, task.name)
    contract = task.spec.routing.contract
    found = calibration.certificate(risk, contract=contract) if calibration else None
    if found is None:
        note = f"No certificate within {100 * risk:.3g} %: nothing is kept. Run edge calibrate."
        return Terms(rules=task.rules), [note]
    terms = Terms(threshold=found.threshold, certified=True, rules=task.rules)
    return terms, [f"Certified: kept from a confidence of {found.threshold:.4f} on."]


def _confidence(task: LocalTask, calibrations: Calibrations) -> Callable[[Draft], float | None]:
    """Return how the runtime would judge a recorded draft now."""

    def judged(draft: Draft) -> float | None:
        calibration = calibrations.of(task.spec.model, task.name) if task.spec.model else None
        if calibration is None:
            return draft.confidence
        return calibration.confidence(calibration_key(task, draft), draft.signals)

    return judged


def _price(task: LocalTask, pool: PoolSpec, labels: tuple[str, ...]) -> Callable[[int], int]:
    def worst(chars: int) -> int:
        asked = question(task.spec, "x" * chars, labels=labels)
        return worst_case_microusd(
            pool.price, asked.messages, asked.max_tokens, response_schema=asked.schema
        )

    return worst
