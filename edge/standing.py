"""What a runtime goes by now: everything that follows from the pack and the policy in force.

A ``Standing`` is one frozen value. A call takes the one in force once and uses it to its end, while
the next one may be built beside it. What outlives a policy (files, models in memory, open pools) is
the ``Ground`` that all of them stand on. Does not know where a policy comes from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge.admit import Call, admit, check_context
from edge.backends.onnx.choice import FILE as DEVICE_CHOICES
from edge.backends.residency import Residency
from edge.calibrations import Calibrations
from edge.cloud.pools import Pools
from edge.considering import Considered, Considering
from edge.drain import Draining
from edge.errors import EdgeError, InputError, PolicyError, StoreError
from edge.escalate import Escalation, Outcome
from edge.keeping import ENCODER, similar_in
from edge.local import LocalModels, LocalTask
from edge.lookup import Looked, Lookup
from edge.oversight import Oversight, auditor
from edge.quality import Quality
from edge.record import Recorder
from edge.roster import Fitted
from edge.route import Action, Circumstances, Plan
from edge.spending import Spending
from edge.store.book import Book
from edge.store.cache import Cache
from edge.store.policies import Policies, Switches
from edge.store.states import States
from edge.store.traces import Traces
from edge.store.weights import ModelStore
from edge.task import Pack, PoolSpec
from edge.types import Draft, Reason, Result

if TYPE_CHECKING:
    from edge.cloud.pool import Pool

Needs = frozenset[tuple[str, tuple[str, ...]]]
"""Models by name and version."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What outlives a policy."""

    state: Path
    offline: bool
    threads: int | None
    residency: Residency
    book: Book
    traces: Traces
    states: States
    policies: Policies
    cache: Cache
    pools: Pools

    @classmethod
    def open(
        cls,
        pack: Pack,
        state: Path,
        *,
        offline: bool,
        threads: int | None,
        open_pool: Callable[[str], Pool] | None,
    ) -> Ground:
        """Open the files of a state folder; no money may be spent before there is a standing.

        Raises:
            StoreError: the folder cannot be used.

        """
        memory = pack.memory
        room = Residency(memory.budget_bytes, keep_alive_s=memory.keep_alive_s, pinned=memory.pin)
        with ExitStack() as opened:
            book = Book.open(state, cap_microusd=None, period="month")
            opened.callback(book.close)
            traces = opened.enter_context(Traces.open(state))
            states = States.open(state)
            opened.callback(states.close)
            policies = opened.enter_context(Policies.open(state))
            opened.pop_all()  # all are open: from here on ``close`` sees to them
        cache, pools = Cache(state), Pools(open_pool, state=state)
        return cls(state, offline, threads, room, book, traces, states, policies, cache, pools)

    def close(self) -> None:
        """Free models, clients and files; calling twice is harmless."""
        self.residency.close()
        self.pools.close()
        self.cache.close()
        self.policies.close()
        self.states.close()
        self.traces.close()
        self.book.close()


@dataclass(frozen=True, slots=True)
class World:
    """What is the same for all calls under one standing.

    Attributes:
        pools: by name.
        tightened: the policy has expired.
        stopped: tasks that the fleet stopped.
        halted: tasks whose local model it stopped.

    """

    offline: bool
    pools: Mapping[str, PoolSpec]
    tightened: bool = False
    stopped: Collection[str] = ()
    halted: Collection[str] = ()

    def of(self, call: Call) -> Circumstances:
        """Return a call's circumstances."""
        return Circumstances(
            offline=self.offline,
            has_pool=call.spec.routing.pool in self.pools,
            tightened=self.tightened,
            stopped=call.name in self.stopped,
            halted=call.name in self.halted,
        )

    def runs(self, task: str) -> bool:
        """Whether a task's local model may be asked."""
        return task not in self.stopped and task not in self.halted


