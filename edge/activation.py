"""Which policy a runtime goes by: read from the state folder, followed, checked, activated.

Guarantees: what is in force is one whole ``Standing``, exchanged by one assignment; a policy that
does not load, does not fit the pack or fails its self-check never is; a stored one that does not
load any more gives way to the one before it, and that to the bare pack, with the reason in
``problem``. Another process's activation is seen by the next call. Verifies no signature.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from edge.config import shortened
from edge.errors import Busy, ConfigError, EdgeError, PolicyError, StoreError
from edge.local import LocalTask
from edge.overlay import FORMAT, Document, Policy, lay, load_document, read_policy
from edge.pack import read_bytes
from edge.roster import Fitted, fit
from edge.spending import needs_of
from edge.standing import Ground, Standing, stand, switched
from edge.store.policies import Stopped, Switches, all_kinds
from edge.task import Pack
from edge.types import Json

Laid: TypeAlias = Document | Policy | None

GOLDEN = "golden"
"""The role of a model's file of cases that it must answer: a JSON list of objects with ``text``
and ``value``, and ``task`` where not every task on the model is meant."""

_AFTER_THE_DRAFT = {"caching", "deferred", "degrade", "description", "privacy", "routing"}


class Activation:
    """The standing in force. Safe to call from several threads; the ground is shared.

    Args:
        ground: what all standings stand on.
        pack: without a policy.
        fitted: the pack, with ``own`` laid over it, and its models.
        own: a policy that the app brings; it wins over stored ones, but not over what the fleet
            stops.

    Attributes:
        standing: the one in force.
        problem: why the stored policy is not in force, or ``None``.

    Raises:
        EdgeError: the pack, or the app's own policy, cannot be used.

    """

    def __init__(
        self, ground: Ground, pack: Pack, *, own: Document | Policy | None, fitted: Fitted
    ) -> None:
        self._ground = ground
        self._fitted = fitted
        self._pack = pack
        self._policies = policies = ground.policies
        self._own = own
        self._laid: Laid = None
        self._lock = threading.Lock()
        self._retired: frozenset[Any] = frozenset()
        self.problem: str | None = None
        self._stamp = policies.stamp()
        self._switches = policies.switches()
        self.standing = self._first_that_stands(self._switches)
        self._put_in_place(self.standing)

    def now(self) -> Standing:
        """Return the standing for a call that begins now; one ``stat`` where nothing changed."""
        try:
            if self._policies.stamp() != self._stamp and self._lock.acquire(blocking=False):
                try:
                    self._follow()
                finally:
                    self._lock.release()
        except StoreError:  # a file that cannot be read now changes nothing
            pass
        return self.standing

    def still(self, standing: Standing) -> Standing:
        """Return what a call took before, under the switches of now: a stop ends long calls too."""
        switches, before = self.now().switches, standing.switches
        if (switches.stopped, switches.tightened) == (before.stopped, before.tightened):
            return standing
        return switched(self._ground, standing, switches)

    def activate(
        self,
        document: bytes | None,
        *,
        stopped: Stopped | None,
        tightened: bool | None,
        check: bool,
        trust: Mapping[str, bytes] | None,
        etag: str | None,
    ) -> None:
        """Check a policy and put it in force, here and in the file; see ``Runtime.activate``."""
        with self._lock:
            self._follow()
            laid, revision = self._laid, 0  # where it cannot even be read
            try:
                if document is not None:
                    laid = self._read(document)
                    revision = laid.revision
                self._take(laid, document, stopped, tightened, check=check, beside=(trust, etag))
            except (Busy, StoreError):  # no fault of the policy: another time it may be taken
                raise
            except EdgeError as error:
                if document is not None:
                    with suppress(StoreError):  # it must not hide the cause
                        self._policies.refused(revision, str(error), time.time())
                raise

    def _read(self, document: bytes) -> Document:
        if self._own is not None:
            raise ConfigError(
                "This app was opened with a policy of its own, which wins over the fleet's.",
                hint="Open it without `policy`.",
            )
        return load_document(document)

    def _take(
        self,
        laid: Laid,
        document: bytes | None,
        stopped: Stopped | None,
        tightened: bool | None,
        *,
        check: bool,
        beside: tuple[Mapping[str, bytes] | None, str | None],
    ) -> None:
        before = self._switches
        switches = Switches(
            before.revision,
            before.stopped if stopped is None else all_kinds(stopped),
            before.tightened if tightened is None else tightened,
        )
        if laid is self._laid:
            standing = switched(self._ground, self.standing, switches)
        else:
            standing = self._stand(laid, switches)
            if check:
                check_answers(standing, self.standing)
        trust, etag = beside
        if isinstance(laid, Document) and document is not None:
            self._policies.activate(
                revision=laid.revision,
                document=document,
                stopped=stopped,
                tightened=tightened,
                at=time.time(),
                trust=trust,
                etag=etag,
            )
            self.problem, switches = None, replace(switches, revision=laid.revision)
        else:
            self._policies.set_trust(trust, etag, stopped=stopped, tightened=tightened)
        # The stamp stays that of before: another process may have changed the file since then.
        self._laid, self._switches = laid, switches
        self._put_in_place(standing)

    def _follow(self) -> None:
        """Take over what another process changed.

        Raises:
            StoreError: it cannot be read now; all is as before, and the next call tries again.

        """
        stamp = self._policies.stamp()
        if stamp == self._stamp:
            return
        switches = self._policies.switches()
        if switches != self._switches:
            self._put_in_place(self._following(switches))
        self._stamp, self._switches = stamp, switches

    def _following(self, switches: Switches) -> Standing:
        """Return what stands under other switches; what does not load stops nothing less."""
        if switches.revision == self._switches.revision and self.problem is None:
            return switched(self._ground, self.standing, switches)
        try:
            return self._first_that_stands(switches)
        except StoreError:
            raise
        except EdgeError as error:
            self.problem = f"What the fleet changed is not in force: {error}"
            return switched(self._ground, self.standing, switches)

    def _first_that_stands(self, switches: Switches) -> Standing:
        """Build the stored policy or, where that fails, what comes closest to it."""
        if self._own is not None:
            self._laid = self._own
            return self._stand(self._own, switches)
        problem: str | None = None
        for revision, read in self._candidates():
            try:
                laid = read()
                found = self._stand(laid, switches)
            except StoreError:
                raise
            except EdgeError as error:
                if revision == 0:
                    raise
                problem = problem or f"The policy of revision {revision} is not in force: {error}"
                continue
            self._laid, self.problem = laid, problem
            return found
        raise AssertionError  # pragma: no cover - the bare pack stands or raises

    def _put_in_place(self, standing: Standing) -> None:
        budget = standing.pack.budget
        self._ground.book.limit(
            cap_microusd=budget.cap_microusd if budget else None,
            period=budget.period if budget else "month",
        )
        if not self._ground.offline:  # a look with another pack changes nothing
            self._ground.book.ledger.expect(needs_of(standing.pack))
        before, self.standing = self.standing, standing
        self._retired = (self._retired | before.needs) - standing.needs
        self._ground.residency.retire(self._retired)

    def _candidates(self) -> Iterator[tuple[int, Callable[[], Laid]]]:
        """Yield what could be in force, the best first, each with its revision."""
        active, laid = self._policies.active(), self._laid
        if active is not None:
            yield active.revision, functools.partial(load_document, active.document)
        if isinstance(laid, Document):
            yield laid.revision, lambda: laid
        previous = self._policies.previous()
        if previous is not None:
            yield previous.revision, functools.partial(load_document, previous.document)
        yield 0, lambda: None

    def _stand(self, laid: Laid, switches: Switches) -> Standing:
        fitted, revision = self._fitted, 0
        if laid is not None and laid is not self._own:
            fitted = fit(lay(self._pack, laid), self._ground.state)
        if isinstance(laid, Document):
            revision = laid.revision
        return stand(self._ground, fitted, revision=revision, switches=switches)


def read_own(path: Path) -> Document | Policy:
    """Read the policy that an app brings: YAML, or a compiled document.

    Raises:
        ConfigError: it cannot be read, or is no policy.

    """
    raw = read_bytes(path)
    if raw.startswith(b"{") and f'"format":"{FORMAT}"'.encode() in raw:
        return load_document(raw)
    return read_policy(raw, what=f"Policy {shortened(path.name)}")


def check_answers(standing: Standing, before: Standing) -> None:
    """Answer each changed task's first sample and the golden cases of its model, on the device.

    What answers as before is left out: that it is broken is no reason against a policy. Nothing is
    recorded, watched or sent.

    Raises:
        Busy: there is no room for a model now.
        PolicyError: a call raised, or gave another value than the golden case says.

    """
    for task in standing.tasks.values():
        if task.spec.model is None or not standing.world.runs(task.name):
            continue
        if before.world.runs(task.name) and _maker(standing, task.name) == _maker(
            before, task.name
        ):
            continue
        for text in task.spec.samples[:1]:
            _answered(standing, task, text)
        for case in _golden(standing, task):
            found = _answered(standing, task, case["text"])
            if found != case["value"]:
                raise PolicyError(
                    f"The self-check of task {task.name} failed: a golden case of "
                    f"{task.spec.model} has another answer.",
                    hint="The old policy stays in force; look at the model.",
                )


def _maker(standing: Standing, name: str) -> tuple[Any, ...] | None:
    """Return what makes a task's drafts; ``None`` where there is no such task."""
    task = standing.tasks.get(name)
    if task is None:
        return None
    pack, needed = standing.pack, standing.needed[name]
    said = task.spec.model_dump(exclude=_AFTER_THE_DRAFT)
    places = [pack.models.get(model) for model in sorted(dict(needed))]
    return said, task.prompt, needed, places, pack.calibration.get(name)


