import sqlite3
from dataclasses import replace

import pytest

from edge_sync.gateway.book import Book
from edge_sync.gateway.records import Answer
from edge_sync.gateway.refusals import Refused
from edge_sync.gateway.register import Register

from .conftest import DEVICE, NOW, ask, ident, lease

HOLD, LEASE = ident("hold"), ident("lease")
ANSWER = Answer(200, "application/json", b"{}")


def hold(*given, **values):
    asked = ask(*given, **values)
    return lambda book: book.hold(asked)


def settle(reported=4, name="hold", **values):
    return lambda book: book.settle(ident(name), reported, now=NOW, **values)


def keep(name="hold"):
    return lambda book: book.keep(ident(name))


def release(name="hold"):
    return lambda book: book.release(ident(name), now=NOW)


def seal(name="lease"):
    return lambda book: book.seal(ident(name), now=NOW)


def fence(epoch):
    return lambda book: book.fence("hub", epoch)


def revoke(*, revoked=True):
    return lambda book: book.revoke(DEVICE, revoked=revoked, now=NOW)


def reconcile(actual):
    return lambda book: book.reconcile(HOLD, actual, now=NOW)


def adjust(amount, name="a", of="hold"):
    return lambda book: book.adjust(
        ident(name), ident(of), amount_microusd=amount, reason="credit", now=NOW
    )


# Steps; code of the refusal of the last one, or None; redeemed, held and open at the end.
CASES = [
    ([hold()], None, (0, 10, 1)),
    ([hold(), hold("b", 90)], None, (0, 100, 2)),
    ([hold(), hold("b", 91)], "exhausted", (0, 10, 1)),
    ([hold(), settle(4)], None, (4, 0, 0)),
    ([hold(), settle(4), hold("b", 96)], None, (4, 96, 1)),
    ([hold(), settle(4), hold("b", 97)], "exhausted", (4, 0, 0)),
    ([hold(), settle(11)], None, (10, 0, 0)),
    ([hold(), settle(-1)], None, (10, 0, 0)),
    ([hold(), settle(None)], None, (10, 0, 0)),
    ([hold(), settle(4), settle(4)], None, (4, 0, 0)),
    ([hold(), settle(4), settle(5)], "conflict", (4, 0, 0)),
    ([hold(), settle(4), release()], "conflict", (4, 0, 0)),
    ([hold(), keep()], None, (0, 10, 1)),
    ([hold(), keep(), release()], "conflict", (0, 10, 1)),
    ([hold(), keep(), reconcile(3)], None, (3, 0, 0)),
    ([hold(), reconcile(3)], "in_progress", (0, 10, 1)),
    ([hold(), settle(4), keep()], None, (4, 0, 0)),
    ([hold(), release()], None, (0, 0, 0)),
    ([hold(), release(), release()], None, (0, 0, 0)),
    ([hold(), release(), settle(1)], "conflict", (0, 0, 0)),
    ([hold(), release(), hold()], None, (0, 10, 1)),
    ([hold(), release(), hold(request="other")], "conflict", (0, 0, 0)),
    ([hold(), hold()], "in_progress", (0, 10, 1)),
    ([hold(), hold(request="other")], "conflict", (0, 10, 1)),
    ([hold(), keep(), hold()], "unclear", (0, 10, 1)),
    ([hold(), settle(4), hold()], "answered", (4, 0, 0)),
    ([hold(), settle(4, answer=ANSWER), hold()], None, (4, 0, 0)),
    ([hold(), settle(4, answer=ANSWER), hold(request="other")], "conflict", (4, 0, 0)),
    ([hold(now=2_000)], None, (0, 10, 1)),
    ([hold(), hold("b", now=2_001)], "expired_lease", (0, 10, 1)),
    ([hold(), seal(), hold("b")], "sealed", (0, 10, 1)),
    ([hold(), seal(), settle(4)], None, (4, 0, 0)),
    ([hold(), seal(), release()], None, (0, 0, 0)),
    ([seal(), hold()], "sealed", (0, 0, 0)),
    ([hold(), fence(2), hold("b")], "fenced", (0, 10, 1)),
    ([hold(), fence(2), settle(4)], None, (4, 0, 0)),
    ([hold(), fence(0), hold("b")], None, (0, 20, 2)),
    ([hold(), hold("b", of=lease("new", epoch=3)), hold("c")], "fenced", (0, 10, 1)),
    ([hold(), revoke(), hold("b")], "revoked", (0, 10, 1)),
    ([hold(), revoke(), revoke(revoked=False), hold("b")], None, (0, 20, 2)),
    ([hold(), hold("b", of=lease(amount_microusd=10**6))], "bad_lease", (0, 10, 1)),
    ([hold(), settle(4), adjust(4)], None, (4, 0, 0)),
    ([hold(), settle(4), adjust(3), adjust(2, "b")], "conflict", (4, 0, 0)),
    ([hold(), settle(4), adjust(3), adjust(3)], None, (4, 0, 0)),
    ([hold(), settle(4), adjust(3), adjust(2)], "conflict", (4, 0, 0)),
    ([hold(), adjust(1)], "conflict", (0, 10, 1)),
    ([hold(), settle(4), adjust(0)], "conflict", (4, 0, 0)),
    ([hold(), settle(4, "other")], "not_found", (0, 10, 1)),
]


