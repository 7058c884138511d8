"""Where the money of each pool is counted: rows of the table ``gateways`` and their secrets.

A pool of the grade ``gateway`` has a URL, and its secret in ``keys/gateway-POOL.secret`` (mode
0600), at each replica. A pool of the grade ``escrow`` has neither: the devices' own counts are
taken. Guarantees: a pool is not taken away while rights for it are out, unless they are written off
in full. Grants nothing and moves no other money.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import httpx
from sqlalchemy import Connection, delete, insert, select, update

from edge.errors import ConfigError, EdgeError
from edge_sync.hub.budget import answers, books, mirror
from edge_sync.hub.budget.amounts import dollars
from edge_sync.hub.budget.asking import MOST_EPOCHS, Asking, checked_url
from edge_sync.hub.budget.caps import require_key
from edge_sync.hub.budget.outside import Gate
from edge_sync.hub.home import Hub, raise_fact, read_fact
from edge_sync.keys import read_private, write_private
from edge_sync.store import bulk
from edge_sync.store.schema import facts, gateways, leases

WRITTEN_OFF = "removed"
"""Why a lease was closed that counts as spent in full, whatever its gateway would say."""
Grade: TypeAlias = Literal["gateway", "escrow"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}", re.ASCII)
_LEAST_SECRET = 16
_MOST_SECRET = 1_000
_MOST_ERROR = 1_000


@dataclass(frozen=True, slots=True)
class Gateway:
    """A row.

    Attributes:
        epoch: that it confirmed; leases for it are granted only where it is the hub's.
        rows_after: what was read of its rows.
        totals: as it told last.
        seen_at: when it told last, seconds since the epoch.
        error: why the last attempt failed; empty where it did not.

    """

    pool_id: str
    url: str
    grade: Grade
    epoch: int
    rows_after: int
    totals: Mapping[str, int]
    seen_at: float | None
    error: str
    added_by: str
    added_at: float


def read_all(connection: Connection) -> list[Gateway]:
    """Return all pools whose money is counted somewhere, by name."""
    rows = connection.execute(select(gateways).order_by(gateways.c.pool_id)).mappings()
    return [Gateway(**{**row, "totals": json.loads(row["totals"] or "{}")}) for row in rows]


def find(connection: Connection, pool_id: str) -> Gateway:
    """Return the row of a pool.

    Raises:
        ConfigError: there is none.

    """
    for each in read_all(connection):
        if each.pool_id == pool_id:
            return each
    raise ConfigError(
        f"There is no gateway of pool {pool_id[:64]!r}.",
        hint="`edge-hub gateways list` shows all.",
    )


def counting(connection: Connection) -> list[Gateway]:
    """Return the gateways that count: all but pools of the grade escrow."""
    return [each for each in read_all(connection) if each.grade == "gateway"]


def read_secret(keys: Path, pool_id: str) -> str:
    """Return the secret of a pool's gateway.

    Raises:
        ConfigError: it is not here, or others can read it.

    """
    path = secret_path(keys, pool_id)
    if not path.exists():
        raise ConfigError(
            f"The secret of the gateway of pool {pool_id} is not in {path}.",
            hint="Copy it from the replica where the gateway was added.",
        )
    return read_private(path).decode("ascii", "replace").strip()


def secret_path(keys: Path, pool_id: str) -> Path:
    """Return where the secret of a pool's gateway is."""
    return keys / f"gateway-{pool_id}.secret"


