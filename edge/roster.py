"""The tasks that a runtime answers and the models they need, fitted together when it opens.

Tasks come from the pack and from the state folder, where ``edge head train`` adds them. What does
not fit is named before anything runs. Reads task files, schemas and manifests, never weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge.config import assigned_folder, is_file, models_folder, shortened
from edge.errors import ConfigError, IntegrityError, LoadError, StoreError
from edge.judge import check_schema
from edge.local import LocalTask
from edge.pack import load_task
from edge.policy.rules import read_rules
from edge.store.weights import MANIFEST, Manifest, ModelStore
from edge.task import Pack
from edge.types import Kind

_NEEDED = {
    Kind.CLASSIFY: "head",
    Kind.EMBED: "encoder",
    Kind.EXTRACT: "decoder",
    Kind.GENERATE: "decoder",
}


@dataclass(frozen=True, slots=True)
class Fitted:
    """A pack with its tasks and where their models lie."""

    pack: Pack
    tasks: Mapping[str, LocalTask]
    store: ModelStore


def fit(pack: Pack, state: Path) -> Fitted:
    """Fit the tasks of a pack and of a state folder to the models; writes nothing.

    Raises:
        ConfigError: something does not fit together, or a model is missing.
        LoadError: the manifest of a model is not valid.
        StoreError: the state folder cannot be read.

    """
    tasks = all_tasks(pack, state)
    store = model_store(pack, state)
    check_models(tasks, store)
    return Fitted(pack, tasks, store)


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
            read_rules(name, spec.routing.rules, context=pack.context),
        )
        for name, spec in specs.items()
    }


def model_store(pack: Pack, state: Path) -> ModelStore:
    """Return the shipped models, the state folder's and the pack's.

    Raises:
        ConfigError: a model of the pack is not where it says, its name is another's, or a name to
            pin or to take by default is that of no model.
        IntegrityError: a model that the fleet assigned is not that model.
        LoadError: the manifest of one is not valid.

    """
    own = {name: Path(each.folder) for name, each in pack.models.items() if each.folder}
    assigned = [
        _assigned(name, each.digest, state) for name, each in pack.models.items() if each.digest
    ]
    for name, folder in own.items():
        _check_there(f"Model {name} of pack {pack.name}", folder)
    # What the fleet assigns goes before what was shipped: that is how a model is updated.
    folders = [*assigned, models_folder(), state / "models", *own.values()]
    store = ModelStore(folders[0], extra=folders[1:])
    for name, folder in own.items():
        _check_name(f"Model {name} of pack {pack.name}", name, folder, store)
    for name in pack.memory.pin:
        _check_known(f"Pack {pack.name} pins {name!r} in memory", name, store)
    default = pack.routing.default_model
    if default is not None:
        _check_known(f"The default model of pack {pack.name} is {default!r}", default, store)
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


def _check_known(what: str, name: str, store: ModelStore) -> None:
    if name not in store.names():
        raise ConfigError(
            f"{what}, but there is no such model.", hint=f"Models here: {', '.join(store.names())}."
        )


def _assigned(name: str, digest: str, state: Path) -> Path:
    """Return the folder of a model that the fleet assigned, once its manifest is the assigned one.

    The manifest vouches for the other files.
    """
    folder = assigned_folder(state, name, digest)
    if not is_file(folder / MANIFEST):
        raise ConfigError(
            f"Model {name} with the digest {digest[:12]}… is not on this device yet.",
            hint="The fleet's agent fetches it; run `edge agent`, or name a `folder`.",
        )
    try:
        raw = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise LoadError(f"{folder / MANIFEST} cannot be read: {error.strerror}.") from error
    if hashlib.sha256(raw).hexdigest() != digest:
        raise IntegrityError(f"The manifest of model {name} in {folder} is not the assigned one.")
    listed = Manifest.load(folder / MANIFEST).name
    if listed != name:
        raise ConfigError(
            f"Model {name} with the digest {digest[:12]}… calls itself {listed!r}.",
            hint="Assign it under its own name.",
        )
    return folder


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
