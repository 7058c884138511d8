"""The signing keys in use: listed, replaced; and signatures renewed before they expire.

Knows no key's secret; ``edge_sync.trust.vault`` does.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, select

from edge_sync.hub.assigning import assign_again
from edge_sync.hub.home import Hub
from edge_sync.store.schema import groups
from edge_sync.trust.assignment import ROLE
from edge_sync.trust.repository import TOP_ROLES


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """The keys of one role.

    Attributes:
        keyids: of the keys that count.
        threshold: how many must sign.
        here: how many of their private halves are in the hub's folder.
        version: of the signed metadata; ``None`` for assignments, which have serials.
        expires_at: of the metadata, seconds since the epoch; ``None`` likewise.

    """

    role: str
    keyids: tuple[str, ...]
    threshold: int
    here: int
    version: int | None
    expires_at: float | None

    @property
    def signs(self) -> bool:
        """Whether the hub can sign for this role now."""
        return self.here >= self.threshold


def list_keys(hub: Hub) -> list[RoleKeys]:
    """Return the keys in use, by role."""
    repository = hub.repository
    found = []
    for role in (*TOP_ROLES, ROLE):
        keyids, threshold = repository.keys(role)
        part = None if role == ROLE else getattr(repository, role)
        found.append(
            RoleKeys(
                role=role,
                keyids=tuple(keyids),
                threshold=threshold,
                here=sum(keyid in repository.vault.signers for keyid in keyids),
                version=part.version if part else None,
                expires_at=part.expires_s if part else None,
            )
        )
    return found


def rotate(hub: Hub, role: str, *, who: str) -> RoleKeys:
    """Replace a role's keys by new ones; after ``assignment`` all assignments are signed anew.

    Raises:
        ConfigError: no such role, or a key that must sign is elsewhere.

    """

    def work(connection: Connection) -> None:
        before = hub.signing(connection)
        after = before.rotate(role, now=hub.clock())
        hub.keep(connection, after, before=before)
        if role == ROLE:
            assigned = select(groups.c.name).where(groups.c.serial > 0).order_by(groups.c.name)
            for group in connection.execute(assigned).scalars().all():
                assign_again(hub, connection, after, group=group)

    hub.change(who, "keys.rotate", about=role, detail={}, work=work)
    return next(keys for keys in list_keys(hub) if keys.role == role)