def add(
    hub: Hub,
    pool_id: str,
    *,
    url: str,
    secret: str,
    who: str,
    transport: httpx.BaseTransport | None = None,
) -> Gateway:
    """Note where a pool's gateway is, or where it is now; ``sealing.tend`` then admits it.

    Args:
        hub: the hub, open.
        pool_id: as the gateway's settings, packs and leases name it.
        url: of the gateway; devices use their pack's.
        secret: that it expects, 16 or more characters of ASCII.
        who: for the audit log.
        transport: what carries the requests; the network where ``None``.

    Raises:
        ConfigError: the name, URL or secret is none, the pool is one of the grade escrow, or the
            gateway has lost what it knew of leases that are out.
        SyncError: the gateway does not answer, or is that of another pool.
        StoreError: the database or the keys folder cannot be written.

    """
    _checked(pool_id)
    url, secret = checked_url(url), _checked_secret(secret)
    asking = Asking(url, secret, pool_id=pool_id, transport=transport)
    try:
        state = asking.state(limit=1)
    finally:
        asking.close()
    mirror.require_whole(hub)
    now = hub.clock()

    def work(connection: Connection) -> Gateway:
        require_key(hub, connection)
        mirror.count_change(connection)
        begin_epochs(connection)
        before = _before(connection, pool_id, grade="gateway")
        if before is None:
            put(connection, Gate(pool_id, url, "gateway"), who=who, now=now)
        else:
            require_register(before, state)
            change = update(gateways).where(gateways.c.pool_id == pool_id)
            connection.execute(change.values(url=url, error=""))
        write_private(secret_path(hub.keys, pool_id), secret.encode() + b"\n")
        return find(connection, pool_id)

    made = hub.change(who, "gateway.add", about=pool_id, detail={"url": url}, work=work)
    mirror.write(hub)
    return made


def add_escrow(hub: Hub, pool_id: str, *, who: str) -> Gateway:
    """Have a pool's leases counted by the devices that spend them; a copied disk spends twice.

    Raises:
        ConfigError: the name is none, or the pool has a gateway.
        StoreError: the database or the keys folder cannot be written.

    """
    _checked(pool_id)
    mirror.require_whole(hub)
    now = hub.clock()

    def work(connection: Connection) -> Gateway:
        require_key(hub, connection)
        mirror.count_change(connection)
        begin_epochs(connection)
        if _before(connection, pool_id, grade="escrow") is None:
            put(connection, Gate(pool_id, "", "escrow"), who=who, now=now)
        return find(connection, pool_id)

    made = hub.change(who, "gateway.add", about=pool_id, detail={"grade": "escrow"}, work=work)
    mirror.write(hub)
    return made


def remove(hub: Hub, pool_id: str, *, who: str, strand: bool = False) -> int:
    """Take a pool's gateway away; return the micro-dollars that were written off.

    Args:
        hub: the hub, open.
        pool_id: whose.
        who: for the audit log.
        strand: write off in full what is out: it counts as spent until its period ends.

    Raises:
        ConfigError: there is none, or rights for it are out and are not to be written off.
        StoreError: the database or the keys folder cannot be written.

    """
    mirror.require_whole(hub)

    def work(connection: Connection) -> int:
        find(connection, pool_id)
        mirror.count_change(connection)
        out = books.rights(connection, pool_id=pool_id)
        total = sum(held.right.amount_microusd for held in out)
        if out and not strand:
            raise ConfigError(
                f"{len(out)} leases over {dollars(total)} for pool {pool_id} are out.",
                hint="Wait until they are sealed, or pass --strand to count them as spent in full.",
            )
        drop(connection, pool_id)
        return total

    gone = hub.change(
        who,
        "gateway.remove",
        about=pool_id,
        detail=lambda total: {"written_off_microusd": total},
        work=work,
    )
    secret_path(hub.keys, pool_id).unlink(missing_ok=True)
    mirror.write(hub)
    return gone


def drop(connection: Connection, pool_id: str) -> None:
    """Forget a pool's gateway, inside a write; rights that are out count as spent in full."""
    out = [held.right for held in books.rights(connection, pool_id=pool_id)]
    for right in out:
        books.seal(connection, right.lease_id, used_microusd=right.amount_microusd)
    rows = [(right.lease_id, WRITTEN_OFF) for right in out]
    bulk.change(connection, leases, rows=rows, columns=("lease_id", "why_closed"), by="lease_id")
    connection.execute(delete(gateways).where(gateways.c.pool_id == pool_id))
    connection.execute(delete(facts).where(facts.c.name == told_fact(pool_id)))


