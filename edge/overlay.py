"""Policies of a fleet: an admin's YAML, the document that is signed, and both laid over a pack.

A policy says only what it changes. Mappings merge key by key and everything else replaces; a
section for all tasks goes over the pack's tasks, and the policy's own word on a task over that. The
result is checked whole, as a pack. The document is canonical JSON whose conditions are typed trees,
so that a device never parses one. Pure but for the shipped pack's context; signs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from pydantic import BaseModel, create_model

from edge.config import shortened
from edge.errors import ConfigError
from edge.pack import (
    assembled,
    check_for_all,
    check_tasks_known,
    find_pack,
    load_pack,
    parse_yaml,
)
from edge.policy.conditions import Type
from edge.policy.document import (
    FORMAT,
    Document,
    Policy,
    conditions,
    foreign,
    read_document,
    write_document,
)
from edge.policy.merging import (
    Change,
    Sections,
    at_tasks,
    budgets_by_task,
    defaults,
    differences,
    lowered,
    merged,
    overruled,
)
from edge.policy.partial import partial
from edge.policy.plain import check_plain
from edge.policy.rules import read_rules
from edge.policy.sections import NAME, GrammarSpec, LocalModel, Model, checked
from edge.task import Pack

__all__ = [
    "FORMAT",
    "Change",
    "Document",
    "Policy",
    "compile_policy",
    "difference",
    "json_schema",
    "lay",
    "load_document",
    "read_policy",
]

SECTIONS = (
    "budget",
    "calibration",
    "caching",
    "context",
    "models",
    "pools",
    "privacy",
    "prompts",
    "routing",
    "task_budgets",
    "tasks",
    "tools",
)
"""What a policy may hold."""


def read_policy(text: bytes | str, *, what: str = "The policy") -> Policy:
    """Read a policy; what it must fit over a pack is checked by ``lay``.

    Args:
        text: YAML, at most 1,000,000 bytes.
        what: names it in errors.

    Raises:
        ConfigError: it is no policy; place, reason and remedy are named.

    """
    try:
        raw = text if isinstance(text, bytes) else text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} is not valid Unicode.", hint="Save it as UTF-8.") from error
    sections = lowered(parse_yaml(raw, what), what)
    check_plain(sections, what)
    fitting = _fitting(sections, what)
    conditions(fitting, lambda condition, place: _need_text(condition, place, what))
    return Policy(fitting, what)


def compile_policy(
    policy: Policy,
    *,
    revision: int,
    created_at: float,
    restores: int | None = None,
    context: Mapping[str, Type] | None = None,
) -> bytes:
    """Return the document of a policy: the same bytes for the same arguments.

    Args:
        policy: what to compile.
        revision: 1 or more.
        created_at: seconds since the epoch.
        restores: revision whose content it brings back.
        context: what the devices' pack declares for conditions beside the policy itself; that of
            the shipped pack where ``None``.

    Raises:
        ConfigError: a condition cannot be read, the document is too large, or a number is wrong.

    """
    declared = _shipped_context() if context is None else context
    return write_document(
        policy,
        {**declared, **policy.sections.get("context", {})},
        revision=revision,
        created_at=created_at,
        restores=restores,
    )


def load_document(data: bytes) -> Document:
    """Read a document; parses no condition.

    Args:
        data: what ``compile_policy`` gave.

    Raises:
        ConfigError: these are not such bytes; place and reason are named.

    """
    document = read_document(data)
    what = f"The policy document {document.sha256[:12]}"
    if _fitting(document.sections, what) != document.sections:
        raise foreign(what, "it has an empty section")
    conditions(document.sections, lambda condition, place: _need_tree(condition, place, what))
    return document


def lay(pack: Pack, document: Document | Policy) -> Pack:
    """Return the pack with a policy laid over it.

    Raises:
        ConfigError: the result is no pack, or the policy names a task, a pool or a value for
            conditions that is not there, or gives such a value another type.

    """
    what = f"{document.what} over pack {pack.name}"
    sections = at_tasks(document.sections)
    base = pack.model_dump(exclude_unset=True)
    check_tasks_known(sections, base["tasks"], what)
    _check_context(what, sections.get("context", {}), pack)
    base["tasks"] = overruled(base["tasks"], defaults(sections))
    result = assembled(merged(base, sections), what)
    for place, pool in _pools_named(sections):
        _check_pool(f"{what} names at {place}", pool, result)
    for name, task in result.tasks.items():
        read_rules(name, task.routing.rules, context=result.context)
    return result


def difference(old: Policy | None, new: Policy) -> list[Change]:
    """Return what a policy says otherwise than the one before it, in the order of the paths."""
    return list(differences(old.sections if old else {}, new.sections))


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a policy file; sections may be in upper case."""
    schema = _terse(_shape().model_json_schema())
    kinds = schema["$defs"]
    one = {"$ref": "#/$defs/TaskBudgetChange"}
    kinds["TaskBudgets"] = {**kinds["TaskBudgetChange"], "additionalProperties": one}
    known = {**schema["properties"], "task_budgets": {"$ref": "#/$defs/TaskBudgets"}}
    schema["properties"] = known | {name.upper(): value for name, value in known.items()}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


