"""Seven mistakes, each put into the real code by a small patch, and each found by the machine.

The search is that of ``test_money_machine``: the same rules over the same world, which finds
nothing without a mistake. ``test_seeded_bugs_model`` does the same over the simulated fleet.
"""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from money_machine import Machine
from sqlalchemy import select

from edge_sync.agent import report
from edge_sync.agent.activation import Activation
from edge_sync.gateway.forwarding import _Exchange
from edge_sync.hub.budget import books, granting, outside, recovery, sealing, uses
from edge_sync.money import account
from edge_sync.store.schema import leases

LOOK = settings(
    max_examples=12,
    stateful_step_count=40,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
"""One search of some runs; it ends with the first that finds something, and shortens nothing."""
SEARCHES = 40


def reclaim(patch):
    """A lease that expired is given back by what was seen of it, without asking its gateway."""
    close = sealing.close_ended

    def close_ended(hub):
        close(hub)

        def work(connection):
            over = leases.c.why_closed.in_(["expired", "period"]) & (leases.c.state == "closing")
            for row in connection.execute(select(leases).where(over)).mappings().all():
                books.seal(connection, row["lease_id"], used_microusd=row["seen_microusd"])

        hub.store.write(work)

    patch.setattr(sealing, "close_ended", close_ended)


def sequence(patch):
    """A row of a device is known by its number there, not by its random id."""
    take = report.rows.take

    def numbered(money, traces, since):
        taken = take(money, traces, since)
        device = (money.path.parent / "device.key").read_bytes()
        numbers = {row["id"]: row["seq"] for row in money.query("SELECT id, seq FROM holds")}
        rows = [
            row.model_copy(update={"row_id": _digest(device, numbers[row.row_id])})
            for row in taken.rows
        ]
        return replace(taken, rows=rows)

    patch.setattr(report.rows, "take", numbered)


def release(patch):
    """A hold whose answer did not come is given back."""

    async def keep(self):
        now, hold_id = self.gateway.clock(), self.call.hold_id
        self.closed = True
        await self._write(lambda book: book.release(hold_id, now=now))

    patch.setattr(_Exchange, "_keep", keep)


def asynchronous(patch):
    """A lease that its device closed is given back by the use that was reported before."""
    settle = uses.settle

    def early(connection, asking, **values):
        staying = settle(connection, asking, **values)
        done = [use.lease_id for one in asking for use in one.request.uses if use.done]
        closing = leases.c.lease_id.in_(done) & (leases.c.state == "closing")
        for row in connection.execute(select(leases).where(closing)).mappings().all():
            books.seal(connection, row["lease_id"], used_microusd=row["seen_microusd"])
        return staying

    patch.setattr(granting, "settle", early)


def no_epoch(patch):
    """A restored hub goes on in the epoch that it had."""

    def claim(hub, *, above):
        return outside.change(hub.keys, lambda before: replace(before, recovering=True))

    patch.setattr(recovery, "claim", claim)
    # What a gateway tells of a lease in this epoch would show the mistake.
    patch.setattr(recovery, "_above", lambda *_: False)


def floats(patch):
    """What is given back is counted in dollars."""
    seal = account.seal

    def in_dollars(pots, right, *, used_microusd):
        after, sealed = seal(pots, right, used_microusd=used_microusd)
        if sealed == right:
            return after, sealed
        back = right.amount_microusd / 1e6 - used_microusd / 1e6
        return tuple(
            replace(pot, free_microusd=int((old.free_microusd / 1e6 + back) * 1e6))
            for old, pot in zip(pots, after, strict=True)
        ), sealed

    patch.setattr(account, "seal", in_dollars)


def etag_first(patch):
    """The etag is stored before the policy is in force."""
    install = Activation._install

    def early(self, accepted, document):
        self.policies.set_trust(
            accepted.trusted.state.as_dict(), accepted.trusted.have.etag, stopped=None,
            tightened=None,
        )  # fmt: skip
        install(self, accepted, document)

    patch.setattr(Activation, "_install", early)


BUGS = {
    reclaim: ({"I3"}, 1),
    sequence: ({"I6"}, 2),
    release: ({"I3"}, 0),
    asynchronous: ({"I2", "I3"}, 2),
    no_epoch: ({"I2", "I3", "I12"}, 0),
    floats: ({"I1"}, 0),
    etag_first: ({"I17"}, 1),
}
"""What finds each, and where the search begins: there it is soon over."""


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_mistake_is_found_for_what_it_is(bug, monkeypatch):
    names, begin = BUGS[bug]
    bug(monkeypatch)
    found = next(filter(None, map(_search, range(begin, begin + SEARCHES))))
    assert {line.split(":")[0] for line in found} & names, found


def _search(begin):
    try:
        run_state_machine_as_test(seed(begin)(type("Search", (Machine,), {})), settings=LOOK)
    except AssertionError as error:
        return error.args[0]
    return None


def _digest(device, number):
    return hashlib.sha256(device + str(number).encode()).hexdigest()[:32]