def _answered(standing: Standing, task: LocalTask, text: str) -> Json:
    """Return what the device answers."""
    try:
        return standing.models.draft(task, text).value
    except (Busy, StoreError):
        raise
    except Exception as error:  # whatever it is, this policy must not be taken
        reason = error.message if isinstance(error, EdgeError) else type(error).__name__
        raise PolicyError(
            f"The self-check of task {task.name} failed: {reason}",
            hint="The old policy stays in force; look at the task and its model.",
        ) from error


def _golden(standing: Standing, task: LocalTask) -> list[dict[str, Any]]:
    """Return the golden cases of a task's model that speak of this task."""
    name = str(task.spec.model)
    store = standing.models.loader.store
    if all(file.role != GOLDEN for file in store.manifest(name).files):
        return []
    path = store.path(name, GOLDEN)
    try:
        cases = json.loads(path.read_bytes())
        return [case for case in cases if _speaks_of(case, task.name)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PolicyError(
            f"The golden cases of model {name} cannot be read: {shortened(str(error))}.",
            hint="They are a JSON list of objects with text and value.",
        ) from error


def _speaks_of(case: dict[str, Any], task: str) -> bool:
    if not isinstance(case["text"], str) or "value" not in case:
        raise TypeError("a case lacks text or value")
    return bool(case.get("task", task) == task)
