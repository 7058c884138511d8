"""How sections are laid over each other, on plain values: mappings merge, all else replaces.

Pure. Knows which sections stand for all tasks, and nothing of what the keys mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from edge.errors import ConfigError

Sections: TypeAlias = dict[str, Any]

FOR_ALL = {
    "task_budgets": "budget",
    "routing": "routing",
    "privacy": "privacy",
    "caching": "caching",
}
"""Section that stands for all tasks -> key of a task that it completes."""

OF_PACK = {"routing": frozenset({"default_model"})}
"""Keys of such a section that are no key of a task."""

# Parts that make sense only as one: half of a schema and half of another is none.
_WHOLE = (("models", "*"), ("tasks", "*", "output_schema"), ("tasks", "*", "grammar"))


@dataclass(frozen=True, slots=True)
class Change:
    """One difference; ``None`` where a side does not have it.

    Attributes:
        path: such as ``routing.keep_above``.

    """

    path: str
    before: Any
    after: Any


def lowered(document: Mapping[Any, Any], what: str) -> Sections:
    """Return the sections with their names in lower case.

    Raises:
        ConfigError: one stands there in upper and in lower case.

    """
    sections = {str(key).lower(): value for key, value in document.items()}
    if len(sections) < len(document):
        raise ConfigError(
            f"{what} has a section in upper and in lower case.", hint="Put both into one."
        )
    return sections


def merged(under: Any, over: Any, at: tuple[str, ...] = ()) -> Any:
    """Return ``over`` laid over ``under``; neither is changed."""
    if not isinstance(under, dict) or not isinstance(over, dict) or _is_whole(at):
        return over
    whole = dict(under)
    for key, value in over.items():
        whole[key] = merged(under[key], value, (*at, str(key))) if key in under else value
    return whole


def budgets_by_task(section: Any) -> tuple[Any, dict[str, Any]]:
    """Return what ``task_budgets`` says for all tasks, and what it says by name of a task."""
    if not isinstance(section, dict):
        return section, {}
    named = {key: value for key, value in section.items() if isinstance(value, dict)}
    return {key: value for key, value in section.items() if key not in named}, named


def at_tasks(sections: Sections) -> Sections:
    """Return the sections with budgets by name moved to the tasks, whose own keys win."""
    flat, named = budgets_by_task(sections.get("task_budgets"))
    tasks = sections.get("tasks") or {}
    if not named or not isinstance(tasks, dict):
        return sections
    moved = {name: {"budget": budget} for name, budget in named.items()}
    return {**sections, "task_budgets": flat, "tasks": merged(moved, tasks, ("tasks",))}


def defaults(sections: Sections) -> dict[str, Any]:
    """Return what stands for all tasks, by key of a task."""
    found = {}
    for section, key in FOR_ALL.items():
        values = sections.get(section)
        if isinstance(values, dict):
            kept = OF_PACK.get(section, frozenset())
            found[key] = {name: value for name, value in values.items() if name not in kept}
    return found


def completed(tasks: Any, under: dict[str, Any]) -> Any:
    """Return tasks with the defaults laid under their own keys."""
    return _each(tasks, lambda task: _beneath(under, task))


def overruled(tasks: Any, over: dict[str, Any]) -> Any:
    """Return tasks with a policy's defaults laid over their own keys."""
    return _each(tasks, lambda task: merged(task, over))


def _beneath(under: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = merged(under, task)
    return whole


def _each(tasks: Any, step: Any) -> Any:
    if not isinstance(tasks, dict):
        return tasks
    return {name: step(task) if isinstance(task, dict) else task for name, task in tasks.items()}


def _is_whole(at: tuple[str, ...]) -> bool:
    return any(
        len(at) == len(place) and all(p in {"*", a} for p, a in zip(place, at, strict=True))
        for place in _WHOLE
    )


def differences(old: Any, new: Any, path: str = "") -> Iterator[Change]:
    """Yield what differs, in the order of the paths."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        if old != new or type(old) is not type(new):
            yield Change(path, old, new)
        return
    for key in sorted({*old, *new}, key=str):
        inner = f"{path}.{key}" if path else str(key)
        sides = old.get(key), new.get(key)
        if key in old and key in new:
            yield from differences(*sides, inner)
            continue
        there = new[key] if key in new else old[key]
        if isinstance(there, dict) and there:
            yield from differences(sides[0] or {}, sides[1] or {}, inner)
        else:
            yield Change(inner, *sides)