@pytest.mark.parametrize(("steps", "code", "counts"), CASES)
def test_rules(register, steps, code, counts):
    *before, last = steps
    for step in before:
        register.write(step)
    if code is None:
        register.write(last)
    else:
        with pytest.raises(Refused) as refused:
            register.write(last)
        assert refused.value.code == code
    found = register.write(lambda book: book.standing(LEASE))
    assert (found.redeemed_microusd, found.held_microusd, found.open) == counts
    register.write(Book.check)


def test_a_register_that_no_hub_has_told_its_epoch_takes_no_hold(memory_path):
    register = Register.open(memory_path / "new.db")
    with pytest.raises(Refused, match="No hub has told") as refused:
        register.write(lambda book: book.hold(ask()))
    assert (refused.value.code, refused.value.status) == ("unavailable", 503)
    assert register.write(lambda book: book.totals())["leases"] == 0
    register.write(fence(1))
    assert register.write(lambda book: book.hold(ask())) is None
    register.close()


def test_a_seal_is_final_once_no_hold_is_open(register):
    register.write(hold())
    assert not register.write(seal()).final
    register.write(settle(4))
    found = register.write(seal())
    assert (found.final, found.used_microusd) == (True, 4)
    assert register.write(seal("never seen")).final


def test_what_is_settled_above_the_maximum_is_flagged(register):
    register.write(hold())
    settled = register.write(settle(25))
    assert (settled.actual_microusd, settled.excess_microusd, settled.flag) == (10, 15, "over")


def test_the_first_answer_is_kept_for_a_while(register):
    register.write(hold())
    register.write(settle(4, answer=ANSWER))
    assert register.write(hold()) == replace(ANSWER, cost_microusd=4)
    assert register.write(lambda book: book.forget_answers(before=NOW + 1)) == 1
    with pytest.raises(Refused, match="4 micro-dollars") as refused:
        register.write(hold())
    assert refused.value.cost_microusd == 4


def test_rows_come_in_the_order_of_their_last_change(register):
    for name in "abc":
        register.write(hold(name))
    first = register.write(lambda book: book.rows(after=0, limit=2))
    assert [row["hold_id"] for row in first] == [ident("a"), ident("b")]
    register.write(settle(4, "a"))
    after = first[-1]["seq"]
    rest = register.write(lambda book: book.rows(after=after, limit=9))
    assert [(row["hold_id"], row["state"]) for row in rest] == [
        (ident("c"), "held"),
        (ident("a"), "settled"),
    ]


def test_the_table_itself_bounds_a_lease():
    from edge_sync.gateway.records import SCHEMA

    connection = sqlite3.connect(":memory:")
    for statement in SCHEMA:
        connection.execute(statement)
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(
            "INSERT INTO leases VALUES ('x', '', '', '', 0, 10, 6, 5, 1, 0, 0.0, NULL)"
        )
    connection.close()
