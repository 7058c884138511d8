"""``edge-hub status``: the hub and the fleet at a glance."""

from __future__ import annotations

from collections import Counter
from typing import Any

from edge.cli import show
from edge_sync.cli.common import AsJson, Home, Styled, count, facts, opened
from edge_sync.cli.groups import print_groups
from edge_sync.hub import audit, enrolment, fleet, revisions, rollouts, signatures
from edge_sync.hub.home import Hub, read_fact


def status(*, home: Home = None, as_json: AsJson = False) -> None:
    """Show the hub and the fleet at a glance."""
    with opened(home) as hub:
        found = _found(hub)
        groups = fleet.list_groups(hub)
    if as_json:
        show.print_json(found)
        return
    devices = found["devices"]
    facts(
        [
            ("folder", found["home"]),
            ("database", found["database"]),
            ("url", found["url"]),
            ("devices", _devices(devices)),
            ("policy", _newest(found["policy"])),
            ("rollout", _rollouts(found["rollouts"])),
            ("codes", f"{found['codes'] or 'none'} open"),
            ("offline keys", ", ".join(found["offline_keys"]) or "none"),
            ("backup", _backup(found["receipt"], found["watermark"])),
            ("audit", f"{found['audit']:,} entries"),
        ]
    )
    print_groups(groups)


def _found(hub: Hub) -> dict[str, Any]:
    now = hub.clock()
    devices = fleet.list_devices(hub)
    newest = revisions.newest(hub)
    with hub.store.reading() as connection:
        last = audit.head(connection)
        receipt, watermark = (read_fact(connection, name) or 0 for name in ("receipt", "watermark"))
    states = Counter(device.status for device in devices)
    return {
        "home": str(hub.home),
        "database": hub.store.url,
        "url": hub.url,
        "devices": {
            "online": sum(device.status != "revoked" and device.online(now) for device in devices),
            "active": states["active"],
            "quarantined": states["quarantined"],
            "revoked": states["revoked"],
        },
        "policy": newest.revision if newest else 0,
        "rollouts": [
            {"id": each.id, "state": each.state, "revision": each.revision}
            for each in rollouts.list_rollouts(hub, limit=20)
            if each.ended_at is None
        ],
        "codes": len(enrolment.list_codes(hub)),
        "offline_keys": [keys.role for keys in signatures.list_keys(hub) if not keys.signs],
        "receipt": receipt,
        "watermark": watermark,
        "audit": last.seq,
    }


def _devices(devices: dict[str, int]) -> str | Styled:
    known = devices["active"] + devices["quarantined"]
    if not known + devices["revoked"]:
        return "none yet: edge-hub enroll"
    rest = [f"{devices[name]} {name}" for name in ("quarantined", "revoked") if devices[name]]
    return ", ".join([f"{devices['online']} of {known} online", *rest])


def _newest(revision: int) -> str:
    if revision:
        return f"revision {revision} is the newest"
    return "none yet: edge-hub policy publish FILE --message WHY"


def _rollouts(found: list[dict[str, Any]]) -> str:
    return ", ".join(f"{each['id']} {each['state']}: policy {each['revision']}" for each in found)


def _backup(receipt: int, watermark: int) -> str | Styled:
    if not receipt:
        return ""
    if receipt == watermark:
        return "holds all reports"
    behind = count(receipt - watermark, "report")
    return Styled(f"[yellow]{behind} since the last one[/yellow]")
