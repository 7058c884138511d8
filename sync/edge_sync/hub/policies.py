"""Policies: checked against the fleet's packs, compiled, signed and kept, revision by revision.

Guarantees: a revision is one transaction with its signed metadata and its audit entry, and rises;
what is refused leaves nothing behind; a revision is never changed. Signed metadata lists the newest
revisions and those in force, so that what devices fetch stays small.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select

from edge.errors import ConfigError, InputError
from edge.overlay import (
    Change,
    Policy,
    compile_policy,
    difference,
    lay,
    load_document,
    read_policy,
)
from edge.pack import find_pack, load_pack
from edge.policy.conditions import Type
from edge.task import Pack
from edge_sync.hub import audit
from edge_sync.hub.assigning import (
    assign_group,
    chosen_groups,
    named_models,
    require_no_rollout,
    rollouts_in,
)
from edge_sync.hub.home import Hub, raise_fact
from edge_sync.hub.revisions import Published, find
from edge_sync.hub.spent import require_room
from edge_sync.store.schema import assignments, devices, groups, models, policies
from edge_sync.trust.assignment import policy_path
from edge_sync.trust.metadata import MAX_BYTES
from edge_sync.trust.repository import Repository

DEFAULT_PACK = "kiosk"
MAX_MESSAGE = MAX_REASON = 500
_LISTED = 20


@dataclass(frozen=True)
class Checked:
    """A policy that fits the fleet's packs.

    Attributes:
        source: as it was written.
        packs: with the policy laid over them, by name.
        context: what the packs declare for conditions.
        strange: packs that devices run and the hub does not have, so that nothing was checked.

    """

    policy: Policy
    source: str
    packs: dict[str, Pack]
    context: dict[str, Type]
    strange: tuple[str, ...]


def check(hub: Hub, text: bytes, *, what: str, packs: Sequence[str] = ()) -> Checked:
    """Check a policy and change nothing.

    Args:
        hub: the hub, open.
        text: YAML.
        what: names it in errors.
        packs: names of shipped packs, or files; those that devices run where none are given.

    Raises:
        ConfigError: it is no policy, does not fit a pack, names a model that the hub does not have,
            or has a budget below what is spent.

    """
    policy = read_policy(text, what=what)
    found, strange = _packs(hub, packs)
    laid = {pack.name: lay(pack, policy) for pack in found}
    context: dict[str, Type] = {}
    for pack in found:
        context |= pack.context
    checked = Checked(policy, text.decode("utf-8"), laid, context, strange)
    with hub.store.reading() as connection:
        _require(hub, connection, checked)
    compile_policy(policy, revision=1, created_at=hub.clock(), context=context)
    return checked


def publish(
    hub: Hub, checked: Checked, *, message: str, who: str, at_once: Sequence[str] = ()
) -> Published:
    """Publish a checked policy as the next revision.

    Args:
        hub: the hub, open.
        checked: by ``check``; what may have changed since is checked again.
        message: why, for people; not empty.
        who: for the audit log.
        at_once: groups all of whose devices are to run it now.

    Raises:
        InputError: the message is empty or too long.
        ConfigError: as ``check``; no such group; a rollout is under way there.

    """
    _require_message(message)

    def work(connection: Connection) -> Published:
        _require(hub, connection, checked)
        revision, now = raise_fact(connection, "revision"), hub.clock()
        document = compile_policy(
            checked.policy, revision=revision, created_at=now, context=checked.context
        )
        made = _published(
            revision, document, now=now, source=checked.source, message=message, author=who
        )
        repository = _keep(hub, connection, made)
        _assign(hub, connection, repository, made, at_once)
        return made

    return hub.change(
        who,
        "policy.publish",
        about=lambda made: f"revision {made.revision}",
        detail=lambda made: {
            "revision": made.revision,
            "sha256": made.digest,
            "message": message,
            "groups": list(at_once),
        },
        work=work,
    )


def note_refusal(hub: Hub, what: str, *, who: str, reason: str) -> None:
    """Put into the audit log that a policy was to be published and was refused.

    Args:
        hub: the hub, open.
        what: names the policy.
        who: wanted to.
        reason: in one sentence, as the admin was told.

    """
    detail = {"reason": reason[:MAX_REASON]}

    def work(connection: Connection) -> None:
        now = hub.clock()
        audit.append(connection, at=now, who=who, what="policy.refuse", about=what, detail=detail)

    hub.store.write(work)


def restore(
    hub: Hub, revision: int, *, who: str, message: str | None = None, at_once: Sequence[str] = ()
) -> Published:
    """Publish the content of an earlier revision as the next one.

    Raises:
        ConfigError: there is no such revision or group, or a rollout is under way there.
        InputError: the message is empty or too long.

    """
    message = f"Restores revision {revision}" if message is None else message
    _require_message(message)

    def work(connection: Connection) -> Published:
        made, repository = bring_back(hub, connection, revision, message=message, author=who)
        _assign(hub, connection, repository, made, at_once)
        return made

    return hub.change(
        who,
        "policy.restore",
        about=lambda made: f"revision {made.revision}",
        detail=lambda made: {
            "revision": made.revision,
            "restores": revision,
            "message": message,
            "groups": list(at_once),
        },
        work=work,
    )


def bring_back(
    hub: Hub, connection: Connection, revision: int, *, message: str, author: str
) -> tuple[Published, Repository]:
    """Keep the content of an earlier revision as the next one, inside a change.

    Its conditions were read when it was published and are taken over as they are. Return it, and
    the repository in which it is published.

    Raises:
        ConfigError: there is no such revision.

    """
    old = find(connection, revision)
    number, now = raise_fact(connection, "revision"), hub.clock()
    body = {
        **json.loads(old.document),
        "revision": number,
        "created_at": now,
        "restores": revision,
    }
    document = _canonical(body)
    load_document(document)
    made = _published(
        number,
        document,
        now=now,
        source=old.source,
        message=message,
        author=author,
        restores=revision,
    )
    return made, _keep(hub, connection, made)


def changes(old: Published | None, new: Published | Checked) -> list[Change]:
    """Return what differs between two policies, in the order of the paths."""
    before = None if old is None else read_policy(old.source, what=f"Revision {old.revision}")
    if isinstance(new, Checked):
        return difference(before, new.policy)
    return difference(before, read_policy(new.source, what=f"Revision {new.revision}"))


def _packs(hub: Hub, named: Sequence[str]) -> tuple[list[Pack], tuple[str, ...]]:
    """Return the packs to check against, and the names of those that are not here."""
    if named:
        return [load_pack(find_pack(name)) for name in named], ()
    query = select(devices.c.pack).where((devices.c.pack != "") & (devices.c.status != "revoked"))
    with hub.store.reading() as connection:
        reported = sorted(set(connection.execute(query.distinct()).scalars()))
    found: list[Pack] = []
    strange = []
    for name in reported:
        try:
            found.append(load_pack(find_pack(name)))
        except ConfigError:
            strange.append(name)
    return found or [load_pack(find_pack(DEFAULT_PACK))], tuple(strange)


def _require(hub: Hub, connection: Connection, checked: Checked) -> None:
    """Check what depends on the moment: models that are here, and money that is spent."""
    for name, digest in named_models(checked.policy.sections).items():
        row = connection.execute(select(models.c.name).where(models.c.digest == digest)).first()
        if row is None or row[0] != name:
            raise ConfigError(
                f"{checked.policy.what} assigns the model {name} by the digest {digest[:12]}…, "
                "which the hub does not have.",
                hint="Add it by `edge-hub models add FOLDER`; `models list` shows digests.",
            )
    if "budget" not in checked.policy.sections:
        return
    budgets = {name: pack.budget for name, pack in checked.packs.items() if pack.budget}
    if budgets:
        default = next(iter(budgets.values()))
        require_room(connection, budgets, default=default, now=hub.clock())


def _require_message(message: str) -> None:
    if not 0 < len(message.strip()) <= MAX_MESSAGE:
        raise InputError(
            f"A message of {len(message.strip())} characters tells nobody why.",
            hint=f"Write 1 to {MAX_MESSAGE} characters: --message 'Lower cap for November'.",
        )


def _keep(hub: Hub, connection: Connection, made: Published) -> Repository:
    """Store a revision and sign it; withdraw old ones that nobody is assigned."""
    document = made.document.encode("utf-8")
    if len(document) > MAX_BYTES["policy"]:
        raise ConfigError(
            f"The policy has {len(document):,} bytes as a document; devices take "
            f"{MAX_BYTES['policy']:,}.",
            hint="Shorten its prompts and schemas.",
        )
    connection.execute(insert(policies).values(**_row(made)))
    before = hub.signing(connection)
    kept = {policy_path(number) for number in _listed(connection)}
    published = before.targets.signed.targets
    old = [path for path in published if path.startswith("policies/") and path not in kept]
    after = before.publish(
        {policy_path(made.revision): document}, now=made.created_at, withdraw=old
    )
    hub.keep(connection, after, before=before)
    return after


def _listed(connection: Connection) -> set[int]:
    """Return the revisions that signed metadata has to list: the newest, and those in force."""
    newest = select(policies.c.revision).order_by(policies.c.revision.desc()).limit(_LISTED)
    found = set(connection.execute(newest).scalars())
    # The newest assignments of groups and of single devices, and those of rollouts under way.
    common = select(assignments.c.revision).join(groups, groups.c.serial == assignments.c.serial)
    own = select(assignments.c.revision).where(assignments.c.device_id.is_not(None))
    found |= set(connection.execute(common.distinct()).scalars())
    found |= set(connection.execute(own.distinct()).scalars())
    for name in connection.execute(select(groups.c.name)).scalars():
        for row in rollouts_in(connection, name):
            found |= {int(row["revision"]), int(row["previous"])}
    return {int(number) for number in found}


def _assign(
    hub: Hub,
    connection: Connection,
    repository: Repository,
    made: Published,
    names: Sequence[str],
) -> None:
    chosen = chosen_groups(connection, names)
    require_no_rollout(connection, chosen)
    for group in chosen:
        assign_group(hub, connection, repository, group=group, revision=made.revision)


def _published(
    revision: int,
    document: bytes,
    *,
    now: float,
    source: str,
    message: str,
    author: str,
    restores: int | None = None,
) -> Published:
    return Published(
        revision=revision,
        digest=hashlib.sha256(document).hexdigest(),
        message=message.strip(),
        author=author[:64],
        created_at=now,
        restores=restores,
        source=source,
        document=document.decode("utf-8"),
    )


def _row(made: Published) -> dict[str, Any]:
    return {name: getattr(made, name) for name in Published.__slots__}


def _canonical(body: dict[str, Any]) -> bytes:
    """Return the form of a document, as ``edge.overlay`` writes it."""
    text = json.dumps(
        body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")
