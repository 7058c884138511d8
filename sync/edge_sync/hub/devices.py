"""How a device joins: a one-time code and the proof that it holds its key.

Guarantees: a code lets in as many devices as it was made for; the same request again, as after a
lost answer, gets an answer again; a key that is known already is refused. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, update

from edge.errors import SignatureInvalid
from edge_sync import keys
from edge_sync.hub import audit
from edge_sync.hub.enrolment import code_digest, redeem
from edge_sync.hub.home import Hub
from edge_sync.hub.refusals import Refused
from edge_sync.hub.syncing import make_nonce, revoked
from edge_sync.store.schema import devices, metadata_files
from edge_sync.wire import EnrolReply, EnrolRequest


def check_enrolment(request: EnrolRequest) -> str:
    """Return the id of a device that proves to hold its key.

    Raises:
        Refused: it does not.

    """
    try:
        device_id = keys.device_id(request.public_key)
        keys.verify_enrolment(request.public_key, request.code, signature=request.signature)
    except SignatureInvalid as error:
        raise Refused(
            "bad_signature", error.message, hint=error.hint, what="device.enrol_refused"
        ) from error
    return device_id


def enrolling(
    hub: Hub, request: EnrolRequest, *, device_id: str, nonces: Callable[[], str] = make_nonce
) -> Callable[[Connection], EnrolReply]:
    """Return the write by which a device joins.

    Args:
        hub: the hub, open.
        request: whose proof was checked.
        device_id: of its key.
        nonces: gives the nonce for the first sync.

    Raises:
        Refused: from the write; the code is wrong, used up or too old, or the key is known.

    """

    def work(connection: Connection) -> EnrolReply:
        now = hub.clock()
        query = select(devices).where(devices.c.id == device_id)
        held = connection.execute(query).mappings().first()
        digest = code_digest(request.code)
        if held is not None:
            _require_same(held, digest)
            nonce = nonces()
            changed = update(devices).where(devices.c.id == device_id).values(nonce=nonce)
            connection.execute(changed)
            return _reply(connection, device_id, held["group_name"], nonce)
        code = redeem(connection, request.code, now=now)
        nonce = nonces()
        name = _name(request.name) or device_id
        connection.execute(
            insert(devices).values(
                **_fresh(request, device_id=device_id, now=now),
                name=name,
                group_name=code.group,
                nonce=nonce,
                enrolled_with=digest,
            )
        )
        audit.append(
            connection,
            at=now,
            who=name,
            what="device.enrol",
            about=device_id,
            detail={"group": code.group, "code": digest[:12], "code_by": code.made_by},
        )
        return _reply(connection, device_id, code.group, nonce)

    return work


def _require_same(held: RowMapping, digest: str) -> None:
    """Refuse a key that is known, unless its first answer can have been lost."""
    if held["status"] == "revoked":
        raise revoked(held["id"], held["name"])
    if held["enrolled_with"] != digest:
        raise Refused(
            "duplicate_device",
            f"A device with this key has joined already, as {held['name']}.",
            hint="Was its disk copied? Remove the copy's state folder and enrol it with a new "
            "code, so that it makes a key of its own.",
            what="device.enrol_refused",
            about=held["id"],
        )


def _fresh(request: EnrolRequest, *, device_id: str, now: float) -> dict[str, Any]:
    return {
        "id": device_id,
        "public_key": request.public_key,
        "status": "active",
        "enrolled_at": now,
        "incarnation": 1,
        "runtime": request.runtime,
        "pack": "",
        "revision": 0,
        "serial": 0,
        "refused": "{}",
        "models": "{}",
        "waiting": 0,
    }


def _name(text: str) -> str:
    """Return a name as both databases and every terminal can show it."""
    return "".join(letter for letter in text if letter.isprintable()).strip()


def _reply(connection: Connection, device_id: str, group: str, nonce: str) -> EnrolReply:
    first = select(metadata_files.c.body).where(
        (metadata_files.c.role == "root") & (metadata_files.c.version == 1)
    )
    root = bytes(connection.execute(first).scalar_one()).decode()
    return EnrolReply(device_id=device_id, group=group, incarnation=1, nonce=nonce, root=root)
