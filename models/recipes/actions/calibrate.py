"""Fits the confidence of the pack's `action` task and lists it in the model's manifest.

    PYTHONPATH=.:models/recipes python models/recipes/actions/calibrate.py

Answers the rows that the training held out through the runtime's own local tier, so that signals,
prompt and sampling are those of a device. Run after ``describe.py``; reads no bench file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from data import load_snips, same_call, split
from manifest import sha256

import edge
from edge.confidence.fusion import fit_calibration
from edge.confidence.key import CalibrationKey

TASK = "action"
# As good as any of fifteen sets in cross-validation on the rows below, AUROC and log-loss together.
FEATURES = ("mean_logprob", "min_margin", "missing", "partial", "left_out", "overlap")


def main() -> None:
    """Answer, compare, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/actions-q8_0")
    parser.add_argument("--data", default="../shared/data")
    arguments = parser.parse_args()
    folder = Path(arguments.model)
    _, held = split(load_snips(Path(arguments.data) / "snips" / "train.jsonl"))
    with tempfile.TemporaryDirectory() as state, edge.open(state=state, offline=True) as runtime:
        task = runtime.tasks()[TASK]
        drafts = [runtime.models.draft(task, example.text) for example in held]
    # Invalid answers too: what tells them, such as a value that is not in the text, is learnt.
    once = list({e.text: (d, e) for d, e in zip(drafts, held, strict=True)}.values())
    right = [isinstance(d.value, dict) and same_call(d.value, e.call()) for d, e in once]
    if task.prompt is None:
        raise SystemExit(f"task {TASK} has no prompt")
    key = CalibrationKey(drafts[0].digest, TASK, task.prompt.digest)
    signals = [draft.signals for draft, _ in once]
    rows = [example.text for _, example in once]
    fitted = fit_calibration(key, signals, correct=right, features=FEATURES, rows=rows)
    name = f"calibration-{TASK}.json"
    fitted.save(folder / name)
    _list_in_manifest(folder, name)
    print(f"{fitted.n} answers, {sum(right)} right; calibration error {fitted.ece:.4f}")


def _list_in_manifest(folder: Path, name: str) -> None:
    """Add the file under the role of its stem, replacing an earlier entry."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    role = Path(name).stem
    entry = {
        "path": name,
        "role": role,
        "sha256": sha256(folder / name),
        "bytes": (folder / name).stat().st_size,
    }
    manifest["files"] = [*(f for f in manifest["files"] if f["role"] != role), entry]
    path.write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