def put(connection: Connection, gate: Gate, *, who: str, now: float, epoch: int = 0) -> None:
    """Write the row of a new gateway, inside a write.

    Args:
        connection: inside a write.
        gate: what it is.
        who: added it.
        now: seconds since the epoch.
        epoch: the least that it must know; 0 for one that may never have been told any.

    """
    connection.execute(
        insert(gateways).values(
            pool_id=gate.pool_id,
            url=gate.url,
            grade=gate.grade,
            epoch=epoch,
            rows_after=0,
            totals="{}",
            error="",
            added_by=who[:64],
            added_at=now,
        )
    )


def require_register(gateway: Gateway, state: answers.State) -> None:
    """See to it that a gateway still knows what it was told.

    Raises:
        ConfigError: it is at an older epoch than it confirmed, so its register was lost or set
            back, and what it says of leases cannot be believed; or at one that no hub can have
            told.

    """
    if (state.epoch or 0) > gateway.epoch + MOST_EPOCHS:
        raise ConfigError(
            f"The gateway of pool {gateway.pool_id} is at epoch {state.epoch} and was at "
            f"{gateway.epoch}: no hub told it that.",
            hint="Look at its register; take it away with `edge-hub gateways remove --strand`.",
        )
    if (state.epoch or 0) < gateway.epoch:
        raise set_back(gateway, f"is at epoch {state.epoch or 0} and was at {gateway.epoch}")


def set_back(gateway: Gateway, how: str) -> ConfigError:
    """Return the error of a gateway whose register was lost or set back, as one can tell from."""
    return ConfigError(
        f"The gateway of pool {gateway.pool_id} {how}: its register was lost or set back.",
        hint="Bring its register back; or write off what is out with `edge-hub gateways "
        "remove --strand`, and add it again.",
    )


def note(
    connection: Connection, pool_id: str, *, state: answers.State, now: float, **values: Any
) -> None:
    """Note what a gateway told, inside a write."""
    if state.totals is not None:
        values["totals"] = state.totals.model_dump_json()
    change = update(gateways).where(gateways.c.pool_id == pool_id)
    connection.execute(change.values(error="", seen_at=now, **values))


def note_error(hub: Hub, gateway: Gateway, error: EdgeError | None) -> None:
    """Note why a gateway could not be asked, or that it could; what is known is not written."""
    text = "" if error is None else str(error)[:_MOST_ERROR]
    if text != gateway.error:
        change = update(gateways).where(gateways.c.pool_id == gateway.pool_id)
        hub.store.write(lambda connection: connection.execute(change.values(error=text)))


def told_fact(pool_id: str) -> str:
    """Return the name of the fact that counts the revoked devices that a gateway was told of."""
    digest = hashlib.sha256(pool_id.encode()).hexdigest()
    return f"revoked-{digest[:32]}"


def begin_epochs(connection: Connection) -> int:
    """Return the hub's epoch; that of a hub of an older version begins with 1."""
    return read_fact(connection, "epoch") or raise_fact(connection, "epoch")


def as_json(gateway: Gateway) -> dict[str, Any]:
    """Return a row as plain JSON."""
    return asdict(gateway) | {"totals": dict(gateway.totals)}


def _before(connection: Connection, pool_id: str, *, grade: Grade) -> Gateway | None:
    found = [each for each in read_all(connection) if each.pool_id == pool_id]
    if found and found[0].grade != grade:
        raise ConfigError(
            f"Pool {pool_id} is there with the grade {found[0].grade}.",
            hint=f"Take it away first: `edge-hub gateways remove {pool_id}`.",
        )
    return found[0] if found else None


def _checked(pool_id: str) -> None:
    if _NAME.fullmatch(pool_id) is None:
        raise ConfigError(
            f"{pool_id[:80]!r} is no name of a pool.",
            hint="Use up to 64 letters, digits, dots, dashes and underscores.",
        )


def _checked_secret(secret: str) -> str:
    found = secret.strip()
    if not _LEAST_SECRET <= len(found) <= _MOST_SECRET or not found.isascii():
        raise ConfigError(
            f"The secret of a gateway has {_LEAST_SECRET} or more characters of ASCII.",
            hint="Use what stands in the variable secret_env of its settings.",
        )
    return found
