"""The same messages in any order, and some of them twice: the hub ends the same (I7)."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from money_world import new_world
from world_provider import Way

from edge_sync.hub.budget import answers, pulling
from edge_sync.hub.reports import put_rows
from edge_sync.store.schema import ledger_rows, redemptions
from edge_sync.wire import LedgerRow, SyncRequest

STATES = ("reserved", "sent", "unclear", "settled")
ORDERS = st.permutations([*range(8), *range(0, 8, 3)])


@pytest.fixture(scope="module")
def world():
    made = new_world()
    for device in made.devices:
        device.sync()
    for at, way in enumerate((Way.FINE, Way.HANG, Way.REFUSED, Way.NO_USAGE)):
        made.ask(at % 2, "big10", way, 0.3)
    yield made
    made.close()
    shutil.rmtree(made.folder)


def ended(world, table, messages):
    """Return a table after messages came in turn, and leave it as it was."""
    store, found = world.hub.hub.store, []

    def work(connection):
        for message in messages:
            message(connection)
        rows = connection.execute(table.select()).mappings().all()
        found[:] = sorted(str(dict(row)) for row in rows)  # a write that fails is run again
        raise LookupError

    with pytest.raises(LookupError):
        store.write(work)
    return found


def reports(world):
    """Return what two devices tell of four calls, a state each."""
    sent = []
    for at in range(8):
        device, state = world.devices[at % 2], STATES[at // 2]
        row = LedgerRow(row_id=f"{at % 2:032x}", task="t", pool="big", state=state, at=1.0,
                        cost_microusd=5 if state == "settled" else 0)  # fmt: skip
        request = SyncRequest(device_id=device.id, incarnation=1, request_id=f"{at:032x}",
                              nonce="", at=1.0, rows=[row])  # fmt: skip
        sent.append(lambda c, request=request: put_rows(c, [(request, 1.0, 1)]))
    return sent


def pages(world):
    """Return a gateway's rows, one in a page, with an earlier state of each."""
    sql = ("SELECT seq, hold_id, lease_id, state, most, actual, reported, flag, begun_at, ended_at "
           "FROM holds ORDER BY seq")  # fmt: skip
    names = sql.removeprefix("SELECT ").split(" FROM")[0].split(", ")
    sent = []
    for values in world.gateways["big"].look(sql):
        row = dict(zip(names, values, strict=True))
        began = {**row, "seq": row["seq"] - 1 or 1, "state": "held", "actual": None}
        for each in (began, row):
            read = answers.Row.model_validate(each)
            sent.append(lambda c, read=read: pulling.keep(c, pool_id="big", rows=[read]))
    return sent


@pytest.mark.parametrize(
    ("table", "told"), [(ledger_rows, reports), (redemptions, pages)], ids=["devices", "gateways"]
)
def test_order_and_doubles_change_nothing(world, table, told):
    messages = told(world)
    wanted = ended(world, table, messages)
    assert len(wanted) >= 2

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(ORDERS)
    def check(order):
        mixed = [messages[at % len(messages)] for at in order]
        assert ended(world, table, mixed) == wanted

    check()
