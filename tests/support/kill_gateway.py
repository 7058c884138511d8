"""The gateway's register as a scenario of deaths: each kind of write that it knows.

A hold that was open when a process died is unclear to the next one, so a release that was not told
is settled at nothing instead, as its reconciliation would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from killing import Scenario

from edge_sync.gateway.book import Book
from edge_sync.gateway.records import Answer, Ask
from edge_sync.gateway.refusals import Refused
from edge_sync.gateway.register import Register
from edge_sync.money.lease import Lease

NOW = 1_000.0
ANSWER = Answer(200, "application/json", b"{}")


def ident(name: str) -> str:
    """Return a name as 32 hex digits."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def lease(name: str, *, epoch: int = 1, amount: int = 100) -> Lease:
    """Return a lease; nobody looks at its signature here."""
    return Lease(ident(name), "group:kiosks", "total", ident("device"), "pool", epoch, amount,
                 2_000, 1, "k", "0" * 128)  # fmt: skip


class Gateway(Scenario):
    """Holds and settlements in every order, a seal, epochs, a revocation, an adjustment."""

    name = "gateway"

    def open(self, folder: Path) -> Register:
        """Open the register."""
        return Register.open(folder / "gateway.db")

    def calls(self, subject: Register) -> list[Callable[[], object]]:
        """Return the script."""
        one, two, three = lease("one"), lease("two", amount=20), lease("three", epoch=3)

        def held(name: str, most: int, of: Lease = one) -> Callable[[], object]:
            return lambda: allowed(lambda: subject.write(self._hold(name, most, of)), "unclear")

        def settled(name: str, cost: int | None, **options: Any) -> Callable[[], object]:
            return lambda: subject.write(
                lambda book: book.settle(ident(name), cost, now=NOW, **options)
            )

        def write(work: Callable[[Book], object]) -> Callable[[], object]:
            return lambda: subject.write(work)

        return [
            write(lambda book: book.fence("hub", 1)),
            held("a", 10),
            settled("a", 4, answer=ANSWER),
            held("b", 20),
            write(lambda book: book.keep(ident("b"))),
            write(lambda book: book.reconcile(ident("b"), 7, now=NOW)),
            held("c", 30),
            lambda: self._release(subject, "c"),
            held("d", 20, two),
            write(lambda book: book.seal(ident("two"), now=NOW)),
            settled("d", 25),  # the provider billed more than its maximum
            write(lambda book: book.seal(ident("never seen"), now=NOW)),
            held("e", 5),
            write(lambda book: book.fence("hub", 2)),
            settled("e", None),
            write(lambda book: book.revoke(ident("device"), revoked=True, now=NOW)),
            write(self._adjust),
            write(lambda book: book.revoke(ident("device"), revoked=False, now=NOW)),
            held("f", 50, three),  # which tells of epoch 3
            settled("f", 50),
            lambda: self._together(subject, three),
            settled("g", 1),
            settled("h", 2),
            write(lambda book: book.forget_answers(before=NOW + 1)),
        ]

    def seen(self, subject: Register) -> Any:
        """Return everything but the order of changes, which must be told apart."""

        def read(book: Book) -> Any:
            rows = book.rows(after=0, limit=1_000)
            assert len({row["seq"] for row in rows}) == len(rows)
            answers = book._run("SELECT hold_id FROM answers ORDER BY 1").fetchall()
            revoked = book._run("SELECT device_id FROM revoked").fetchall()
            return {
                "leases": [
                    [one.lease_id, one.amount_microusd, one.used_microusd, one.sealed, one.open]
                    for one in book.standings(after="", limit=100)
                ],
                "holds": sorted(
                    [row["hold_id"], row["state"], row["actual"], row["flag"]] for row in rows
                ),
                "epoch": book.epoch("hub"),
                "adjusted": book.totals()["adjusted_microusd"],
                "answers": answers,
                "revoked": revoked,
            }

        return subject.write(read)

    def reopened(self, seen: Any) -> Any:
        """Open holds are unclear."""
        states = {"held": "unclear"}
        holds = [[name, states.get(state, state), *rest] for name, state, *rest in seen["holds"]]
        return seen | {"holds": holds}

    def ended(self, seen: Any) -> Any:
        """A hold that was given back, or cost nothing, is the same money."""
        settled = {"released": "settled"}
        holds = [[name, settled.get(state, state), actual] for name, state, actual, _ in
                 seen["holds"]]  # fmt: skip
        return seen | {"holds": holds}

    def check(self, subject: Register) -> None:
        """Every lease is the sum of its holds; what is sealed takes no more."""
        subject.write(Book.check)
        for each in subject.write(lambda book: book.standings(after="", limit=100)):
            assert each.used_microusd <= each.amount_microusd

    @staticmethod
    def _hold(name: str, most: int, of: Lease) -> Callable[[Book], object]:
        return lambda book: book.hold(Ask(of, "hub", ident(name), ident("request"), most, NOW))

    @staticmethod
    def _release(subject: Register, name: str) -> None:
        try:
            subject.write(lambda book: book.release(ident(name), now=NOW))
        except Refused:
            subject.write(lambda book: book.reconcile(ident(name), 0, now=NOW))

    @staticmethod
    def _adjust(book: Book) -> None:
        book.adjust(ident("adjustment"), ident("a"), amount_microusd=3, reason="r", now=NOW)

    def _together(self, subject: Register, three: Lease) -> None:
        """Let three writes share a commit; the third is refused and hurts nobody."""
        asks = [("g", 10), ("h", 10), ("i", 1_000)]
        outcomes = subject.begin([self._hold(name, most, three) for name, most in asks])
        subject.commit()
        codes = [error and error.code for _, error in outcomes]
        assert codes in ([None, None, "exhausted"], ["unclear", "unclear", "exhausted"]), codes


def allowed(work: Callable[[], object], code: str) -> None:
    """Do something that a process before this one may have done already."""
    try:
        work()
    except Refused as refused:
        if refused.code != code:
            raise


if __name__ == "__main__":
    from killing import main

    main({"gateway": Gateway})
