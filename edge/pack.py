"""Reads a pack file into a ``Pack``: YAML, defaults per section, schemas beside the file.

A pack is checked whole before it is used; the first thing wrong is named with its place
in the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from edge.config import is_file, models_folder, shortened
from edge.errors import ConfigError, InputError
from edge.task import Memory, Pack, Privacy, Routing, TaskBudget, TaskSpec

# Section of a pack -> (field of a task that it completes, what it must be).
_DEFAULTS: dict[str, tuple[str, type[BaseModel]]] = {
    "task_budgets": ("budget", TaskBudget),
    "routing": ("routing", Routing),
    "privacy": ("privacy", Privacy),
}
_MAX_BYTES = 1_000_000
_MERGE = "tag:yaml.org,2002:merge"
_EQUALS, _TEXT = "tag:yaml.org,2002:value", "tag:yaml.org,2002:str"
_M = TypeVar("_M", bound=BaseModel)


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
    document = read_yaml(path)
    sections = {str(key).lower(): value for key, value in document.items()}
    if len(sections) < len(document):
        raise ConfigError(f"Pack {path.name} has a section in upper and in lower case.")
    what = f"Pack {path.name}"
    defaults = {
        field: _default(sections.pop(name, None), name, model, what)
        for name, (field, model) in _DEFAULTS.items()
    }
    tasks = sections.get("tasks")
    if isinstance(tasks, dict):
        sections["tasks"] = {
            name: _complete(task, defaults, path.parent) for name, task in tasks.items()
        }
    models = sections.get("models")
    if isinstance(models, dict):
        sections["models"] = {n: _absolute(entry, path.parent) for n, entry in models.items()}
    files = sections.get("calibration")
    if isinstance(files, dict):
        sections["calibration"] = {
            task: str((path.parent / file).absolute()) if isinstance(file, str) else file
            for task, file in files.items()
        }
    return _checked(Pack, sections, what)


def limit_memory(pack: Pack, memory_mb: float | None) -> Pack:
    """Return the pack with another budget for its loaded models; the same one where ``None``.

    Raises:
        ConfigError: the number is not above 0.

    """
    if memory_mb is None:
        return pack
    memory = {**pack.memory.model_dump(), "budget_mb": memory_mb}
    return pack.model_copy(update={"memory": _checked(Memory, memory, "memory_mb")})


def load_task(path: Path) -> TaskSpec:
    """Read one task file, as ``edge head train`` writes them into the state folder."""
    return _checked(TaskSpec, read_yaml(path), f"Task file {path.name}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: it cannot be read, is not YAML, or is not a mapping.

    """
    try:
        raw = path.read_bytes()
        if len(raw) > _MAX_BYTES:
            raise ConfigError(f"{path.name} is larger than {_MAX_BYTES} bytes.")
        document = yaml.load(raw.decode("utf-8"), Loader=_Loader)  # noqa: S506
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{path} cannot be read: {reason}.", hint="Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path.name} is not a YAML file: {reason}.") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path.name} must hold sections such as `tasks:` at its top level.")
    return document


def _default(values: Any, section: str, model: type[BaseModel], what: str) -> dict[str, Any]:
    """Return a section that stands for all tasks, made sure to fit one."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{what} is wrong at {section}: it must hold keys and values, "
            f"not {type(values).__name__}.",
            hint=f"Keys of {section}: {', '.join(model.model_fields)}.",
        )
    _checked(model, values, what, under=(section,))
    return values


def _complete(task: Any, defaults: dict[str, Any], folder: Path) -> Any:
    """Lay the pack's defaults under a task and read a schema named by its file."""
    if not isinstance(task, dict):
        return task
    whole = dict(task)
    for name, default in defaults.items():
        own = whole.get(name, {})
        if isinstance(own, dict):
            whole[name] = {**default, **own}
    if isinstance(whole.get("output_schema"), str):
        whole["output_schema"] = _read_schema(folder / whole["output_schema"])
    return whole


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


def _checked(
    model: type[_M], values: dict[str, Any], what: str, *, under: tuple[str, ...] = ()
) -> _M:
    try:
        return model.model_validate(values)
    except InputError as error:
        raise ConfigError(f"{what} is wrong: {error.message}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in (*under, *first["loc"])) or "the top level"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key"
        more = error.error_count() - 1
        tail = f" ({more} more)" if more else ""
        raise ConfigError(f"{what} is wrong at {place}: {message}{tail}.") from error
