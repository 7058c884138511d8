"""Answers labelled examples with a task's local model, for ``edge calibrate``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edge.admit import check_text
from edge.asking import question
from edge.backends.onnx.choice import FILE as DEVICE_CHOICES
from edge.calibrations import Calibrations
from edge.cloud.pricing import worst_case_microusd
from edge.confidence.calibration import Calibration
from edge.confidence.fusion import Prior
from edge.confidence.key import CalibrationKey
from edge.errors import ConfigError, GenerationError, InputError
from edge.judge import is_right, judge
from edge.lab.calibrating import Answer, features_of
from edge.lab.labelled import Example, check_labels, check_unseen, read_examples
from edge.local import LocalModels, LocalTask, calibration_key
from edge.pack import find_pack, load_pack
from edge.roster import all_tasks, check_models, model_store
from edge.store.weights import ModelStore
from edge.task import PoolSpec
from edge.types import Draft, Kind

ROWS = "rows"
"""Role of a model's file that holds the digests of the rows it was trained on, one a line."""

_T = TypeVar("_T")
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Desk:
    """A task that can be asked, with what it chooses from and whom it would ask.

    Attributes:
        models: without the state folder's calibrations, which are about to be replaced.
        calibrations: those that the models bring.
        pool: of the task; ``None`` where the pack has none.
        carried: the file of the task's calibration that the pack names, or ``None``.
        known: digests of rows that the model, or the calibration it brings, was made from.

    """

    task: LocalTask
    models: LocalModels
    calibrations: Calibrations
    pool: PoolSpec | None
    labels: tuple[str, ...]
    carried: str | None = None
    known: frozenset[str] = frozenset()


@contextlib.contextmanager
def open_desk(name: str, pack: str, state: Path) -> Iterator[Desk]:
    """Yield the desk of a task.

    Raises:
        ConfigError: there is no such task, or it has no local model.

    """
    loaded = load_pack(find_pack(pack))
    tasks = all_tasks(loaded, state)
    task = tasks.get(name)
    if task is None:
        known = ", ".join(sorted(tasks))
        raise ConfigError(f"There is no task named {name!r}.", hint=f"Tasks here: {known}.")
    if task.spec.model is None:
        raise ConfigError(f"Task {name} names no local model, so nothing can be calibrated.")
    store = model_store(loaded, state)
    check_models({name: task}, store)
    calibrations = Calibrations(store, None)
    models = LocalModels(
        store, memory=loaded.memory, choices=state / DEVICE_CHOICES, calibrations=calibrations
    )
    with contextlib.closing(models):
        pool = loaded.pools.get(task.spec.routing.pool)
        carried = loaded.calibration.get(name)
        yield Desk(
            task,
            models,
            calibrations,
            pool,
            models.labels(task),
            carried=carried,
            known=_known(store, calibrations, task),
        )


def _known(store: ModelStore, calibrations: Calibrations, task: LocalTask) -> frozenset[str]:
    """Return the digests that a model's own files hold of the rows it was made from."""
    model = task.spec.model or ""
    shipped = calibrations.of(model, task.name)
    seen = (shipped.seen or ()) if shipped is not None else ()
    if all(file.role != ROWS for file in store.manifest(model).files):
        return frozenset(seen)
    return frozenset((*seen, *store.path(model, ROWS).read_text("ascii", "replace").split()))


