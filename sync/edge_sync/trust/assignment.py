"""Assignments: which policy and which models a group or one device is to run, and what is stopped.

A signed targets file of the role ``assignment``, whose version is a serial that rises over the
whole hub. It names targets by the same length and digest as the targets role does, so that it can
choose among what was published and nothing else. Knows no keys and no clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from edge.errors import HubDistrusted
from edge_sync.trust.metadata import MAX_INT, TargetFile, Targets, check_file

ROLE = "assignment"
FIELD = "x-edge"
PATHS = ("policies/*", "models/*/*")
MAX_STOPPED = 1_000
_POLICY = re.compile(r"policies/([1-9][0-9]{0,15})\.json")
_MODEL = re.compile(r"models/([A-Za-z0-9][A-Za-z0-9_.\-]{0,63})/([0-9a-f]{64})\.json")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,100}")


@dataclass(frozen=True)
class Stopped:
    """What must not run, by name, whatever the policy says."""

    models: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, list[str]]:
        """Return it as JSON has it: sorted lists by kind."""
        return {kind: sorted(getattr(self, kind)) for kind in ("models", "tools", "tasks")}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Stopped:
        """Return it from JSON.

        Raises:
            ValueError: it is no mapping of the three kinds to lists of names.

        """
        if not isinstance(tree, Mapping) or not set(tree) <= {"models", "tools", "tasks"}:
            raise ValueError("stopped names other kinds than models, tools and tasks")
        return cls(**{kind: _names(names) for kind, names in tree.items()})


@dataclass(frozen=True)
class ModelTarget:
    """A model that a device is to run.

    Attributes:
        digest: sha256 of its manifest.
        path: of the signed index of its files.
        length: of the index, in bytes.
        sha256: of the index.

    """

    name: str
    digest: str
    path: str
    length: int
    sha256: str
    _meta: TargetFile = field(repr=False, compare=False)

    def check(self, index: bytes) -> None:
        """Check that this is the index that was signed.

        Raises:
            SignatureInvalid: it is another.

        """
        check_file(self._meta, index, what=f"index of the model {self.name}")


@dataclass(frozen=True)
class Assignment:
    """What one group or one device is to run.

    Attributes:
        serial: rises over the whole hub.
        group: for whom; where it is for one device, the group that the device belongs to from now
            on, or ``None`` where that stays.
        device: for whom; ``None`` where it is for a group.
        revision: of the policy; 0 for the pack's own.
        policy_sha256: of the policy document; empty without one.
        policy_length: of the document, in bytes.
        models: by name.
        stopped: what must not run.
        expires_s: seconds since the epoch.

    """

    serial: int
    group: str | None
    device: str | None
    revision: int
    policy_sha256: str
    policy_length: int
    models: Mapping[str, ModelTarget]
    stopped: Stopped
    expires_s: float

    def is_for(self, device_id: str, group: str) -> bool:
        """Whether a device of this id and group may follow it."""
        if self.device is not None:
            return self.device == device_id
        return self.group == group


def policy_path(revision: int) -> str:
    """Return the target path of a policy."""
    return f"policies/{revision}.json"


def model_path(name: str, digest: str) -> str:
    """Return the target path of the index of a model's files."""
    return f"models/{name}/{digest}.json"


def is_target(path: str) -> bool:
    """Whether a path is one that an assignment can name."""
    return bool(_POLICY.fullmatch(path) or _MODEL.fullmatch(path))


def custom_fields(audience: Mapping[str, str], stopped: Stopped) -> dict[str, Any]:
    """Return what an assignment holds beside TUF's own fields."""
    return {FIELD: {"for": dict(audience), "stopped": stopped.as_dict()}}


def read_assignment(signed: Targets) -> Assignment:
    """Return the assignment that signed metadata holds.

    Raises:
        HubDistrusted: it names no audience, two policies, or something else than policies and
            models.

    """
    try:
        audience, stopped = _custom(signed.unrecognized_fields)
        revision, policy = _policy(signed.targets)
        models = _models(signed.targets)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise HubDistrusted(f"Assignment {signed.version} is malformed: {error}.") from error
    return Assignment(
        serial=signed.version,
        group=audience.get("group"),
        device=audience.get("device"),
        revision=revision,
        policy_sha256=policy.hashes["sha256"] if policy else "",
        policy_length=policy.length if policy else 0,
        models=models,
        stopped=stopped,
        expires_s=signed.expires.timestamp(),
    )


def _custom(fields: Mapping[str, Any]) -> tuple[dict[str, str], Stopped]:
    custom = fields[FIELD]
    audience = custom["for"]
    if set(audience) not in ({"group"}, {"device"}, {"device", "group"}):
        raise ValueError("it is for neither a group nor a device")
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in audience.values()):
        raise ValueError("its audience has no name")
    return audience, Stopped.from_dict(custom["stopped"])


def _policy(targets: Mapping[str, TargetFile]) -> tuple[int, TargetFile | None]:
    found = [(match, meta) for path, meta in targets.items() if (match := _POLICY.fullmatch(path))]
    if len(found) > 1:
        raise ValueError("it names two policies")
    if not found:
        return 0, None
    match, meta = found[0]
    revision = int(match[1])
    if revision >= MAX_INT:
        raise ValueError("the revision is too large")
    return revision, meta


def _models(targets: Mapping[str, TargetFile]) -> Mapping[str, ModelTarget]:
    models: dict[str, ModelTarget] = {}
    for path, meta in targets.items():
        match = _MODEL.fullmatch(path)
        if match is None:
            if not _POLICY.fullmatch(path):
                raise ValueError(f"{path[:100]} is neither a policy nor a model")
            continue
        name, digest = match.groups()
        if name in models:
            raise ValueError(f"it names two versions of the model {name}")
        models[name] = ModelTarget(name, digest, path, meta.length, meta.hashes["sha256"], meta)
    return MappingProxyType(models)


def _names(names: object) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) > MAX_STOPPED:
        raise ValueError("stopped holds no list of names")
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise ValueError("stopped holds what is no name")
    return tuple(sorted(set(names)))
