"""Reads a pack file into a ``Pack``: YAML, defaults per section, schemas beside the file.

A pack is checked whole before it is used; the first thing wrong is named with its place
in the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from edge.config import is_file, models_folder, shortened
from edge.errors import ConfigError
from edge.policy.merging import Sections, at_tasks, budgets_by_task, completed, defaults, lowered
from edge.policy.sections import Caching, Memory, TaskBudget, checked
from edge.task import Pack, PackRouting, Privacy, TaskSpec

ALL: dict[str, type[BaseModel]] = {
    "task_budgets": TaskBudget,
    "routing": PackRouting,
    "privacy": Privacy,
    "caching": Caching,
}
"""Sections that stand for all tasks, and what each must be."""

MAX_BYTES = 1_000_000
_MERGE = "tag:yaml.org,2002:merge"
_EQUALS, _TEXT = "tag:yaml.org,2002:value", "tag:yaml.org,2002:str"


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key written twice and a value that does not fit its tag."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Before merge keys are resolved: a key may stand beside the same one it takes over.
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add((key.tag, key.value))
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Resolve merge keys as YAML has them: what is given wins, then the earlier source.

        PyYAML 6.0.4 takes the wrong one of two values where a source has merged another.
        """
        pairs = [pair for pair in node.value if pair[0].tag != _MERGE]
        given = {(key.tag, key.value) for key, _ in pairs if isinstance(key, yaml.ScalarNode)}
        taken: list[tuple[yaml.Node, yaml.Node]] = []
        for key, _ in pairs:
            if key.tag == _EQUALS:
                key.tag = _TEXT
        for key, value in node.value:
            if key.tag != _MERGE:
                continue
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    raise yaml.MarkedYAMLError(
                        problem="only mappings can be merged", problem_mark=source.start_mark
                    )
                self.flatten_mapping(source)
                for entry in source.value:
                    name = (entry[0].tag, str(entry[0].value))
                    if name not in given:
                        given.add(name)
                        taken.append(entry)
        node.value = [*taken, *pairs]

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT002
        try:
            return super().construct_object(node, deep)
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            raise yaml.MarkedYAMLError(
                problem=f"a value does not fit its tag !!{node.tag.rpartition(':')[2]}",
                problem_mark=node.start_mark,
            ) from error


def find_pack(pack: str | Path) -> Path:
    """Return the file of a shipped pack's name, or of a path.

    Raises:
        ConfigError: there is no such pack; the message lists the shipped ones.

    """
    as_path = Path(pack)
    if as_path.suffix in {".yaml", ".yml"} or len(as_path.parts) > 1:
        if is_file(as_path):
            return as_path.absolute()
        raise ConfigError(
            f"The pack file {shortened(str(pack))} does not exist.", hint="Check the path."
        )
    folder = models_folder() / "packs"
    shipped = folder / f"{pack}.yaml"
    if is_file(shipped):
        return shipped
    names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise ConfigError(
        f"There is no pack named '{shortened(str(pack))}'.",
        hint=f"Shipped packs: {names}; or pass a file.",
    )


def load_pack(path: Path) -> Pack:
    """Read, complete and check one pack file.

    Raises:
        ConfigError: the file cannot be read or something in it is wrong.

    """
    what, folder = f"Pack {path.name}", path.parent
    sections = lowered(read_yaml(path), what)
    places: dict[str, Callable[[Any], Any]] = {
        "tasks": lambda task: _with_schema(task, folder),
        "models": lambda entry: _absolute(entry, folder),
        "calibration": lambda file: _beside(folder, file),
    }
    return assembled({name: _each(sections[name], places.get(name)) for name in sections}, what)


def assembled(sections: Sections, what: str) -> Pack:
    """Return the pack of sections: what stands for all tasks is laid under each of them.

    Args:
        sections: names in lower case; no file names but absolute ones.
        what: names their origin in an error.

    Raises:
        ConfigError: something in them is wrong.

    """
    given = {key: value for key, value in sections.items() if value is not None or key not in ALL}
    check_for_all(given, what)
    whole = at_tasks(given)
    check_tasks_known(whole, given.get("tasks"), what)
    tasks = completed(whole.get("tasks"), defaults(whole))
    default = given["routing"].get("default_model") if "routing" in given else None
    silent = default and [name for name, task in _tasks(tasks) if "model" not in task]
    for name in silent or ():
        tasks[name] = {**tasks[name], "model": default}
    pack = checked(Pack, {**whole, "tasks": tasks} if "tasks" in whole else whole, what)
    for name in silent or ():
        # Not the task's own word, so another default may take its place.
        pack.tasks[name].model_fields_set.discard("model")
    return pack


