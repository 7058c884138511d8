"""The tasks that a runtime answers and the models they need, fitted together when it opens.

Tasks come from the pack and from the state folder, where ``edge head train`` adds them. What does
not fit is named before anything runs. Reads task files, schemas and manifests, never weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edge.config import is_file, models_folder, shortened
from edge.errors import ConfigError, LoadError, StoreError
from edge.judge import check_schema
from edge.local import LocalTask
from edge.pack import load_task
from edge.policy.rules import read_rules
from edge.store.weights import MANIFEST, Manifest, ModelStore
from edge.task import Pack, TaskSpec
from edge.types import Kind

_NEEDED = {
    Kind.CLASSIFY: "head",
    Kind.EMBED: "encoder",
    Kind.EXTRACT: "decoder",
    Kind.GENERATE: "decoder",
}


def all_tasks(pack: Pack, state: Path) -> dict[str, LocalTask]:
    """Return the state folder's tasks and the pack's, which win.

    Raises:
        ConfigError: a task file, a schema or a condition is wrong.
        StoreError: the state folder cannot be read.

    """
    specs = {path.stem: load_task(path) for path in _task_files(state / "tasks")}
    specs |= pack.tasks
    for name, spec in specs.items():
        if spec.output_schema is not None:
            check_schema(name, spec.output_schema)
    return {
        name: LocalTask(
            name,
            spec,
            pack.prompts.get(spec.prompt or ""),
            read_rules(name, _written(spec), context=pack.context),
        )
        for name, spec in specs.items()
    }


def _written(spec: TaskSpec) -> list[tuple[str, str | None]]:
    return [(rule.condition, rule.model) for rule in spec.routing.escalate_if]


def model_store(pack: Pack, state: Path) -> ModelStore:
    """Return the shipped models, the state folder's and the pack's.

    Raises:
        ConfigError: a model of the pack is not where it says, its name is another's, or a name to
            pin is that of no model.
        LoadError: the manifest of one is not valid.

    """
    own = {name: Path(model.folder) for name, model in pack.models.items()}
    for name, folder in own.items():
        _check_there(f"Model {name} of pack {pack.name}", folder)
    store = ModelStore(models_folder(), extra=[state / "models", *own.values()])
    for name, folder in own.items():
        _check_name(f"Model {name} of pack {pack.name}", name, folder, store)
    for name in pack.memory.pin:
        if name not in store.names():
            raise ConfigError(
                f"Pack {pack.name} pins {name!r} in memory, but there is no such model.",
                hint=f"Models here: {', '.join(store.names())}.",
            )
    return store


def check_models(tasks: Mapping[str, LocalTask], store: ModelStore) -> None:
    """Make sure that every task's model is here and of the kind that the task needs.

    Raises:
        ConfigError: one is not; task, model, kind and need are named.
        LoadError: a manifest cannot be read or is not valid.

    """
    known = frozenset(store.names())
    for name, task in tasks.items():
        if task.spec.model is None:
            continue
        who = f"Task {name} of kind {task.spec.kind}"
        needed = "decoder" if task.spec.labels else _NEEDED[task.spec.kind]
        manifest = _need(who, task.spec.model, needed, store, known)
        if manifest.encoder is not None:
            head = f"The head {manifest.name} of task {name}"
            _need(head, manifest.encoder.name, "encoder", store, known)


def _task_files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.yaml"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreError(
            f"The state folder's {shortened(str(folder))} cannot be read: {reason}.",
            hint="Pass another `state`.",
        ) from error


def _need(who: str, name: str, kind: str, store: ModelStore, known: frozenset[str]) -> Manifest:
    """Return the manifest of a model of a kind."""
    found = store.manifest(name) if name in known else None
    if found is not None and found.kind == kind:
        return found
    but = f"{name} is of kind {found.kind}" if found else f"there is no model {name!r}"
    fitting = ", ".join(each for each in sorted(known) if _kind(each, store) == kind) or "none"
    raise ConfigError(
        f"{who} needs a model of kind {kind}, but {but}.",
        hint=f"Models of kind {kind} here: {fitting}.",
    )


def _kind(name: str, store: ModelStore) -> str | None:
    try:
        return store.manifest(name).kind
    except LoadError:
        return None


def _check_there(what: str, folder: Path) -> None:
    if not is_file(folder / MANIFEST):
        raise ConfigError(
            f"{what} is not in {shortened(str(folder))}: it holds no {MANIFEST}.",
            hint="Correct its `folder` in the pack.",
        )


def _check_name(what: str, name: str, folder: Path, store: ModelStore) -> None:
    """Make sure that the folder's model has that name, and none in another folder has."""
    listed = Manifest.load(folder / MANIFEST).name
    if listed != name:
        raise ConfigError(
            f"{what} is called {listed!r} in {folder / MANIFEST}.",
            hint="Use one name in both places.",
        )
    taken = store.manifest(name).folder
    if not taken.samefile(folder):
        raise ConfigError(
            f"{what} has the name of the model in {taken}.", hint="Give it a name of its own."
        )
