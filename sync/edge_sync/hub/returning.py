"""The way back: what groups had before a rollout, as a new revision.

Works inside the transaction of a change and begins none. Revisions rise: a device never takes an
older one, so the content comes back under a new number.
"""

from __future__ import annotations

import hashlib

from sqlalchemy import Connection, func, insert, select, update

from edge.overlay import compile_policy, read_policy
from edge_sync.hub.assigning import assign_group, highest_in, revision_of
from edge_sync.hub.home import Hub, raise_fact
from edge_sync.hub.policies import bring_back
from edge_sync.hub.rollout_record import Rollout
from edge_sync.store.schema import assignments, groups, policies
from edge_sync.trust.assignment import policy_path
from edge_sync.trust.repository import Repository

_NOTHING = "{}\n"


def give_back(hub: Hub, connection: Connection, rollout: Rollout, *, who: str, why: str) -> int:
    """Give every group of a rollout what it had before; return the first group's new revision.

    Args:
        hub: the hub, open.
        connection: inside a change.
        rollout: whose groups go back.
        who: author of the new revisions.
        why: their message.

    Raises:
        ConfigError: a key is elsewhere.

    """
    before: dict[int, list[str]] = {}
    for name in rollout.groups:
        held = revision_of(connection, rollout.serials[name]["old"])
        before.setdefault(held, []).append(name)
    found: dict[str, int] = {}
    for revision, names in sorted(before.items()):
        if revision:
            made, repository = bring_back(hub, connection, revision, message=why, author=who)
            number = made.revision
        else:
            number, repository = _publish_nothing(hub, connection, message=why, author=who)
        for name in names:
            assign_group(hub, connection, repository, group=name, revision=number)
            found[name] = number
    return found[rollout.groups[0]]


def make_common(hub: Hub, connection: Connection, *, group: str, serial: int, who: str) -> None:
    """Make a rollout's assignment that of a whole group, inside a change.

    Devices that were moved here meanwhile follow only what is newer, and versions never fall: for
    their sake it is signed anew, with its content as a new revision where one has a higher one.

    Raises:
        ConfigError: a key is elsewhere.

    """
    own = select(func.max(assignments.c.serial)).where(
        (assignments.c.group_name == group) & assignments.c.device_id.is_not(None)
    )
    if (connection.execute(own).scalar() or 0) < serial:
        connection.execute(update(groups).where(groups.c.name == group).values(serial=serial))
        return
    revision, repository = revision_of(connection, serial), hub.signing(connection)
    if highest_in(connection, group) > revision:
        why = f"For devices that were moved into {group}"
        made, repository = bring_back(hub, connection, revision, message=why, author=who)
        revision = made.revision
    assign_group(hub, connection, repository, group=group, revision=revision)


def _publish_nothing(
    hub: Hub, connection: Connection, *, message: str, author: str
) -> tuple[int, Repository]:
    """Publish a policy that changes nothing of the packs, for groups that had none."""
    number, now = raise_fact(connection, "revision"), hub.clock()
    empty = read_policy(_NOTHING, what="The policy without content")
    document = compile_policy(empty, revision=number, created_at=now)
    connection.execute(
        insert(policies).values(
            revision=number,
            digest=hashlib.sha256(document).hexdigest(),
            document=document.decode("utf-8"),
            source=_NOTHING,
            message=message,
            author=author,
            created_at=now,
        )
    )
    before = hub.signing(connection)
    after = before.publish({policy_path(number): document}, now=now)
    hub.keep(connection, after, before=before)
    return number, after