@dataclass(frozen=True, slots=True, eq=False)
class Footing:
    """What follows from a pack alone, whatever the fleet stops.

    Attributes:
        pack: with the policy laid over it.
        revision: of that policy; 0 for none, and for one that no hub numbered.
        needed: the models of each task.
        needs: the models that all of them use, and what tells similar texts.

    """

    pack: Pack
    revision: int
    tasks: Mapping[str, LocalTask]
    needed: Mapping[str, Needs]
    needs: Needs
    models: LocalModels
    oversight: Oversight
    spending: Spending
    escalation: Escalation
    quality: Quality


@dataclass(frozen=True, slots=True, eq=False)
class Standing(Footing):
    """Everything that one call goes by; made by ``stand`` and ``switched``.

    Attributes:
        switches: what the fleet stopped.
        tools: that may not be called, with the reason.

    """

    switches: Switches
    tools: Mapping[str, Reason]
    world: World
    considering: Considering
    lookup: Lookup
    recorder: Recorder
    draining: Draining

    def admit(self, task: str, text: str, context: Mapping[str, object] | None) -> Call:
        """Return the admitted call; raises as ``edge.admit``."""
        call = admit(self.tasks, task, text)
        told = check_context(context, self.pack.context)
        return replace(call, context=told, stance=self.quality.begin(task))

    @contextmanager
    def traced(self, call: Call) -> Iterator[None]:
        """Leave a trace also where answering fails; bad input leaves none, and says nothing."""
        failed: bool | None = None
        try:
            yield
            failed = False
        except InputError:
            raise
        except EdgeError as error:
            failed = True
            with suppress(EdgeError):  # it must not hide the cause
                self.recorder.failed(call, error)
            raise
        finally:
            self.quality.ended(call, failed=failed)

    def finish(self, call: Call, the_plan: Plan, draft: Draft | None, looked: Looked) -> Result:
        """Judge, decide, escalate where it was decided so, record, and remember."""
        found = self.considering.consider(call, the_plan, draft)
        if found.decision.action is not Action.KEEP:
            looked = self.lookup.instead(call, looked)
            if looked.result is not None:
                return looked.result
        outcome = None
        if found.decision.action is Action.ESCALATE:
            outcome = self._escalate(call, found)
        result = self.recorder.record(call, the_plan, found, outcome)
        self.lookup.remember(call, looked, found, result)
        if call.spec.routing.value_usd is not None:
            with suppress(StoreError):  # what only advises never costs an answer
                self._paid(call, the_plan, outcome)
        return result

    def check_runs(self, call: Call) -> None:
        """Make sure that a task's local model may be asked.

        Raises:
            PolicyError: the task or its model is stopped.

        """
        if not self.world.runs(call.name):
            raise PolicyError(
                f"Task {call.name} or its model is stopped by the fleet's policy.",
                hint="Ask the fleet's admin.",
            )

    def check_model(self, name: str) -> None:
        """Make sure that a model may be asked; raises as ``check_runs``."""
        if name in self.switches.stopped["models"]:
            raise PolicyError(
                f"Model {name} is stopped by the fleet's policy.", hint="Ask the fleet's admin."
            )

    def _paid(self, call: Call, the_plan: Plan, outcome: Outcome | None) -> None:
        """Let the price of the budget follow what was spent."""
        self.spending.passed(
            call,
            outcome.cost_microusd if outcome else 0,
            reachable=the_plan.cloud_blocked is None,
        )

    def _escalate(self, call: Call, found: Considered) -> Outcome:
        pool = found.decision.pool
        return self.escalation.ask(
            call.name,
            call.spec if pool is None else call.spec.asking(pool),
            call.text,
            trace_id=call.trace_id,
            labels=self.models.labels(call.local),
            draft=found.draft,
            calls_left=call.allowance.calls_left,
            allowance=call.allowance,
        )