@cache
def _shape() -> type[BaseModel]:
    """Return the model of a policy's sections."""
    fields = partial(Pack, GrammarSpec, LocalModel).model_fields
    kept: dict[str, Any] = {name: (fields[name].annotation, fields[name]) for name in SECTIONS}
    made = create_model("Policy", __base__=Model, **kept)
    made.__doc__ = "What a policy changes over the packs of its devices."
    return made


@cache
def _shipped_context() -> Mapping[str, Type]:
    return load_pack(find_pack("kiosk")).context


def _fitting(given: Sections, what: str) -> Sections:
    """Return the sections that say something, once each fits by itself."""
    sections = {name: values for name, values in given.items() if values is not None}
    strange = sorted(sections.keys() - set(SECTIONS))
    if strange:
        raise ConfigError(
            f"{what} is wrong at {strange[0][:80]}: unknown section.",
            hint=f"Sections of a policy: {', '.join(SECTIONS)}.",
        )
    check_for_all(sections, what)
    flat = {**sections, "task_budgets": budgets_by_task(sections.get("task_budgets", {}))[0]}
    checked(_shape(), flat, what)
    _check_places(sections, what)
    return sections


def _check_places(sections: Sections, what: str) -> None:
    """Make sure that files of the device are named by absolute paths, and models by names."""
    named = {f"calibration.{task}": file for task, file in sections.get("calibration", {}).items()}
    for name, model in sections.get("models", {}).items():
        if not re.fullmatch(NAME, name):
            raise ConfigError(
                f"{what} is wrong at models: {shortened(name)!r} cannot be the name of a model.",
                hint=f"Names match {NAME}.",
            )
        named[f"models.{name}.folder"] = model.get("folder") or "/"
    for place, file in named.items():
        if not (PurePosixPath(file).is_absolute() or PureWindowsPath(file).is_absolute()):
            raise ConfigError(
                f"{what} is wrong at {place}: {shortened(file)} is no absolute path.",
                hint="A policy has no folder of its own: write the whole path on the device.",
            )


def _need_text(condition: Any, place: str, what: str) -> Any:
    if not isinstance(condition, str):
        raise ConfigError(
            f"{what} is wrong at {place}: a condition must be text.", hint="Put it in quotes."
        )
    return condition


def _need_tree(condition: Any, place: str, what: str) -> Any:
    if not isinstance(condition, dict) or "tree" not in condition:
        raise foreign(what, f"the condition at {place} has no tree")
    return condition


def _pools_named(sections: Sections) -> Iterator[tuple[str, str]]:
    """Yield where the policy says whom to ask, and whom."""
    places = {"routing": sections.get("routing", {})}
    for name, task in sections.get("tasks", {}).items():
        places[f"tasks.{name}.routing"] = task.get("routing", {})
    for place, routing in places.items():
        if "pool" in routing:
            yield f"{place}.pool", routing["pool"]


def _check_context(what: str, declared: Mapping[str, Type], pack: Pack) -> None:
    """Make sure that what apps already tell of their calls stays what it is."""
    for name, kind in declared.items():
        if pack.context.get(name, kind) != kind:
            raise ConfigError(
                f"{what} declares context.{name} as {kind}, but the pack as {pack.context[name]}.",
                hint="Apps pass what the pack declares: use another name.",
            )


def _check_pool(what: str, pool: str, pack: Pack) -> None:
    if pool not in pack.pools:
        raise ConfigError(
            f"{what} the pool {pool!r}, which is unknown.",
            hint=f"Pools: {', '.join(sorted(pack.pools)) or 'none'}; add it under `pools`.",
        )


def _terse(schema: Any) -> Any:
    """Return a schema without titles, and without defaults: what is left out stays as it is."""
    if isinstance(schema, list):
        return [_terse(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    terse = {key: _terse(value) for key, value in schema.items() if key not in {"default", "title"}}
    if isinstance(told := terse.get("description"), str):
        terse["description"] = told.partition("\n\n")[0]
    return terse
