"""What becomes of tasks that had to wait, on its way to the app.

Guarantees: what ends (answered, given up, expired, cancelled) is handed out at least once, across
restarts: it counts as taken only after the app's function returned, or the app asked for the next
one. A failing function keeps its result untaken and holds up no other. Starts no thread: functions
are called in the thread that drains or registers, one at a time. Of several processes over one
state folder any one takes a result. What the fleet has stopped since is not given out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from edge.route import denied
from edge.standing import Standing
from edge.store.queue import Queue
from edge.store.queued import QueuedTask
from edge.types import Json, Reason, Result, Route

Taker: TypeAlias = Callable[[Result], object]
Failed: TypeAlias = dict[str, Exception]
"""What the app's functions raised, by id of the task."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


class Upgrades:
    """The results that wait for the app.

    Args:
        queue: of the state folder.
        pack: only tasks of this pack are handed out.
        standing: returns what is in force.
        clock: seconds, monotonic.
        sleep: waits for so many seconds.

    """

    def __init__(
        self,
        queue: Queue,
        *,
        pack: str,
        standing: Callable[[], Standing],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._queue = queue
        self._pack = pack
        self._standing = standing
        self._clock = clock
        self._sleep = sleep
        self._takers: list[Taker] = []
        self._turn = threading.Lock()
        self._due = False

    def on(self, taker: Taker) -> None:
        """Hand results to a function from now on, those that wait already at once."""
        self._takers.append(taker)
        failed: Failed = {}
        self.deliver(failed)
        raise_first(failed)

    def deliver(self, failed: Failed) -> None:
        """Hand out what waits for the app, if a function takes it.

        Another thread that does so already sees to it.

        Args:
            failed: what functions raised so far, by id of the task; those are passed over, and
                what is raised now is added.

        """
        self._due = True
        while self._due and self._takers and self._turn.acquire(blocking=False):
            try:
                self._due = False
                self._hand_out(failed)
            finally:
                self._turn.release()

    def waiting(self) -> list[tuple[QueuedTask, Result]]:
        """Return what has ended and was not taken, the oldest first, with the tasks."""
        self._queue.expire()
        standing = self._standing()
        untold = self._queue.untold(self._pack)
        return [(each, result_of(each, standing)) for each in untold if _may_leave(each, standing)]

    async def stream(self, *, poll_s: float, follow: bool) -> AsyncGenerator[Result, None]:
        """Yield results; each is taken once the next one is asked for."""
        import asyncio

        while True:
            ended = await asyncio.to_thread(self.waiting)
            for task, result in ended:
                yield result
                await asyncio.to_thread(self._queue.take, task)
            if not ended and not follow:
                return
            if not ended:
                await asyncio.sleep(poll_s)

    def wait(self, name: str, timeout_s: float) -> Result | None:
        """Return what came of a task, taken; ``None`` where it has not ended in time."""
        until, pause_s = self._clock() + timeout_s, _FIRST_PAUSE_S
        task_id = self._queue.find(name).id
        while True:
            self._queue.expire()
            task, standing = self._queue.find(task_id), self._standing()
            if task.is_over and _may_leave(task, standing):
                self._queue.take(task)
                return result_of(task, standing)
            left_s = until - self._clock()
            if left_s <= 0:
                return None
            self._sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _hand_out(self, failed: Failed) -> None:
        for task, result in self.waiting():
            if task.id in failed:
                continue
            try:
                for taker in self._takers:
                    taker(result)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the app's
                failed[task.id] = error
            else:
                self._queue.take(task)


def raise_first(failed: Failed) -> None:
    """Raise the first exception of an app's function, where there is one."""
    for error in failed.values():
        raise error


def result_of(task: QueuedTask, standing: Standing) -> Result:
    """Return what is known of a queued task as a result: its answer, or why there is none."""
    found = task.result or {}
    value, reasons = _outcome(task, standing)
    waits = not task.is_over
    if waits:
        route = Route.DEFERRED
    else:
        route = Route.CLOUD if Reason.ESCALATED in reasons else Route.ABSTAINED
    return Result(
        value=value,
        confidence=None,
        certified=False,
        route=route,
        provisional=waits,
        model=found.get("model"),
        device="cloud" if found else None,
        cost_microusd=task.cost_microusd,
        latency_ms=((task.ended_at or task.put_at) - task.put_at) * 1e3,
        tokens_in=found.get("tokens_in", 0),
        tokens_out=found.get("tokens_out", 0),
        trace_id=task.trace_id,
        reasons=reasons,
        task=task.task,
        task_id=task.id,
    )


def allowed(result: Result, standing: Standing) -> Result:
    """Return a result that was given before as the fleet lets it be given out now."""
    local = standing.tasks.get(result.task)
    if result.task in standing.world.stopped:
        why: Reason | None = Reason.STOPPED
    else:
        why = denied(local.spec, result.value, standing.tools) if local else None
    if why is None:
        return result
    waits = result.route is Route.DEFERRED
    return replace(
        result,
        value=None,
        confidence=None,
        interval=None,
        certified=False,
        route=Route.DEFERRED if waits else Route.ABSTAINED,
        reasons=(why, *(reason for reason in result.reasons if reason is not why)),
    )


def _outcome(task: QueuedTask, standing: Standing) -> tuple[Json, tuple[Reason, ...]]:
    """Return the value to give out, and why."""
    late = (Reason.LATE,) if task.late else ()
    if task.state == "expired":
        return None, (Reason.EXPIRED, *late)
    if task.state == "cancelled":
        return None, (Reason.CANCELLED, *late)
    if task.state == "failed":
        return None, (_why_failed(task),)
    local = standing.tasks.get(task.task)
    done = task.state == "done"
    value = _answer(task.result or {}) if done else task.provisional
    why = denied(local.spec, value, standing.draining.tools) if local else None
    if why is not None:
        return None, (why,)
    return value, (Reason.ESCALATED,) if done else (Reason(task.reason), Reason.QUEUED)


def _answer(result: Mapping[str, Json]) -> Json:
    """Return an answer's value; those of earlier versions hold the text alone."""
    return result["value"] if "value" in result else result.get("text")


def _why_failed(task: QueuedTask) -> Reason:
    try:
        return Reason(task.error.partition(":")[0])
    except ValueError:
        return Reason.MAYBE_BILLED if task.unclear_holds else Reason(task.reason)


def _may_leave(task: QueuedTask, standing: Standing) -> bool:
    """Whether the fleet has not stopped the task."""
    return task.task not in standing.world.stopped
