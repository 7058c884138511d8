"""What the dashboard's buttons do: the same functions that the commands of ``edge-hub`` call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge.errors import ConfigError, InputError
from edge_sync.hub import fleet, policies, rollouts
from edge_sync.hub.budget import amounts, caps
from edge_sync.hub.home import Hub
from edge_sync.money.periods import KINDS, Kind
from edge_sync.rollout.waves import parse_waves


@dataclass(frozen=True, slots=True)
class Action:
    """A button: where it posts to, who may press it, what it does, and where that leads.

    Attributes:
        do: (hub, name of the token, parts of the path, fields of the form) -> path of a page.

    """

    path: str
    role: str
    do: Callable[[Hub, str, Mapping[str, Any], Mapping[str, str]], str]


def _pause(hub: Hub, who: str, path: Mapping[str, Any], _form: Mapping[str, str]) -> str:
    return f"/rollouts/{rollouts.pause(hub, path['id'], who=who).id}"


def _resume(hub: Hub, who: str, path: Mapping[str, Any], _form: Mapping[str, str]) -> str:
    return f"/rollouts/{rollouts.resume(hub, path['id'], who=who).id}"


def _abort(hub: Hub, who: str, path: Mapping[str, Any], _form: Mapping[str, str]) -> str:
    return f"/rollouts/{rollouts.abort(hub, path['id'], who=who).id}"


def _revoke(hub: Hub, who: str, path: Mapping[str, Any], _form: Mapping[str, str]) -> str:
    device = fleet.find_device(hub, path["id"])
    fleet.revoke(hub, device, who=who)
    return f"/devices/{device.id}"


def _set_cap(hub: Hub, who: str, _path: Mapping[str, Any], form: Mapping[str, str]) -> str:
    amount = amounts.microusd(form.get("amount", ""))
    caps.set_cap(hub, form.get("scope", "").strip(), _kind(form), amount, who=who)
    return "/budget"


def _remove_cap(hub: Hub, who: str, _path: Mapping[str, Any], form: Mapping[str, str]) -> str:
    caps.remove_cap(hub, form.get("scope", ""), _kind(form), who=who)
    return "/budget"


def _kind(form: Mapping[str, str]) -> Kind:
    for kind in KINDS:
        if form.get("per") == kind:
            return kind
    raise InputError("The period is none.", hint=f"Choose one of {', '.join(KINDS)}.")


ACTIONS = {
    "pause": Action("/rollouts/{id:int}/pause", "operator", _pause),
    "resume": Action("/rollouts/{id:int}/resume", "operator", _resume),
    "abort": Action("/rollouts/{id:int}/abort", "operator", _abort),
    "revoke": Action("/devices/{id}/revoke", "admin", _revoke),
    "set_cap": Action("/budget/set", "admin", _set_cap),
    "remove_cap": Action("/budget/remove", "admin", _remove_cap),
}


def publish(hub: Hub, who: str, draft: Mapping[str, Any]) -> str:
    """Publish a draft, begin to roll it out, and return the path of the rollout.

    The waves and groups are read before anything is published.

    Raises:
        InputError: no group is named.
        ConfigError: as ``policies.check`` and ``rollouts.start``.

    """
    names = [name.strip() for name in draft["groups"].split(",") if name.strip()]
    if not names:
        raise InputError("No group is named.", hint="Name the groups, with commas between them.")
    parse_waves(draft["waves"])
    known = [group.name for group in fleet.list_groups(hub)]
    strange = [name for name in names if name not in known]
    if strange:
        raise InputError(
            f"There is no group {', '.join(strange)}.", hint=f"Groups: {', '.join(known)}."
        )
    # A browser sends line breaks as CR LF.
    text = draft["source"].replace("\r\n", "\n").encode()
    try:
        checked = policies.check(hub, text, what="The policy")
        made = policies.publish(hub, checked, message=draft["message"], who=who)
    except ConfigError as error:
        policies.note_refusal(hub, "dashboard", who=who, reason=str(error))
        raise
    begun = rollouts.start(hub, made.revision, who=who, names=names, waves=draft["waves"])
    return f"/rollouts/{begun.id}"
