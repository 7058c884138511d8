"""The books in tables against the rules over plain values, on both databases."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from edge.errors import BudgetExceeded, StoreError
from edge_sync.hub.budget import books
from edge_sync.hub.budget.books import Held
from edge_sync.hub.budget.caps import put_cap, read_caps
from edge_sync.money import account
from edge_sync.money.account import Right
from edge_sync.money.caps import Cap, Caps, Purpose, Scope
from edge_sync.money.periods import period_of
from edge_sync.store.schema import budgets, leases
from edge_sync.store.schema import pots as pot_table

from ..conftest import NOW  # noqa: TID252
from .conftest import add_pool, held, look, pots

DEVICE = "d" * 32
PURPOSES = [
    Purpose(group, device * 32, pool, task)
    for group, device in (("kiosks", "a"), ("kiosks", "b"), ("lab", "c"))
    for pool in ("gpu", "hosted")
    for task in ("", "draft")
]
SCOPES = ["fleet", "group:kiosks", "group:lab;pool:gpu", f"device:{'a' * 32}", "fleet;task:draft",
          f"device:{'b' * 32};pool:hosted;task:draft"]  # fmt: skip
KINDS = ["hour", "day", "month", "total"]
HOURS = [NOW, NOW + 3_600, NOW + 86_400, NOW + 20 * 86_400]

CAPS = st.tuples(
    st.just("cap"), st.sampled_from(SCOPES), st.sampled_from(KINDS), st.integers(200, 1_000)
)
GRANTS = st.tuples(st.just("grant"), st.sampled_from(PURPOSES), st.integers(1, 100))
SEALS = st.tuples(st.just("seal"), st.integers(0, 9), st.integers(0, 100))
STEPS = st.one_of(
    GRANTS,
    GRANTS,
    SEALS,
    SEALS,
    CAPS,
    st.tuples(st.just("uncap"), st.integers(0, 9)),
    st.tuples(st.just("close"), st.integers(0, 9)),
    st.tuples(st.just("time"), st.sampled_from(HOURS)),
)


class Model:
    """The same in plain values."""

    def __init__(self):
        self.rights, self.pots, self.caps, self.now = [], {}, {}, NOW

    def purpose_pots(self, purpose):
        caps = Caps(tuple(self.caps.values()))
        period = period_of(caps.lease_kind(purpose), self.now)
        for scope, holder, amount in account.pot_keys(caps, purpose, period=period):
            key = scope, holder
            if key not in self.pots:
                pot = account.open_pot(scope, holder, cap_microusd=amount, rights=self.rights)
                self.pots[key] = pot
            yield self.pots[key]

    def put(self, pots):
        self.pots.update({(pot.scope, pot.period): pot for pot in pots})


class Steps:
    """What happens, to both; what one refuses, the other refuses."""

    @staticmethod
    def cap(connection, model, text, kind, amount):
        cap = Cap(Scope.parse(text), kind, amount)
        put_cap(connection, cap, who="ann", now=model.now)
        model.caps[cap.scope, kind] = cap
        period = period_of(kind, model.now)
        there = [pot for pot in model.pots.values()
                 if pot.scope == cap.scope and pot.period.partition(":")[0] == kind
                 and pot.period >= period]  # fmt: skip
        model.put(account.recap(pot, amount) for pot in there)
        if (cap.scope, period) not in model.pots:
            opened = account.open_pot(cap.scope, period, cap_microusd=amount, rights=model.rights)
            model.put([opened])
        against = [right.lease_id for right in model.rights if right.state == "open"
                   and ((cap.scope.covers(right.purpose)
                        and account.within(right.period, kind) is None)
                        or cap.scope.splits(right.purpose))]  # fmt: skip
        model.rights = [account.close(right) if right.lease_id in against else right
                        for right in model.rights]  # fmt: skip

    @staticmethod
    def uncap(connection, model, at):
        if not model.caps:
            return
        scope, kind = list(model.caps)[at % len(model.caps)]
        del model.caps[scope, kind]
        gone = (budgets.c.scope == scope.text()) & (budgets.c.kind == kind)
        connection.execute(delete(budgets).where(gone))
        books.drop_pots(connection, scope, kind)
        model.pots = {key: pot for key, pot in model.pots.items()
                      if key[0] != scope or key[1].partition(":")[0] != kind}  # fmt: skip

    @staticmethod
    def grant(connection, model, purpose, amount):
        if not Caps(tuple(model.caps.values())).covering(purpose):
            return
        pots = list(model.purpose_pots(purpose))
        period = period_of(Caps(tuple(model.caps.values())).lease_kind(purpose), model.now)
        right = Right(f"{len(model.rights):032x}", purpose, period, 1, amount)
        try:
            after = account.grant(pots, right)
        except BudgetExceeded:
            books.put_pots(connection, pots)  # what was opened stays
            return
        model.put(after)
        model.rights.append(right)
        found = books.read_pots(connection, [(pot.scope, pot.period) for pot in pots])
        for pot in pots:
            if (pot.scope, pot.period) not in found:
                opened = books.open_pot(
                    connection, pot.scope, pot.period, cap_microusd=pot.cap_microusd
                )
                found[pot.scope, pot.period] = opened
        books.put_pots(connection, account.grant(list(found.values()), right))
        books.add(connection, [Held(right, granted_at=float(len(model.rights)), text="x")])

    @staticmethod
    def close(connection, model, at):
        if not model.rights:
            return
        at %= len(model.rights)
        books.close(connection, [model.rights[at].lease_id], why="done")
        model.rights[at] = account.close(model.rights[at])

    @staticmethod
    def seal(connection, model, at, used):
        if not model.rights:
            return
        at %= len(model.rights)
        right = model.rights[at]
        pots = [pot for pot in model.pots.values() if pot.covers(right)]
        try:
            after, model.rights[at] = account.seal(pots, right, used_microusd=used)
        except StoreError:
            with pytest.raises(StoreError, match=right.lease_id):
                books.seal(connection, right.lease_id, used_microusd=used)
            return
        model.put(after)
        books.seal(connection, right.lease_id, used_microusd=used)

    @staticmethod
    def time(_connection, model, now):
        model.now = now


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(caps=st.lists(CAPS, min_size=2, max_size=5), steps=st.lists(STEPS, min_size=10, max_size=30))
def test_tables_say_what_the_rules_say(hub, caps, steps):
    def work(connection):
        for table in (leases, pot_table, budgets):
            connection.execute(delete(table))
        model = Model()
        for step, *args in (*caps, *steps):
            getattr(Steps, step)(connection, model, *args)
        assert books.unbalanced(connection) == ()
        there = {(pot.scope, pot.period): pot for pot in books.all_pots(connection)}
        rights = books.rights(connection, states=("open", "closing", "sealed"))
        assert there == model.pots
        assert [each.right for each in rights] == model.rights
        assert account.unbalanced(model.pots.values(), model.rights) == ()

    hub.store.write(work)


@pytest.fixture
def granted(hub):
    """Return a function that grants a right out of a cap of 1,000 for the fleet per month."""
    hub.store.write(lambda c: put_cap(c, FLEET, who="ann", now=NOW))

    def grant(number, amount, *, pool="gpu", device=DEVICE, state="open"):
        purpose = Purpose("kiosks", device, pool)
        right = Right(f"{number:032x}", purpose, MONTH, 1, amount)

        def work(connection):
            books.put_pots(connection, account.grant(books.covering(connection, right), right))
            books.add(connection, [Held(right, granted_at=NOW + number, text="signed")])
            if state == "closing":
                books.close(connection, [right.lease_id], why="done")

        hub.store.write(work)
        return right.lease_id

    return grant


FLEET = Cap(Scope(), "month", 1_000)
MONTH = "month:2026-11"


def states(hub):
    return {int(each.right.lease_id, 16): (each.right.state, each.right.used_microusd,
                                           each.why_closed) for each in held(hub)}  # fmt: skip


def test_money_comes_back_once(hub, granted):
    lease = granted(1, 300)
    assert pots(hub) == {f"fleet {MONTH}": (1_000, 700, 300, 0)}
    for _ in range(2):
        hub.store.write(lambda c: books.seal(c, lease, used_microusd=120))
        assert pots(hub) == {f"fleet {MONTH}": (1_000, 880, 0, 120)}
    with pytest.raises(StoreError, match="sealed at 120"):
        hub.store.write(lambda c: books.seal(c, lease, used_microusd=121))
    assert pots(hub) == {f"fleet {MONTH}": (1_000, 880, 0, 120)}


@pytest.mark.parametrize("used", [-1, 301])
def test_a_count_out_of_range_changes_nothing(hub, granted, used):
    lease = granted(1, 300)
    with pytest.raises(StoreError, match="granted for 300") as caught:
        hub.store.write(lambda c: books.seal(c, lease, used_microusd=used))
    assert "register" in caught.value.hint
    assert pots(hub) == {f"fleet {MONTH}": (1_000, 700, 300, 0)}


def test_a_lease_that_is_not_in_the_books_is_told(hub):
    with pytest.raises(StoreError, match="no lease ffff"):
        hub.store.write(lambda c: books.seal(c, "f" * 32, used_microusd=0))


def test_closing_frees_nothing_and_keeps_its_first_reason(hub, granted):
    one, two = granted(1, 100), granted(2, 100)
    hub.store.write(lambda c: books.close(c, [one], why="done"))
    hub.store.write(lambda c: books.close(c, [one, two, "f" * 32], why="quarantine"))
    assert states(hub) == {1: ("closing", 0, "done"), 2: ("closing", 0, "quarantine")}
    assert pots(hub) == {f"fleet {MONTH}": (1_000, 800, 200, 0)}


def test_rights_are_found_by_state_pool_and_device(hub, granted):
    granted(1, 1)
    granted(2, 1, pool="hosted", state="closing")
    granted(3, 1, device="e" * 32)

    def found(**values):
        rights = look(hub, lambda c: books.rights(c, **values))
        return [int(each.right.lease_id, 16) for each in rights]

    assert found() == [1, 2, 3]
    assert found(states=("open",)) == [1, 3]
    assert found(pool_id="hosted") == [2]
    assert found(device_id=DEVICE) == [1, 2]
    both = look(hub, lambda c: books.of_devices(c, [DEVICE, "e" * 32]))
    assert [int(each.right.lease_id, 16) for each in both] == [1, 2, 3]
    assert both[0].text == "signed"


def test_what_was_told_of_a_pot_stays(hub, granted):
    hub.store.write(lambda c: c.execute(pot_table.update().values(alerted=80)))
    granted(1, 100)
    assert look(hub, lambda c: c.execute(pot_table.select()).mappings().one())["alerted"] == 80


def test_books_are_rebuilt_from_what_gateways_told(hub, granted):
    """Told of 2 and 3 and of 7, which the backup does not know; 1 was never seen at its gateway."""
    for pool, grade in (("gpu", "gateway"), ("own", "escrow")):
        add_pool(hub, pool, grade=grade)
    granted(1, 100)
    granted(2, 100, state="closing")
    granted(3, 100)
    granted(4, 100, pool="own")
    spent = granted(5, 100, pool="own")
    hub.store.write(lambda c: books.seal(c, spent, used_microusd=30))
    purpose = Purpose("lab", "e" * 32, "gpu")
    told = [
        Right(f"{2:032x}", Purpose("kiosks", DEVICE, "gpu"), MONTH, 1, 60, "sealed", 60),
        Right(f"{3:032x}", Purpose("kiosks", DEVICE, "gpu"), MONTH, 1, 80, "closing"),
        Right(f"{7:032x}", purpose, MONTH, 1, 50, "sealed", 50),
    ]
    for _ in range(2):
        hub.store.write(lambda c: books.rebuild(c, told, read_caps(c), now=NOW))
        assert states(hub) == {
            1: ("sealed", 0, "restore"),
            2: ("sealed", 60, "done"),
            3: ("closing", 0, "restore"),
            4: ("closing", 0, "restore"),
            5: ("sealed", 30, "done"),
            7: ("sealed", 50, "restore"),
        }
        assert pots(hub) == {f"fleet {MONTH}": (1_000, 680, 180, 140)}
        assert look(hub, books.unbalanced) == ()


def test_pots_follow_the_caps_when_they_are_opened_anew(hub, granted):
    """The caps of the backup are not those in force."""
    granted(1, 100)
    old = Caps.of([Cap(Scope(group="kiosks"), "day", 500), Cap(Scope(), "month", 400)])
    hub.store.write(lambda c: put_cap(c, Cap(Scope(pool="gpu"), "total", 9), who="a", now=NOW))
    hub.store.write(lambda c: books.rebuild(c, [], old, now=NOW))
    assert pots(hub) == {
        f"fleet {MONTH}": (400, 300, 100, 0),
        "group:kiosks day:2026-11-18": (500, 500, 0, 0),
    }


def test_books_that_are_wrong_are_told(hub, granted):
    granted(1, 100)
    hub.store.write(lambda c: c.execute(pot_table.update().values(free_microusd=901)))
    assert look(hub, books.unbalanced) == (
        f"fleet {MONTH}: free, open and settled miss the cap",
        f"fleet {MONTH}: its rights come to something else",
    )
    hub.store.write(lambda c: c.execute(pot_table.update().values(free_microusd=900)))


def test_what_no_json_number_can_hold_is_kept_exactly(hub):
    most = 10**15
    hub.store.write(lambda c: put_cap(c, Cap(Scope(), "total", most), who="ann", now=NOW))
    right = Right("a" * 32, PURPOSES[0], "total", 1, most - 1)

    def work(connection):
        books.put_pots(connection, account.grant(books.covering(connection, right), right))
        books.add(connection, [Held(right)])

    hub.store.write(work)
    assert pots(hub) == {"fleet total": (most, 1, most - 1, 0)}
