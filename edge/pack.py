"""Reads a pack file into a ``Pack``: YAML, defaults per section, schemas beside the file.

A pack is checked whole before it is used; the first thing wrong is named with its place
in the file.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from edge.config import models_folder
from edge.errors import ConfigError, InputError
from edge.task import Memory, Pack, TaskSpec

_DEFAULTS = {"task_budgets": "budget", "routing": "routing", "privacy": "privacy"}
_MAX_BYTES = 1_000_000
_M = TypeVar("_M", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT002
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def find_pack(pack: str | Path) -> Path:
    """Return the file of a shipped pack's name, or of a path.

    Raises:
        ConfigError: there is no such pack; the message lists the shipped ones.

    """
    as_path = Path(pack)
    if as_path.suffix in {".yaml", ".yml"} or len(as_path.parts) > 1:
        if as_path.is_file():
            return as_path.absolute()
        raise ConfigError(f"The pack file {pack} does not exist.", hint="Check the path.")
    folder = models_folder() / "packs"
    shipped = folder / f"{pack}.yaml"
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise ConfigError(
        f"There is no pack named {str(pack)!r}.", hint=f"Shipped packs: {names}; or pass a file."
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
    defaults = {field: sections.pop(name, {}) for name, field in _DEFAULTS.items()}
    tasks = sections.get("tasks")
    if isinstance(tasks, dict):
        sections["tasks"] = {
            name: _complete(task, defaults, path.parent) for name, task in tasks.items()
        }
    models = sections.get("models")
    if isinstance(models, dict):
        sections["models"] = {n: _absolute(entry, path.parent) for n, entry in models.items()}
    return _checked(Pack, sections, f"Pack {path.name}")


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


def _complete(task: Any, defaults: dict[str, Any], folder: Path) -> Any:
    """Lay the pack's defaults under a task and read a schema named by its file."""
    if not isinstance(task, dict):
        return task
    whole = dict(task)
    for name, default in defaults.items():
        own = whole.get(name, {})
        if isinstance(default, dict) and isinstance(own, dict):
            whole[name] = {**default, **own}
    if isinstance(whole.get("output_schema"), str):
        whole["output_schema"] = _read_schema(folder / whole["output_schema"])
    return whole


def _read_schema(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"The output_schema {path} cannot be read: {error}.") from error


def _absolute(entry: Any, folder: Path) -> Any:
    if isinstance(entry, dict) and isinstance(entry.get("folder"), str):
        return {**entry, "folder": str((folder / entry["folder"]).absolute())}
    return entry


def _checked(model: type[_M], values: dict[str, Any], what: str) -> _M:
    try:
        return model.model_validate(values)
    except InputError as error:
        raise ConfigError(f"{what} is wrong: {error.message}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the top level"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key"
        more = error.error_count() - 1
        tail = f" ({more} more)" if more else ""
        raise ConfigError(f"{what} is wrong at {place}: {message}{tail}.") from error
