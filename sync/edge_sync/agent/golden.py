"""Whether a model that has just arrived answers as it should, before anything relies on it.

Golden cases of an ONNX model of any kind are files of role ``golden-tensors``, NumPy's ``.npz``: an
array ``in.<name>`` for each input and ``out.<name>`` for each output, all cases of one pass along
their first axes. Outputs may differ by the manifest's ``facts.golden_tolerance``. Cases of texts
(role ``golden``) are the runtime's to check, which knows tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import IntegrityError, LoadError
from edge.store.weights import MANIFEST, Manifest, ModelStore

TOLERANCE = 1e-3
"""Where the manifest names none: what processors and versions of ONNX Runtime may differ by."""

ROLE = "golden-tensors"


def check(folder: Path) -> None:
    """Check a model's files against its manifest, and its answers against its golden cases.

    Raises:
        LoadError: a file is missing, or the model cannot be loaded.
        IntegrityError: a file has another digest, or an answer is another.
        GenerationError: the model failed on a golden case.

    """
    manifest = Manifest.load(folder / MANIFEST)
    store = ModelStore(folder)
    for problem in store.verify(manifest.name):
        raise IntegrityError(f"Model {manifest.name}: {problem}.")
    if manifest.engine == "onnx":
        _check_onnx(manifest, store.path(manifest.name))


def _check_onnx(manifest: Manifest, weights: Path) -> None:
    from edge.backends.onnx.runner import Ask, Runner

    runner = Runner(Ask(weights, manifest.name, threads=1))
    try:
        for file in manifest.files:
            if file.role == ROLE:
                _answer(manifest, runner, manifest.folder / file.path)
    finally:
        runner.close()


def _answer(manifest: Manifest, runner: Any, cases: Path) -> None:
    feed, wanted = _read(manifest, cases)
    found = runner.run(list(wanted), feed)
    tolerance = float(manifest.facts.get("golden_tolerance", TOLERANCE))
    for (name, right), answer in zip(wanted.items(), found, strict=True):
        if answer.shape != right.shape:
            raise IntegrityError(
                f"Model {manifest.name} gives {name} of shape {answer.shape} on its golden cases, "
                f"not {right.shape}."
            )
        off = float(np.max(np.abs(answer - right), initial=0.0))
        if not off <= tolerance:
            raise IntegrityError(
                f"Model {manifest.name} is off by {off:.3g} in {name} on its golden cases; "
                f"{tolerance:g} is allowed."
            )


def _read(manifest: Manifest, cases: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with np.load(cases, allow_pickle=False) as arrays:
            parts: dict[str, dict[str, Any]] = {"in": {}, "out": {}}
            for key in arrays.files:
                side, _, name = key.partition(".")
                parts[side][name] = arrays[key]
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(
            f"The golden cases of model {manifest.name} cannot be read: {error}."
        ) from error
    if not parts["in"] or not parts["out"]:
        raise LoadError(f"The golden cases of model {manifest.name} lack inputs or outputs.")
    return parts["in"], parts["out"]