def read_labelled(path: Path, desk: Desk) -> list[Example]:
    """Read labelled examples of the desk's task.

    Raises:
        InputError: the file cannot be read, a line is not an example (the line is named), or the
            model was made from some of the rows.

    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not valid UTF-8.", hint="Convert it to UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    examples = read_examples(lines, name=path.name, kind=desk.task.spec.kind)
    if desk.labels:
        check_labels(examples, desk.labels)
    check_unseen(examples, desk.known, model=desk.task.spec.model or "")
    for each in examples:
        _for_line(each, lambda text: _admitted(desk.task, text))
    return examples


def answered(
    desk: Desk, examples: Sequence[Example], tell: Tell, *, target: Path | None
) -> tuple[CalibrationKey, list[Answer]]:
    """Return what calibrations of these answers hold for, and the answers.

    Args:
        desk: of the task.
        examples: to answer, in order.
        tell: is told (what, done, of).
        target: where the calibration will go; one of another key there is an error. ``None`` where
            it may be replaced.

    Raises:
        InputError: see ``target``; or a text is longer than the task's budget.
        ModelError: the model cannot be loaded, or gave no answer to any text.

    """
    key: CalibrationKey | None = None
    answers = []
    for done, example in enumerate(examples, start=1):
        draft = _draft(desk, example)
        if draft is not None and key is None:
            key = calibration_key(desk.task, draft)
            _check_free(target, key)
        answers.append(_answer(desk, example, draft))
        tell("answering", done, len(examples))
    if key is None:
        raise GenerationError(f"The model of task {desk.task.name} answered none of the rows.")
    return key, answers


def features(desk: Desk, answers: Sequence[Answer]) -> tuple[list[str], Prior | None]:
    """Return the signals to fuse, and the prior that the model brings for them, if any."""
    valid = [each.signals for each in answers if each.valid]
    prior = _prior(desk)
    if prior is not None and all(name in each for each in valid for name in prior.features):
        return list(prior.features), prior
    kind, labels = desk.task.spec.kind, bool(desk.task.spec.labels)
    return features_of(kind, valid, labels=labels), None


def _prior(desk: Desk) -> Prior | None:
    """Return the weights that ship with the model: of a file, or inside of a head."""
    model, spec = desk.task.spec.model or "", desk.task.spec
    shipped = desk.calibrations.of(model, desk.task.name)
    if shipped is not None:
        return Prior.of(shipped, name=f"{model} ({shipped.key.model_digest[:12]})")
    if spec.kind is not Kind.CLASSIFY or spec.labels:
        return None
    with desk.models.head(model) as head:
        # The local tier gives a head the text, where it has a layer for it.
        blend = head.blend if head.words is None else head.words.blend
        if blend.calibration is None:
            return None
        mean, scale, weights = blend.calibration.tolist()
    return Prior(
        name=model,
        features=blend.features,
        mean=tuple(mean[:-1]),
        scale=tuple(scale[:-1]),
        weights=tuple(weights[:-1]),
        bias=weights[-1],
    )


def _check_free(target: Path | None, key: CalibrationKey) -> None:
    """Make sure that no calibration of another model, task or prompt would be lost."""
    if target is None or not target.exists():
        return
    hint = "Pass --replace to lose it, or move it away."
    try:
        before = Calibration.load(target).key
    except ConfigError as error:
        raise InputError(error.message, hint=hint) from error
    if before != key:
        raise InputError(
            f"{target} is a calibration of the model {before.model_digest[:12]} and the task "
            f"{before.task}; these answers are of the model {key.model_digest[:12]} and the task "
            f"{key.task}, or of another prompt.",
            hint=hint,
        )


def _draft(desk: Desk, example: Example) -> Draft | None:
    try:
        return _for_line(example, lambda text: desk.models.draft(desk.task, text))
    except GenerationError:
        return None


def _answer(desk: Desk, example: Example, draft: Draft | None) -> Answer:
    cost = _cost(desk, example, draft)
    if draft is None:
        return Answer(example.text, {}, right=False, valid=False, cost_microusd=cost)
    return Answer(
        text=example.text,
        signals=draft.signals,
        right=is_right(draft.value, example.gold),
        valid=judge(desk.task.spec, draft).valid,
        cost_microusd=cost,
    )


def _cost(desk: Desk, example: Example, draft: Draft | None) -> int | None:
    """Return what the budget would hold for asking the pool instead."""
    if desk.pool is None:
        return None
    asked = question(desk.task.spec, example.text, labels=desk.labels, draft=draft)
    return worst_case_microusd(
        desk.pool.price, asked.messages, asked.max_tokens, response_schema=asked.schema
    )


def _admitted(task: LocalTask, text: str) -> None:
    check_text(text, max_chars=task.spec.input.max_chars, task=task.name)


def _for_line(example: Example, work: Callable[[str], _T]) -> _T:
    """Do something with an example's text; what is wrong with the text names its line."""
    try:
        return work(example.text)
    except InputError as error:
        raise InputError(f"{example.where}: {error.message}", hint=error.hint) from error
