"""Policies as values: what an admin wrote, and the document that is signed and goes to devices.

A document is canonical JSON (sorted keys, no spaces, UTF-8, finite numbers), so the same policy has
the same bytes and the same digest everywhere. Its conditions are objects of a text and a typed
tree. Knows nothing of the sections but where conditions stand; verifies no signature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from edge.errors import ConfigError
from edge.policy.conditions import Type
from edge.policy.merging import Sections
from edge.policy.plain import check_plain
from edge.policy.rules import names_of, read_condition
from edge.policy.sections import Model, checked
from edge.policy.written import write_tree

FORMAT = "edge-policy-1"
MAX_BYTES = 4_000_000
"""No document is larger."""

_MOST = 2**53


@dataclass(frozen=True, slots=True)
class Policy:
    """What an admin wrote, checked section by section.

    Attributes:
        sections: plain JSON by name of the section, in lower case.
        what: names it in errors.

    """

    sections: Sections
    what: str = field(default="The policy", compare=False)


@dataclass(frozen=True, slots=True)
class Document:
    """A policy as a device gets it.

    Attributes:
        revision: 1 or more; it rises with every document of a hub.
        sha256: of the document's bytes, lower-case hex.
        sections: as in ``Policy``, conditions as objects of text and tree.
        created_at: seconds since the epoch.
        restores: revision whose content this one brings back.

    """

    revision: int
    sha256: str
    sections: Sections
    created_at: float
    restores: int | None = None

    @property
    def what(self) -> str:
        """Its name in errors."""
        return f"Policy revision {self.revision}"

    @property
    def policy(self) -> Policy:
        """The same as a person writes it: conditions are text."""
        texts = conditions(self.sections, lambda condition, _: condition["text"])
        return Policy(texts, self.what)


class _Body(Model):
    """The object that a document holds."""

    format: Literal["edge-policy-1"]
    revision: int = Field(ge=1, le=_MOST, strict=True)
    created_at: float = Field(ge=0, le=_MOST, strict=True, allow_inf_nan=False)
    restores: int | None = Field(ge=1, le=_MOST, strict=True)
    sections: dict[str, Any]


def write_document(
    policy: Policy,
    context: Mapping[str, Type],
    *,
    revision: int,
    created_at: float,
    restores: int | None,
) -> bytes:
    """Return the bytes of a policy's document; see ``edge.overlay.compile_policy``.

    Args:
        policy: what to write.
        context: what its conditions may look at beside the signals.
        revision: 1 or more.
        created_at: seconds since the epoch.
        restores: revision whose content it brings back.

    Raises:
        ConfigError: a condition cannot be read, the document is too large, or a number is wrong.

    """
    names = names_of(context)

    def with_tree(condition: str, place: str) -> dict[str, Any]:
        tree = read_condition(condition, names, what=f"The condition at {place} of {policy.what}")
        return {"text": str(tree), "tree": write_tree(tree)}

    body = {
        "format": FORMAT,
        "revision": revision,
        "created_at": created_at,
        "restores": restores,
        "sections": conditions(policy.sections, with_tree),
    }
    body["created_at"] = checked(_Body, body, policy.what).created_at
    return _canonical(body, policy.what)


def read_document(data: bytes) -> Document:
    """Read what ``write_document`` wrote, but for its sections, which are only known to be plain.

    Raises:
        ConfigError: these are not such bytes; place and reason are named.

    """
    digest = hashlib.sha256(data).hexdigest()
    what = f"The policy document {digest[:12]}"
    if len(data) > MAX_BYTES:
        raise foreign(what, f"it is larger than {MAX_BYTES:,} bytes")
    try:
        body = json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise foreign(what, "it is nested too deep") from error
    except ValueError as error:
        raise foreign(what, f"it is not JSON: {str(error)[:200].rstrip('.')}") from error
    if not isinstance(body, dict):
        raise foreign(what, "it holds no object")
    check_plain(body, what)
    head = checked(_Body, body, what)
    if _canonical(body, what) != data:
        raise foreign(what, "it is not in canonical form")
    return Document(head.revision, digest, head.sections, head.created_at, head.restores)


def foreign(what: str, reason: str) -> ConfigError:
    """Return the error for a document that ``write_document`` did not write."""
    return ConfigError(
        f"{what} cannot be used: {reason}.", hint="Publish it again from the policy's text."
    )


def conditions(sections: Sections, step: Callable[[Any, str], Any]) -> Sections:
    """Return sections that fit, with ``step(condition, place)`` in the place of each condition."""

    def routing(values: dict[str, Any], at: str) -> dict[str, Any]:
        rules = [
            {**rule, "condition": step(rule["condition"], f"{at}.escalate_if.{index}.condition")}
            for index, rule in enumerate(values.get("escalate_if", ()))
        ]
        return {**values, "escalate_if": rules} if "escalate_if" in values else values

    whole = dict(sections)
    if "routing" in whole:
        whole["routing"] = routing(whole["routing"], "routing")
    tasks = whole.get("tasks", {})
    for name, task in tasks.items():
        if "routing" in task:
            changed = {**task, "routing": routing(task["routing"], f"tasks.{name}.routing")}
            whole["tasks"] = {**whole["tasks"], name: changed}
    return whole


def _canonical(body: Mapping[str, Any], what: str) -> bytes:
    text = json.dumps(
        body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    data = text.encode("utf-8")
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"{what} has {len(data):,} bytes as a document.",
            hint=f"Shorten it to {MAX_BYTES:,} bytes.",
        )
    return data
