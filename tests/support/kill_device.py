"""The device's ``money.db`` as a scenario of deaths: holds, leases of the hub, the queue, old rows.

What a process reserved and did not send is given back by the next one, and reserved again by a call
that needs it; what it sent is unclear.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from killing import Scenario

from edge.errors import BudgetExceeded
from edge.store.book import Book
from edge.store.holds import Hold
from edge.store.leases import Leases, Offer, Use

CAP = 1_000
DAY_S = 86_400.0
START = 1_793_491_200.0
COUNTED = "pool"
OPEN = ("reserved", "sent", "unclear")


class Opened:
    """The file as a runtime has it, and as the agent beside it does."""

    def __init__(self, folder: Path) -> None:
        self.now = START
        self.book = Book.open(folder, cap_microusd=CAP, period="total", clock=lambda: self.now)
        self.leases = Leases.open(folder, clock=lambda: self.now)

    def last(self, trace: str) -> Hold | None:
        """Return the newest hold of a call."""
        return next((hold for hold in reversed(self.book.ledger.holds()) if hold.trace_id == trace),
                    None)  # fmt: skip

    def reserve(self, trace: str, most: int, *, pool: str = COUNTED) -> Hold:
        """Set money aside, unless it is."""
        hold = self.last(trace)
        if hold is None or hold.state == "released":
            hold = self.book.ledger.reserve(
                trace, task="draft", pool=pool, worst_case_microusd=most, gateway=pool == COUNTED
            )
        return hold

    def send(self, trace: str, most: int, *, pool: str = COUNTED) -> None:
        """Mark a request as sent, unless it is."""
        hold = self.reserve(trace, most, pool=pool)
        if hold.state == "reserved":
            self.book.ledger.mark_sent(hold, b"body" if pool == COUNTED else b"")

    def settle(self, trace: str, cost: int) -> None:
        """Book what a request cost."""
        hold = self.last(trace)
        assert hold is not None
        self.book.ledger.settle(hold, cost, tokens_in=1, tokens_out=2)

    def release(self, trace: str, **options: Any) -> None:
        """Give a hold back."""
        hold = self.last(trace)
        assert hold is not None
        if hold.state in {"sent", "unclear"} and not self.is_sent_now(hold):
            # Another process sent it: only the pool can tell, and says that it was refused.
            self.book.ledger.resolve(hold.id, 0)
        elif not (hold.state == "settled" and hold.cost_microusd == 0):
            self.book.ledger.release(hold, **options)

    @staticmethod
    def is_sent_now(hold: Hold) -> bool:
        """Return whether this process sent it: what another one sent is unclear."""
        return hold.state == "sent"

    def task(self, trace: str) -> Any:
        """Return the queued task of a call."""
        return next((each for each in self.book.queue.list() if each.trace_id == trace), None)

    def put(self, trace: str) -> None:
        """Queue a task, unless it is."""
        if self.task(trace) is None:
            self.book.queue.put(
                "draft", text="t", payload={}, reason="r", provisional=None, trace_id=trace
            )

    def answer(self, trace: str, cost: int) -> None:
        """Settle a request and complete its task, as one change."""
        with self.book.transaction():
            self.settle(trace, cost)
            self.book.queue.complete(self.task(trace).id, {"text": "answer"})

    def report(self) -> list[Use]:
        """Return what the hub is told; leases with too little left end here."""
        return self.leases.uses(now=self.now, most=10)

    def take(self, *offers: Offer) -> None:
        """Take the hub's list."""
        self.leases.replace(offers, told=self.report())

    def forget(self) -> None:
        """Drop the rows that the hub has for certain."""
        newest = max(row["seq"] for row in self.leases.db.query("SELECT seq FROM holds"))
        self.leases.forget(up_to=newest, sparing=[])


def offer(name: str, amount: int, *, days: float = 90.0) -> Offer:
    """Return a lease as the hub lists it."""
    return Offer(name * 32, COUNTED, "", amount, START + days * DAY_S, f"signed {name}")


