"""What the escalation bench reads of a tape: streams of judged answers, and the cloud's arms.

A tape is one .npz; ``bench/tape.py`` records it and says what each array holds. Streams named
``NAME-fit`` are training rows answered out of fold: the pack's prior. All others are bench rows,
which only measure. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SETS = ("clinc150", "banking77", "hwu64", "sms_spam", "snips")
CLOUD = 0.97  # share of right answers of the simulated cloud
HARDER = 4.0  # how much likelier it is wrong where the local answer is


@dataclass(frozen=True)
class Stream:
    """Answers of one data set, ``[n]`` each.

    Attributes:
        right: whether the local answer was right.
        confidence: calibrated, 0..1; an answer without one counts as the least sure, 0.
        signals: by name; only those that every answer has.
        fold: of the cross-validation; -1 in bench rows.
        gold: the true answers.

    """

    name: str
    right: Bools
    confidence: Floats
    signals: Mapping[str, Floats]
    fold: NDArray[np.int_]
    gold: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.right)

    @property
    def labels(self) -> int:
        """How many different true answers occur."""
        return len(np.unique(self.gold))

    def rows(
        self, chosen: Bools | NDArray[np.int_] | slice = slice(None)
    ) -> list[dict[str, float]]:
        """Return the signals of chosen answers, as a calibration takes them."""
        names = list(self.signals)
        columns = np.column_stack([self.signals[name][chosen] for name in names]).tolist()
        return [dict(zip(names, row, strict=True)) for row in columns]


def read_tape(path: Path) -> dict[str, Stream]:
    """Return the streams of a tape by name."""
    with np.load(path) as tape:
        arrays = {name: tape[name] for name in tape.files}
    found = {}
    for at, name in enumerate(arrays["streams"].tolist()):
        rows = arrays["stream"] == at
        table = arrays["signals"][rows].astype(float)
        signals = {
            str(signal): table[:, column]
            for column, signal in enumerate(arrays["signal_names"].tolist())
            if len(table) and np.isfinite(table[:, column]).all()
        }
        found[str(name)] = Stream(
            name=str(name),
            right=arrays["right"][rows].astype(bool),
            confidence=np.nan_to_num(arrays["confidence"][rows].astype(float)),
            signals=signals,
            fold=arrays["fold"][rows].astype(int),
            gold=arrays["gold"][rows],
        )
    return found


def cloud_answers(right: Bools, random: np.random.Generator, *, harder: float = 1.0) -> Floats:
    """Return whether the cloud is right on each task, 0 or 1; 97 % in the mean.

    ``harder`` is how much likelier it errs where the local answer is wrong; 1 is independent.
    """
    wrong = ~right
    base = (1.0 - CLOUD) / (1.0 + (harder - 1.0) * wrong.mean())
    chance = np.where(wrong, harder * base, base)
    found: Floats = (random.random(len(right)) >= chance).astype(float)
    return found
