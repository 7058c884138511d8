from edge_sync.hub.assigning import assign_group
from edge_sync.hub.home import read_fact
from edge_sync.hub.view import read_view
from edge_sync.server.upkeep import renew

DAY = 86_400.0


def state(hub):
    with hub.store.reading() as connection:
        return read_view(connection), read_fact(connection, "generation")


def test_nothing_is_renewed_before_it_is_due(hub):
    _, before = state(hub)
    assert not renew(hub)
    assert state(hub)[1] == before


def test_signatures_are_renewed_before_they_expire(hub):
    hub.change(
        "test",
        "assign",
        about="kiosks",
        detail={},
        work=lambda c: assign_group(hub, c, hub.signing(c), group="kiosks", revision=0),
    )
    view, generation = state(hub)
    hub.clock.at += 2_000 * DAY
    assert renew(hub)
    later, raised = state(hub)
    assert raised > generation
    assert later.timestamp > view.timestamp
    assert len(later.roots) == 2
    assert later.groups["kiosks"] > view.groups["kiosks"]
    assert not renew(hub)
