"""From a bundle to a policy in force: verified, its models fetched, checked, activated; or refused.

Guarantees: nothing unverified is looked at; document, trusted metadata and etag change in one
transaction; where a policy does not load, fails its self-check, or a model fails its golden cases,
the old policy and its models stay, and that assignment is not tried again by this runtime. What may
be better next time (a full disk, a download that was cut) is raised, changes nothing and is tried
again. Kill switches hold also where the policy beside them is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from edge.errors import (
    Busy,
    ConfigError,
    EdgeError,
    InputError,
    ModelError,
    PolicyError,
)
from edge.store.policies import Policies
from edge_sync.agent import golden
from edge_sync.agent.exchange import Exchange
from edge_sync.agent.memory import MAX_REFUSALS, Memory, Turned
from edge_sync.agent.models import Shelf, Source, read_index
from edge_sync.trust.assignment import ModelTarget
from edge_sync.trust.trusted import Accepted, Trusted, TrustState
from edge_sync.wire import Bundle, Refusal

_FINAL = (ConfigError, InputError, ModelError, PolicyError)
_LONGEST_REASON = 2_000


class Runs(Protocol):
    """What checks a policy and puts it in force; ``edge.Runtime`` does."""

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
        """See ``edge.Runtime.activate``."""


class Change(StrEnum):
    """What a bundle led to."""

    NONE = "none"
    TRUST = "trust"
    ACTIVATED = "activated"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Activation:
    """Takes bundles for one device.

    Args:
        state: the state folder.
        policies: its policy file.
        runs: checks and activates.
        exchange: where models come from.
        runtime: version and pack, as a refusal remembers them.
        mirrors: URLs to fetch models from before the hub is asked.

    """

    state: Path
    policies: Policies
    runs: Runs
    exchange: Exchange
    runtime: str
    mirrors: Collection[str] = ()

    def trusted(self) -> Trusted:
        """Return what the device trusts.

        Raises:
            HubDistrusted, SignatureInvalid: the stored root does not verify.

        """
        return Trusted.load(TrustState.from_dict(self.policies.trust()))

    def revision(self) -> int:
        """Return the revision in force; 0 for none."""
        return self.policies.switches().revision

    def take(self, bundle: Bundle, *, now: float) -> Change:
        """Follow a bundle.

        Args:
            bundle: as it came.
            now: the time to judge expiry by, seconds since the epoch.

        Raises:
            SignatureInvalid, VersionRollback, PolicyExpired, HubDistrusted: it does not verify.
            HubUnreachable, HubRefused, IntegrityError: a model cannot be fetched now.
            StoreError: the disk is full or refuses.

        """
        memory = Memory.of(self.policies.agent())
        before = self.trusted()
        group = group_of(before, memory)
        accepted = before.accept(bundle, device_id=memory.device_id, group=group, now=now)
        serial, revision = accepted.assignment.serial, accepted.assignment.revision
        if revision in {0, self.revision()}:
            return self._follow(before, accepted)
        if accepted.document_bytes is None or self._turned(memory, serial):
            return self._follow(before, accepted)
        self._stop(accepted)
        for target in accepted.models.values():
            self._fetch(target, memory.token)
        try:
            self._install(accepted, accepted.document_bytes)
        except Busy:
            raise
        except _FINAL as error:
            self._refuse(serial, revision, error, now)
            self._follow(before, accepted)
            return Change.REFUSED
        return Change.ACTIVATED

    def tighten(self, now: float) -> bool:
        """Let an expired policy tighten, and one that is not expired loosen; say if it changed.

        Raises:
            StoreError: the file cannot be written.

        """
        if not self.policies.trust():
            return False
        switches = self.policies.switches()
        tightened = self.trusted().tightened(now)
        if tightened == switches.tightened:
            return False
        self.policies.set_trust(None, None, stopped=None, tightened=tightened)
        return True

    def models(self) -> dict[str, str]:
        """Return the digests of assigned models that are here, by name."""
        assignment = self.trusted().assignment
        if assignment is None or assignment.revision != self.revision():
            return {}
        found = {name: target.digest for name, target in assignment.models.items()}
        return {
            name: digest for name, digest in found.items() if Shelf(self.state).has(name, digest)
        }

    def _turned(self, memory: Memory, serial: int) -> bool:
        """Whether this runtime has refused the assignment before."""
        turned = memory.turned
        return turned is not None and (turned.serial, turned.runtime) == (serial, self.runtime)

    def _fetch(self, target: ModelTarget, token: str) -> None:
        """Make sure that a model is here."""
        shelf = Shelf(self.state)
        if shelf.has(target.name, target.digest):
            return
        text = self.exchange.index(target.name, target.digest, token)
        target.check(text)
        index = read_index(text, name=target.name, digest=target.digest)
        shelf.fetch(index, self._sources(token))

    def _install(self, accepted: Accepted, document: bytes) -> None:
        """Check the policy and its models, and put it in force."""
        shelf, in_use = Shelf(self.state), self.models()
        new = [each for each in accepted.models.values() if in_use.get(each.name) != each.digest]
        for target in new:
            try:
                golden.check(shelf.folder(target.name, target.digest))
            except ModelError:
                shelf.drop(target.name, target.digest)
                raise
        self.runs.activate(
            document,
            stopped=accepted.assignment.stopped.as_dict(),
            tightened=False,
            trust=accepted.trusted.state.as_dict(),
            etag=accepted.trusted.have.etag,
        )
        for target in new:
            shelf.tidy(target.name, target.digest)

    def _sources(self, token: str) -> list[Source]:
        def of(mirror: str | None) -> Source:
            def fetch(path: str, start: int, take: Callable[[bytes], None]) -> None:
                self.exchange.file(path, start=start, take=take, token=token, mirror=mirror)

            return fetch

        return [of(mirror) for mirror in (*self.mirrors, None)]

    def _stop(self, accepted: Accepted) -> None:
        """Obey kill switches at once: what follows may fetch models, and fail, for a long time."""
        stopped = accepted.assignment.stopped.as_dict()
        held = self.policies.switches().stopped
        if {kind: sorted(names) for kind, names in held.items()} != stopped:
            self.policies.set_trust(None, None, stopped=stopped, tightened=None)

    def _follow(self, before: Trusted, accepted: Accepted) -> Change:
        """Keep newer metadata and kill switches; the document stays."""
        if accepted.trusted.have == before.have and not self.policies.switches().tightened:
            return Change.NONE
        self.policies.set_trust(
            accepted.trusted.state.as_dict(),
            accepted.trusted.have.etag,
            stopped=accepted.assignment.stopped.as_dict(),
            tightened=False,
        )
        return Change.TRUST

    def _refuse(self, serial: int, revision: int, error: EdgeError, now: float) -> None:
        """Remember a refusal, and to report it, before the etag says that the bundle was seen."""
        reason = str(error)[:_LONGEST_REASON]
        refusal = Refusal(revision=revision, reason=reason)
        turned = Turned(serial=serial, revision=revision, runtime=self.runtime)
        known = self.policies.refusals()
        if not known or (known[0].revision, known[0].reason) != (revision, str(error)):
            self.policies.refused(revision, str(error), now)

        def step(memory: Memory) -> Memory:
            refusals = (*memory.refusals, refusal)[-MAX_REFUSALS:]
            return memory.but(turned=turned, refusals=refusals)

        remember(self.policies, step)


def remember(policies: Policies, step: Callable[[Memory], Memory]) -> Memory:
    """Change what the agent remembers, in one transaction, and return it.

    Raises:
        StoreError: the file cannot be written.

    """
    return Memory.of(policies.change_agent(lambda state: step(Memory.of(state)).json()))


def group_of(trusted: Trusted, memory: Memory) -> str:
    """Return the group that the device belongs to: as its assignment says, or as it joined."""
    assignment = trusted.assignment
    return (assignment and assignment.group) or memory.group
