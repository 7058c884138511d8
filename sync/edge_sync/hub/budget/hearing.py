"""What a gateway tells of all leases and devices it knows, held against what is known of it.

Guarantees: one that lost its register, or set it back behind its own rows, is refused; nothing
follows from what it says then. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from edge.errors import InputError
from edge_sync.hub.budget import gateways, pulling
from edge_sync.hub.budget.answers import Standing, State
from edge_sync.hub.budget.asking import PAGE, Asking, GatewayRefused
from edge_sync.hub.budget.gateways import Gateway
from edge_sync.hub.home import Hub
from edge_sync.money.account import Report
from edge_sync.money.caps import Purpose
from edge_sync.money.periods import kind_of
from edge_sync.store import bulk
from edge_sync.store.schema import leases


@dataclass(frozen=True, slots=True)
class Heard:
    """What one gateway told.

    Attributes:
        reports: its leases, as the rules take them.
        revoked: devices that it refuses.

    """

    state: State
    reports: Sequence[Report]
    revoked: Sequence[str]


def fence(gateway: Gateway, line: Asking, *, epoch: int) -> int:
    """Tell a gateway the epoch, and return the one in force; it may be higher.

    Raises:
        ConfigError: it lost its register: it has not even the epoch before.
        SyncError: it does not answer, or says what cannot be true.

    """
    gateways.require_register(gateway, line.state(limit=1))
    return line.fence(epoch)


def hear(hub: Hub, gateway: Gateway, line: Asking) -> Heard:
    """Return what a fenced gateway tells.

    Raises:
        SyncError: it does not answer, or says what cannot be true.

    """
    state, standings = read_register(line)
    used = {each.lease_id: each.used_microusd for each in standings}
    with hub.store.reading() as connection:
        less = pulling.less_than_known(connection, gateway.pool_id, used)
    if less:
        raise GatewayRefused(
            f"The gateway of pool {gateway.pool_id} tells of less for lease {less} than its own "
            "rows had: its register was set back.",
            hint="Bring its register back; or write off what is out with `edge-hub gateways "
            "remove --strand`, and add it again.",
        )
    try:
        reports = [_report(gateway.pool_id, each) for each in standings]
    except InputError as error:
        raise GatewayRefused(
            f"The gateway of pool {gateway.pool_id} tells of a lease that is none: {error.message}"
        ) from error
    return Heard(state, reports, _read_revoked(line))


def read_register(line: Asking) -> tuple[State, list[Standing]]:
    """Return a gateway's state and all leases that it has seen.

    Raises:
        SyncError: it does not answer, or says what cannot be true.

    """
    state = line.state(totals=True)
    found, page = list(state.leases), state.leases
    while len(page) == PAGE:
        page = line.state(after=page[-1].lease_id).leases
        found += page
    # One that was sealed before it was seen never pays.
    return state, [each for each in found if each.amount_microusd]


def _read_revoked(line: Asking) -> list[str]:
    page = line.revoked(limit=PAGE)
    found = list(page)
    while len(page) == PAGE:
        page = line.revoked(after=page[-1], limit=PAGE)
        found += page
    return found


def unknown(connection: Connection, lease_ids: Sequence[str]) -> set[str]:
    """Return those of some leases that the database has not."""
    wanted = set(lease_ids)
    keys = [(lease_id,) for lease_id in wanted]
    rows = bulk.find(connection, leases, keys=keys, by=("lease_id",), columns=("lease_id",))
    return wanted - {lease_id for (lease_id,) in rows}


def _report(pool_id: str, standing: Standing) -> Report:
    kind_of(standing.period)
    return Report(
        standing.lease_id,
        Purpose.of_lease(standing.scope, device_id=standing.device_id, pool_id=pool_id),
        standing.period,
        standing.epoch,
        standing.used_microusd,
        final=standing.open == 0,
    )
