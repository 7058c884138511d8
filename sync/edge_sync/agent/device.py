"""One device of a fleet: it joins, reports, asks for policy. One step at a time, no thread.

Guarantees that a code is used once, that a report is on disk before it leaves and is the same when
it is sent again, and that no answer counts before its signatures were checked. A replayed or lost
answer changes nothing. Intervals and expiry go by the time since boot and the hub's attested time;
the device's own clock is only reported.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import edge
from edge.errors import ConfigError, HubDistrusted, SignatureInvalid, StoreError
from edge.store.policies import Policies, State
from edge_sync.agent import money
from edge_sync.agent.activation import Activation, Change, group_of, remember
from edge_sync.agent.codes import read_code
from edge_sync.agent.exchange import Answer, Exchange, HubRefused
from edge_sync.agent.memory import Memory, Pending
from edge_sync.agent.report import Facts, Records, acknowledge, compose, packed
from edge_sync.agent.rows import covered
from edge_sync.keys import DeviceKey, load_key, make_key, save_key
from edge_sync.trust import clock
from edge_sync.trust.metadata import fingerprint
from edge_sync.trust.trusted import Trusted
from edge_sync.wire import DEVICE_HEADER, SIGNATURE_HEADER, EnrolRequest, Have

KEY_FILE = "device.key"
_MOST_RACES = 10


@dataclass(frozen=True, slots=True)
class Senses:
    """Clocks and randomness.

    Attributes:
        own_s: the device's clock, seconds since the epoch.
        boot_s: seconds since boot; never set, and not stopped by sleep where the system allows.
        draw: a random id of 32 hex digits.

    """

    own_s: Callable[[], float] = time.time
    boot_s: Callable[[], float] = clock.boot_s
    draw: Callable[[], str] = field(default=lambda: uuid.uuid4().hex)


@dataclass(frozen=True, slots=True)
class Round:
    """What one exchange with the hub led to.

    Attributes:
        change: of the policy.
        more: whether the device has something to report at once.
        granted: how many leases are new.

    """

    change: Change
    more: bool
    granted: int = 0


class Device:
    """A device, and its steps; for one thread.

    Args:
        records: the files of the state folder that are reported.
        policies: its policy file.
        exchange: with the hub.
        activation: takes what the hub sends.
        pack: name of the pack.
        senses: clocks and randomness.

    """

    def __init__(
        self,
        records: Records,
        policies: Policies,
        exchange: Exchange,
        activation: Activation,
        *,
        pack: str,
        senses: Senses | None = None,
    ) -> None:
        self._records = records
        self._policies = policies
        self._exchange = exchange
        self._activation = activation
        self._pack = pack
        self._senses = senses or Senses()
        self._clock = clock.Clock.from_dict(self.memory().clock)
        self._key: DeviceKey | None = None
        self._more = False
        self._granted = 0

    def memory(self) -> Memory:
        """Return what the agent remembers.

        Raises:
            StoreError: it cannot be read.

        """
        return Memory.of(self._policies.agent())

    def now(self) -> float:
        """Return the time to judge expiry by, seconds since the epoch."""
        return self._clock.now(self._senses.own_s(), boot_s=self._senses.boot_s())

    def enrol(self, code: str, name: str = "") -> Memory:
        """Join the fleet of a code, unless this device is in it.

        Args:
            code: one-time code; its end names the fleet's first root.
            name: what people call the device.

        Raises:
            ConfigError: it is no code, or the device is in another fleet.
            HubDistrusted: the hub is not the one that the code names; nothing was kept.
            HubUnreachable, HubRefused: see ``Exchange.enrol``.

        """
        pin = read_code(code)
        memory = self.memory()
        if memory.enrolled:
            if not memory.fleet.startswith(pin):
                raise ConfigError(
                    "This device has joined another fleet than the one of the code.",
                    hint="Leave the code out, or pass another state folder.",
                )
            return memory
        try:
            return self._join(code.strip(), pin, name)
        except HubRefused:
            memory = self.memory()
            if memory.enrolled:  # by another process over this state folder
                return memory
            raise

    def rejoin(self, code: str, name: str = "") -> Memory:
        """Join the same fleet again, where its hub has forgotten the device; see ``enrol``."""
        pin = read_code(code)
        if not self.memory().fleet.startswith(pin):
            return self.memory()
        return self._join(code.strip(), pin, name)

    def sync(self) -> Round:
        """Report, and follow what the hub answers.

        Raises:
            ConfigError: the device has not joined a fleet, or its key is gone.
            HubUnreachable: no answer; the report is kept and sent again.
            HubRefused: the hub did not take it.
            HubDistrusted: the answer was not signed by the fleet; nothing of it counts.
            SignatureInvalid, VersionRollback, PolicyExpired: the report counts, the policy not.
            IntegrityError, StoreError: a model cannot be fetched, or the disk refuses.

        """
        pending = self._pending()
        try:
            answer = self._send(pending)
        except HubRefused as error:
            if error.code == "replayed":  # the answer to it was lost long ago
                remember(self._policies, lambda memory: memory.but(pending=None))
            raise
        self._attest(pending, answer)
        self._granted = 0
        memory = remember(self._policies, lambda memory: self._answered(memory, pending, answer))
        self._records.leases.forget(up_to=covered(memory.rows), sparing=memory.rows.open)
        change = Change.NONE
        if answer.reply.bundle is not None:
            change = self._activation.take(answer.reply.bundle, now=self.now())
        self._activation.tighten(self.now())
        return Round(change, self._more or self.news(), self._granted)

    def ask(self, wait_s: int, *, until: Callable[[], bool] | None = None) -> Round:
        """Ask for a newer policy, and let the hub wait for one; raises as ``sync``.

        Args:
            wait_s: the longest that the hub may wait, in whole seconds.
            until: looked at again and again; where it is true the waiting ends.

        """
        trusted, memory = self._activation.trusted(), self.memory()
        have = self._have(trusted, memory)
        offer = self._exchange.policy(
            memory.token, etag=have.etag, root=have.root, wait_s=wait_s, until=until
        )
        if offer is None:
            return Round(Change.NONE, more=False)
        change = self._activation.take(offer.bundle, now=self.now())
        return Round(change, self.news())

    def tighten(self) -> None:
        """Let a policy that has expired by now tighten; needs no hub.

        Raises:
            StoreError: the file cannot be written.

        """
        self._activation.tighten(self.now())

    def low(self) -> bool:
        """Return whether the hub should hear of this device's money before the next sync is due.

        Raises:
            StoreError: the ledger cannot be read.

        """
        return self._records.leases.low()

    def news(self) -> bool:
        """Return whether the hub does not know yet what is in force here."""
        memory = self.memory()
        return bool(memory.refusals) or self._facts(memory).told != memory.told

    def summary(self) -> dict[str, Any]:
        """Return what a person wants to know of this device.

        Keys: device, group, policy (revision in force, 0 for none), tightened, refused (the last
        refusal that is newer than that policy, or empty), models, quarantined, and money: what is
        left of its leases, by pool, with its age; empty where it has none.
        """
        memory, switches = self.memory(), self._policies.switches()
        last = next(iter(self._policies.refusals()), None)
        told = last is not None and last.revision > switches.revision
        return {
            "device": memory.device_id,
            "group": group_of(self._activation.trusted(), memory),
            "policy": switches.revision,
            "tightened": switches.tightened,
            "refused": f"{last.revision}: {last.reason}" if last and told else "",
            "models": self._activation.models(),
            "quarantined": memory.quarantined,
            "money": money.left(self._records.leases),
        }

    def close(self) -> None:
        """Close files and connections."""
        self._exchange.close()
        self._records.close()
        self._policies.close()

    def _join(self, code: str, pin: str, name: str) -> Memory:
        key = self._device_key(make=True)
        reply = self._exchange.enrol(
            EnrolRequest(
                code=code,
                public_key=key.public_key,
                name=name,
                runtime=edge.__version__,
                signature=key.sign_enrolment(code),
            )
        )
        if reply.device_id != key.device_id:
            raise HubDistrusted("The hub calls this device by an id that is not its key's.")
        root = reply.root.encode()
        trusted = Trusted.start(root, fingerprint=pin)
        if not self._policies.trust():
            self._policies.set_trust(trusted.state.as_dict(), "", stopped={}, tightened=False)

        def step(memory: Memory) -> Memory:
            return memory.but(
                fleet=fingerprint(root),
                device_id=reply.device_id,
                group=reply.group,
                incarnation=reply.incarnation,
                nonce=reply.nonce,
                pending=None,
                told="",
            )

        return remember(self._policies, step)

    def _pending(self) -> Pending:
        """Return the report that is on its way, or put the next one together.

        Another process may do the same over this state folder: the first one's report counts.
        """
        for _ in range(_MOST_RACES):
            memory = self.memory()
            if not memory.enrolled:
                raise ConfigError(
                    "This device has not joined a fleet.",
                    hint="Pass the enrolment code that the fleet admin gave you.",
                )
            if memory.pending is not None:
                self._more = True
                return memory.pending
            composed = compose(memory, self._records, self._facts(memory), draw=self._senses.draw)
            after = remember(self._policies, partial(_begun, before=memory, new=composed.pending))
            if after.pending == composed.pending:
                self._more = composed.more
                return composed.pending
        raise StoreError(
            "Other agents over this state folder are always first.", hint="Run one of them."
        )

    def _send(self, pending: Pending) -> Answer:
        key = self._device_key(make=False)
        body, headers = packed(pending.body)
        headers |= {DEVICE_HEADER: key.device_id, SIGNATURE_HEADER: key.sign_sync(body)}
        return self._exchange.sync(body, headers)

    def _attest(self, pending: Pending, answer: Answer) -> None:
        """Take the hub's time, which proves that the hub of this fleet has just answered.

        The whole answer is signed as well: a watermark or a lease put in on the way counts nothing.
        """
        reply, trusted = answer.reply, self._activation.trusted()
        roots = reply.bundle.roots if reply.bundle else []
        asked = pending.request_id
        try:
            time_s = trusted.time(reply.time, request_id=asked, roots=roots)
            trusted.verify_reply(answer.signed, request_id=asked, body=answer.body, roots=roots)
        except SignatureInvalid as error:
            raise HubDistrusted(
                f"The answer is not from the hub of this fleet: {error.message}"
            ) from error
        self._clock = self._clock.attest(time_s, boot_s=self._senses.boot_s())

    def _answered(self, memory: Memory, pending: Pending, answer: Answer) -> Memory:
        if memory.pending is None or memory.pending.request_id != pending.request_id:
            return memory  # another process over this state folder was answered first
        # Before the report counts as answered: where this is cut short it is sent again, and the
        # list comes again.
        self._granted = money.take(
            self._records.leases, pending.body, answer.reply, device_id=memory.device_id
        )
        after = acknowledge(memory, pending, answer.reply)
        return after.but(clock=self._clock.as_dict())

    def _facts(self, memory: Memory) -> Facts:
        return Facts(
            at=self._senses.own_s(),
            now=self.now(),
            runtime=edge.__version__,
            pack=self._pack,
            have=self._have(self._activation.trusted(), memory),
            models=self._activation.models(),
        )

    def _have(self, trusted: Trusted, memory: Memory) -> Have:
        """Return the versions that the device holds, and the revision that is in force.

        What another version of the runtime refused is asked for again.
        """
        have = trusted.have.model_copy(update={"revision": self._activation.revision()})
        turned = memory.turned
        if turned is None or turned.serial != have.serial:
            return have
        again = turned.runtime != self._activation.runtime
        return have.model_copy(update={"serial": 0}) if again else have

    def _device_key(self, *, make: bool) -> DeviceKey:
        if self._key is None:
            path = self._records.folder / KEY_FILE
            if make:
                # Inside the transaction, so that two processes do not make two keys.
                self._policies.change_agent(partial(_with_key, path))
            self._key = load_key(path)
        return self._key


def _with_key(path: Path, state: State) -> State:
    """Make sure that there is a key; the state stays."""
    if not path.exists():
        save_key(make_key(), path)
    return state


def _begun(memory: Memory, *, before: Memory, new: Pending) -> Memory:
    """Begin a report, unless something has happened since it was put together."""
    return memory.but(pending=new) if memory == before else memory