class Device(Scenario):
    """Calls on two leases and on none, a queued one, a sync that closes a lease, old rows."""

    name = "device"

    def open(self, folder: Path) -> Opened:
        """Open it."""
        return Opened(folder)

    def calls(self, subject: Opened) -> list[Callable[[], object]]:
        """Return the script."""
        s, a, b, c = subject, offer("a", 100), offer("b", 50), offer("c", 200)

        def later(days: float, call: Callable[[], object]) -> Callable[[], object]:
            def at_its_time() -> None:
                s.now = START + days * DAY_S
                call()

            return at_its_time

        return [
            s.report,
            lambda: s.take(a, b),
            s.report,
            lambda: s.take(a, b),  # the reply came twice
            lambda: s.reserve("one", 60),
            lambda: s.send("one", 60),
            lambda: s.settle("one", 35),
            lambda: s.send("two", 40),
            lambda: s.put("two"),
            s.book.queue.claim,
            lambda: s.answer("two", 25),
            lambda: s.reserve("three", 30),
            lambda: s.release("three"),
            lambda: s.send("four", 30),
            lambda: s.release("four", certainly_unbilled=True, end_lease="fenced"),
            lambda: s.send("own", 200, pool="other"),
            lambda: s.settle("own", 210),
            s.report,
            lambda: s.take(b),
            lambda: s.send("five", 45),
            lambda: refused(lambda: s.reserve("large", 90)),
            s.report,
            lambda: s.take(c),
            lambda: s.settle("five", 45),
            s.report,
            lambda: s.take(c),
            later(10, lambda: s.send("six", 10)),
            later(10, s.forget),
            later(11, lambda: s.settle("six", 9)),
            later(11, s.report),
            later(11, lambda: s.take(c)),
            later(20, lambda: s.send("seven", 5)),
            later(20, s.forget),
        ]

    def seen(self, subject: Opened) -> Any:
        """Return money and rows; what was given back without being sent leaves no trace."""
        ledger, query = subject.book.ledger, subject.leases.db.query
        leases = query("SELECT lease_id, state, kept_microusd, told, amount_microusd FROM leases "
                       "ORDER BY lease_id")  # fmt: skip
        queued = query("SELECT trace_id, state, result FROM queued")
        forgotten = query("SELECT day, cost_microusd, settled FROM forgotten ORDER BY 1, 2")
        holds = [
            [hold.trace_id, hold.state, hold.worst_case_microusd, hold.cost_microusd, hold.lease_id]
            for hold in ledger.holds()
        ]
        return {
            "holds": [hold for hold in holds if hold[1] != "released"],
            "leases": [list(row.values()) for row in leases],
            "queued": [list(row.values()) for row in queued],
            "forgotten": [list(row.values()) for row in forgotten],
            "spent": ledger.spent_microusd(),
        }

    def reopened(self, seen: Any) -> Any:
        """What was reserved is free, what was sent unclear, what was claimed waits."""
        holds = [[trace, "unclear" if state == "sent" else state, *rest]
                 for trace, state, *rest in seen["holds"] if state != "reserved"]  # fmt: skip
        queued = [[trace, "waiting" if state == "claimed" else state, result]
                  for trace, state, result in seen["queued"]]  # fmt: skip
        return seen | {"holds": holds, "queued": queued}

    def ended(self, seen: Any) -> Any:
        """One that was sent by a dead process and refused by its pool is settled at nothing."""
        holds = [["open" if each in OPEN else each for each in hold] for hold in seen["holds"]
                 if hold[1] != "settled" or hold[3]]  # fmt: skip
        forgotten = [[day, cost] for day, cost, _ in seen["forgotten"] if cost]
        return seen | {"holds": holds, "forgotten": forgotten}

    def check(self, subject: Opened) -> None:
        """The cap holds, no lease is overdrawn, and each row is counted once."""
        ledger, query = subject.book.ledger, subject.leases.db.query
        assert ledger.spent_microusd() + ledger.held_microusd() <= CAP
        overdrawn = query(
            "SELECT lease_id FROM leases WHERE amount_microusd < kept_microusd + (SELECT "
            "coalesce(sum(cost_microusd + held_microusd), 0) FROM holds "
            "WHERE holds.lease_id = leases.lease_id)"
        )
        assert not overdrawn
        rows = query("SELECT coalesce(sum(cost_microusd), 0) AS n FROM holds")[0]["n"]
        gone = query("SELECT coalesce(sum(cost_microusd), 0) AS n FROM forgotten")[0]["n"]
        assert rows + gone == ledger.spent_microusd()


def refused(work: Callable[[], object]) -> None:
    """Ask for what does not fit."""
    try:
        work()
    except BudgetExceeded:
        return
    raise AssertionError("A call that does not fit was allowed.")


if __name__ == "__main__":
    from killing import main

    main({"device": Device})
