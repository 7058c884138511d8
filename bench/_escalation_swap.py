"""What happens when the weights are quantised again and the calibration stays behind?

The actions model answers snips at Q8 and at Q4 (stream ``snips-q4`` of the tape). The runtime gives
the Q4 answers no confidence, because the calibration is another digest's; the rows show what the
old number would have been worth, and what 200 new labels near the old weights make of it. The
accuracy aimed at is that of Q8 with a fifth sent up. Labels are drawn from the bench rows, and each
draw measures both models on the rows it did not take; the cloud's errors enter by their mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from _common import Row, at_least, at_most
from _escalation_promise import ACTIONS
from _escalation_tape import CLOUD, Bools, Floats, Stream
from numpy.typing import NDArray

from edge.confidence.calibration import Calibration
from edge.confidence.fusion import Prior, fit_calibration
from edge.errors import InputError
from edge.lab.metrics import auroc, smooth_ece

RISE = 0.05
RELABELLED = 200
_SENT_UP = 0.20


@dataclass(frozen=True)
class Pair:
    """The same rows answered before and after, and the calibration of before."""

    old: Stream
    new: Stream
    calibration: Calibration

    def judged(self, stream: Stream, *, by: Calibration | None = None) -> Floats:
        """Return what a calibration, by default the old one, says of a stream's answers."""
        used = by or self.calibration
        found = [used.confidence(used.key, row) for row in stream.rows()]
        return np.array([value for value in found if value is not None])


def pair(streams: Mapping[str, Stream]) -> Pair | None:
    """Return the two streams; ``None`` where the tape has no second one or lacks a signal."""
    old, new = streams.get("snips"), streams.get("snips-q4")
    if old is None or new is None or len(old) != len(new):
        return None
    calibration = Calibration.load(ACTIONS)
    known = old.signals.keys() & new.signals.keys()
    return Pair(old, new, calibration) if known >= set(calibration.features) else None


def expected(order: Floats, right: Bools) -> Floats:
    """Return the expected accuracy with the 0, 1, … n least sure answers sent up."""
    first = np.argsort(order, kind="stable")
    gained = np.concatenate([[0.0], np.cumsum(CLOUD - right[first])])
    found: Floats = right.mean() + gained / len(right)
    return found


def share_for(order: Floats, right: Bools, accuracy: float) -> float:
    """Return the least share sent up that reaches an expected accuracy; 1 where none does."""
    reached = expected(order, right) >= accuracy
    return float(np.argmax(reached) / len(right)) if reached.any() else 1.0


def swapped(streams: Mapping[str, Stream], *, seeds: int) -> Iterator[Row]:
    """Yield the rows of a swap from Q8 to Q4; none where the tape holds one quantization."""
    both = pair(streams)
    if both is None:
        return
    before, after = both.judged(both.old), both.judged(both.new)
    other = replace(both.calibration.key, model_digest="another")
    silent = all(both.calibration.confidence(other, row) is None for row in both.new.rows())
    told = "snips Q8 -> Q4"
    yield at_least(f"{told}: no confidence under another digest", float(silent), 1.0)
    yield Row(f"{told}: accuracy before", round(float(both.old.right.mean()), 4), "")
    yield Row(f"{told}: accuracy after", round(float(both.new.right.mean()), 4), "")
    for name, sure, stream in (("before", before, both.old), ("after", after, both.new)):
        error, order = smooth_ece(sure, stream.right), auroc(sure, stream.right)
        yield Row(f"{told}: error AUROC {name}, old calibration", round(order, 4), "")
        yield Row(f"{told}: smooth error {name}, old calibration", round(error, 4), "")
    rises = np.array([_rise(both, before, after, seed) for seed in range(seeds)])
    old, new, error = rises.mean(axis=0)
    yield Row(f"{told}: rise of the share sent up, old calibration", round(float(old), 4), "")
    yield at_most(f"{told}: rise of the share sent up, {RELABELLED} labels", float(new), RISE)
    yield Row(f"{told}: smooth error after {RELABELLED} labels", round(float(error), 4), "")


def _rise(both: Pair, before: Floats, after: Floats, seed: int) -> tuple[float, float, float]:
    """Return the rise with the old and the new calibration, and the new one's smooth error."""
    mixed = np.random.default_rng(seed).permutation(len(both.new))
    taken, rest = mixed[:RELABELLED], mixed[RELABELLED:]
    right = both.new.right[rest]
    renewed = both.judged(both.new, by=_relabelled(both, taken))[rest]
    usual = expected(before[rest], both.old.right[rest])
    aim = float(usual[round(_SENT_UP * len(rest))])
    base = share_for(before[rest], both.old.right[rest], aim)
    old, new = (share_for(order, right, aim) - base for order in (after[rest], renewed))
    return old, new, smooth_ece(renewed, right)


def _relabelled(both: Pair, taken: NDArray[np.int_]) -> Calibration:
    calibration = both.calibration
    try:
        return fit_calibration(
            calibration.key,
            both.new.rows(taken),
            correct=both.new.right[taken].tolist(),
            features=calibration.features,
            prior=Prior.of(calibration, name="Q8"),
        )
    except InputError:
        # All right or all wrong: nothing to learn from these labels.
        return calibration