def stand(ground: Ground, fitted: Fitted, *, revision: int, switches: Switches) -> Standing:
    """Build what follows from a pack; loads no weights and changes nothing of the ground.

    Raises:
        ConfigError: a calibration cannot be read.
        LoadError: the manifest of a model is not valid.

    """
    pack, tasks, store = fitted.pack, fitted.tasks, fitted.store
    models = _models(ground, pack, store)
    needed = {name: _needed(task, store) for name, task in tasks.items()}
    telling = _named([ENCODER] if similar_in(tasks) else [], store)
    footing = Footing(
        pack=pack,
        revision=revision,
        tasks=tasks,
        needed=needed,
        needs=telling.union(*needed.values()),
        models=models,
        oversight=Oversight(ground.states, models.calibrations),
        spending=_spending(ground, pack, models),
        escalation=Escalation(
            ground.book, open_pool=functools.partial(ground.pools.get, specs=pack.pools)
        ),
        quality=Quality({name: task.spec for name, task in tasks.items()}, ground.states),
    )
    return switched(ground, footing, switches)


def switched(ground: Ground, on: Footing, switches: Switches) -> Standing:
    """Return what stands on a footing under these switches; reads nothing, so it cannot fail."""
    stopped = frozenset(switches.stopped["models"])
    world = World(
        ground.offline,
        on.pack.pools,
        switches.tightened,
        frozenset(switches.stopped["tasks"]),
        frozenset(name for name, models in on.needed.items() if stopped & {*dict(models)}),
    )
    tools = _denied_tools(on.pack, switches)
    return Standing(
        **{each.name: getattr(on, each.name) for each in fields(Footing)},
        switches=switches,
        tools=tools,
        world=world,
        considering=Considering(
            on.tasks,
            on.models,
            oversight=on.oversight,
            spending=on.spending,
            passed_over=[name for name in on.tasks if not world.runs(name)],
        ),
        lookup=Lookup(
            ground.cache,
            on.tasks,
            on.models,
            oversight=on.oversight,
            traces=ground.traces,
            pools=on.pack.pools,
            runs=world.runs,
            stopped=world.stopped,
            tools=tools,
            may_embed=ENCODER not in stopped,
            revision=on.revision,
        ),
        recorder=Recorder(on.pack, ground.book, ground.traces, revision=on.revision, tools=tools),
        draining=Draining(
            ground.book,
            on.tasks,
            on.escalation,
            pack=on.pack.name,
            labels=on.models.labels,
            circumstances=world.of,
            audited=auditor(on.oversight, on.tasks, ground.cache),
            spares=on.spending.spares,
            tools=tools,
        ),
    )


def _models(ground: Ground, pack: Pack, store: ModelStore) -> LocalModels:
    return LocalModels(
        store,
        threads=ground.threads,
        residency=ground.residency,
        choices=ground.state / DEVICE_CHOICES,
        snapshots=ground.state / "kv",
        calibrations=Calibrations(store, ground.state, carried=pack.calibration),
    )


def _spending(ground: Ground, pack: Pack, models: LocalModels) -> Spending:
    return Spending(
        ground.states,
        pack.budget,
        pack.pools,
        labels=models.labels,
        outlay=lambda: ground.book.ledger.outlay_microusd(),  # noqa: PLW0108 - a limit swaps it
    )


def _needed(task: LocalTask, store: ModelStore) -> Needs:
    """Return the model of a task and the encoder below it."""
    if task.spec.model is None:
        return frozenset()
    encoder = store.manifest(task.spec.model).encoder
    return _named([task.spec.model, *([encoder.name] if encoder else [])], store)


def _named(names: Sequence[str], store: ModelStore) -> Needs:
    return frozenset((name, store.version(name)) for name in names)


def _denied_tools(pack: Pack, switches: Switches) -> dict[str, Reason]:
    denied = {name: Reason.TOOL_DENIED for name, tool in pack.tools.items() if not tool.allow}
    return denied | dict.fromkeys(switches.stopped["tools"], Reason.STOPPED)