def check_for_all(sections: Sections, what: str) -> None:
    """Make sure that the sections that stand for all tasks fit one.

    Raises:
        ConfigError: one does not.

    """
    for name, model in ALL.items():
        values = sections.get(name)
        if values is None:
            continue
        if not isinstance(values, dict):
            raise ConfigError(
                f"{what} is wrong at {name}: it must hold keys and values, "
                f"not {type(values).__name__}.",
                hint=f"Keys of {name}: {', '.join(model.model_fields)}.",
            )
        flat, named = budgets_by_task(values) if name == "task_budgets" else (values, {})
        checked(model, flat, what, under=(name,))
        for task, budget in named.items():
            checked(model, budget, what, under=(name, str(task)))


def check_tasks_known(sections: Sections, known: Any, what: str) -> None:
    """Make sure that only known tasks have a budget or other keys without a ``kind``.

    Raises:
        ConfigError: another one has; the known ones are listed.

    """
    known = known if isinstance(known, dict) else {}
    for name, task in _tasks(sections.get("tasks")):
        if name not in known and "kind" not in task:
            listed = ", ".join(sorted(map(str, known))) or "none"
            raise ConfigError(
                f"{what} says something of the task {name!r}, which is unknown.",
                hint=f"Tasks here: {listed}; a new task needs a `kind`.",
            )


def limit_memory(pack: Pack, memory_mb: float | None) -> Pack:
    """Return the pack with another budget for its loaded models; the same one where ``None``.

    Raises:
        ConfigError: the number is not above 0.

    """
    if memory_mb is None:
        return pack
    memory = {**pack.memory.model_dump(), "budget_mb": memory_mb}
    return pack.model_copy(update={"memory": checked(Memory, memory, "memory_mb")})


def load_task(path: Path) -> TaskSpec:
    """Read one task file, as ``edge head train`` writes them into the state folder."""
    return checked(TaskSpec, read_yaml(path), f"Task file {path.name}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: it cannot be read, is not YAML, or is not a mapping.

    """
    return parse_yaml(read_bytes(path), path.name)


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file that is not too large to be read as YAML.

    Raises:
        ConfigError: it cannot be read, or is too large.

    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{shortened(str(path))} cannot be read: {reason}.", hint="Check the path."
        ) from error
    _check_size(raw, path.name)
    return raw


def _check_size(raw: bytes, what: str) -> None:
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{what} is larger than {MAX_BYTES:,} bytes.", hint="Shorten it.")


def parse_yaml(raw: bytes, what: str) -> dict[str, Any]:
    """Return the mapping that a YAML text holds.

    Args:
        raw: the text in UTF-8.
        what: names it in an error.

    Raises:
        ConfigError: it is too large, is not YAML, or is not a mapping.

    """
    _check_size(raw, what)
    try:
        document = yaml.load(raw.decode("utf-8"), Loader=_Loader)  # noqa: S506
    except RecursionError as error:
        raise ConfigError(
            f"{what} is not a YAML file: it is nested too deep, or an alias holds itself.",
            hint="Write it out with fewer levels.",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{what} is not a YAML file: {reason}.") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{what} must hold sections such as `tasks:` at its top level.")
    return document


def _each(section: Any, step: Callable[[Any], Any] | None) -> Any:
    if step is None or not isinstance(section, dict):
        return section
    return {name: step(entry) for name, entry in section.items()}


def _tasks(tasks: Any) -> list[tuple[Any, dict[str, Any]]]:
    given = tasks if isinstance(tasks, dict) else {}
    return [(name, task) for name, task in given.items() if isinstance(task, dict)]


def _with_schema(task: Any, folder: Path) -> Any:
    """Read a task's schema that is named by its file."""
    if isinstance(task, dict) and isinstance(task.get("output_schema"), str):
        return {**task, "output_schema": _read_schema(folder / task["output_schema"])}
    return task


def _read_schema(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except RecursionError as error:
        raise ConfigError(f"The output_schema {path} is nested too deeply.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        name = shortened(str(path))
        raise ConfigError(f"The output_schema {name} cannot be read: {reason}.") from error


def _absolute(entry: Any, folder: Path) -> Any:
    if isinstance(entry, dict) and isinstance(entry.get("folder"), str):
        return {**entry, "folder": str((folder / entry["folder"]).absolute())}
    return entry


def _beside(folder: Path, file: Any) -> Any:
    return str((folder / file).absolute()) if isinstance(file, str) else file
