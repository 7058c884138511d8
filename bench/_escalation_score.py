"""How well does the confidence order the answers? AUROC, errors caught, accuracy with a cloud.

The whole test stream of a set is all of its in-scope bench rows; nothing is left out or weighted.
The confidence is the one that ships: the tape's. Baselines order the same rows of the same tape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from _common import Row, at_least
from _escalation_tape import CLOUD, HARDER, SETS, Bools, Floats, Stream, cloud_answers

from edge.lab.metrics import (
    auroc,
    caught_errors,
    deferral_curve,
    kept_share,
    separation,
)

AUROC = {"clinc150": 0.945, "banking77": 0.93, "hwu64": 0.925, "snips": 0.88}
OUT_OF_SCOPE = 0.98
ACCURACY = {"clinc150": 0.988, "banking77": 0.974, "hwu64": 0.965}
CAUGHT = {
    "clinc150": (0.55, 0.80, 0.87),
    "banking77": (0.46, 0.66, 0.78),
    "hwu64": (0.37, 0.63, 0.76),
}
KEPT = {"clinc150": 0.945, "banking77": 0.87, "hwu64": 0.83}
SHARES = (0.05, 0.10, 0.15)
GAIN = 0.03  # of AUROC, that fusion must add
ARMS = {"independent": 1.0, "4x correlated": HARDER}
_CACTUS = 0.7


def barred(name: str, value: float, bar: float | None, unit: str = "") -> Row:
    """Return a row with a lower bar, or without one where none was set."""
    return Row(name, round(value, 4), unit) if bar is None else at_least(name, value, bar, unit)


def scored(streams: Mapping[str, Stream], *, seeds: int) -> Iterator[Row]:
    """Yield the rows of the order of answers, set by set."""
    for name in SETS:
        if name in streams:
            yield from _of_one(streams[name], seeds)
    if "clinc150-oos" in streams:
        inside, outside = (streams[name].signals["score"] for name in ("clinc150", "clinc150-oos"))
        value = separation(inside, outside)
        yield at_least(f"out-of-scope AUROC, score (n {len(outside)})", value, OUT_OF_SCOPE)


def _of_one(stream: Stream, seeds: int) -> Iterator[Row]:
    name, sure, right = stream.name, stream.confidence, stream.right
    yield Row(f"{name} accuracy without a cloud (n {len(stream)})", round(right.mean(), 4), "")
    yield barred(f"{name} error AUROC", auroc(sure, right), AUROC.get(name))
    for share, bar in zip(SHARES, CAUGHT.get(name, (None,) * 3), strict=True):
        caught = caught_errors(sure, right, escalated=share)
        yield barred(f"{name} errors caught at {share:.0%}", caught, bar)
    kept = kept_share(sure, right, risk=0.02)
    yield barred(f"{name} kept at 2 % errors, hindsight", kept, KEPT.get(name))
    for arm, harder in ARMS.items():
        value = accuracy(sure, stream, share=0.1, seeds=seeds, harder=harder)
        bar = ACCURACY.get(name) if harder == 1.0 else None
        yield barred(f"{name} accuracy at 10 % escalated, {arm} cloud", value, bar)


def accuracy(
    order: Floats, stream: Stream, *, share: float, seeds: int, harder: float = 1.0
) -> float:
    """Return the accuracy with the least sure share sent up, in the mean over the cloud's errors.

    ``order`` is higher for surer answers.
    """
    found = []
    for seed in range(seeds):
        cloud = cloud_answers(stream.right, np.random.default_rng(seed), harder=harder)
        found.append(deferral_curve(order, stream.right, cloud_correct=cloud).at(share))
    return float(np.mean(found))


def baselines(
    streams: Mapping[str, Stream], query_only: Mapping[str, Floats], *, seeds: int
) -> Iterator[Row]:
    """Yield accuracy at 10 % escalated of other orders, and of two fixed rules.

    Args:
        streams: of the tape.
        query_only: by set, the chance of a right answer that a classifier reads off the input
            alone; see ``_escalation_heads``.
        seeds: of the cloud's errors.

    """
    for name in SETS:
        if name not in streams:
            continue
        stream = streams[name]
        for order, values in orders(stream, query_only.get(name)).items():
            value = accuracy(values, stream, share=0.1, seeds=seeds)
            yield Row(f"{name} accuracy at 10 % by {order}", round(value, 4), "")
            value = auroc(values, stream.right)
            yield Row(f"{name} error AUROC of {order}", round(value, 4), "")
        yield Row(f"{name} accuracy at 10 %, random", round(_mixed(stream, 0.1), 4), "")
        yield Row(f"{name} accuracy at 10 %, oracle", round(_oracle(stream, seeds), 4), "")
        yield from _fixed_rules(stream, streams.get(f"{name}-fit"))


def orders(stream: Stream, query_only: Floats | None) -> dict[str, Floats]:
    """Return what else could order a stream's answers, higher for surer ones."""
    found = {
        "top probability": stream.signals.get("probability"),
        "mean log-probability": stream.signals.get("mean_logprob"),
        "1 - entropy": _certainty(stream),
        "query-only classifier": query_only,
    }
    return {name: values for name, values in found.items() if values is not None}


def _certainty(stream: Stream) -> Floats | None:
    """Return minus the entropy: of a head's labels, or the highest of a generated token."""
    entropy = stream.signals.get("entropy", stream.signals.get("max_entropy"))
    return None if entropy is None else -entropy


def _mixed(stream: Stream, share: float) -> float:
    return float((1.0 - share) * stream.right.mean() + share * CLOUD)


def _oracle(stream: Stream, seeds: int) -> float:
    found = []
    for seed in range(seeds):
        cloud = cloud_answers(stream.right, np.random.default_rng(seed))
        curve = deferral_curve(stream.right - cloud, stream.right, cloud_correct=cloud)
        found.append(curve.at(0.1))
    return float(np.mean(found))


def _fixed_rules(stream: Stream, fit: Stream | None) -> Iterator[Row]:
    """Yield what two thresholds fixed beforehand come to: share sent up, and risk of the rest."""
    entropy = stream.signals.get("entropy")
    rules: dict[str, Bools] = {}
    if entropy is not None:
        most = np.log(max(stream.labels, 2))
        rules["1 - entropy at 0.7"] = 1.0 - entropy / most >= _CACTUS
    if fit is not None:
        share = kept_share(fit.confidence, fit.right, risk=0.02)
        rules["plug-in 2 % of the prior"] = stream.confidence >= np.quantile(
            fit.confidence, 1.0 - share
        )
    for rule, kept in rules.items():
        risk = float(1.0 - stream.right[kept].mean()) if kept.any() else 0.0
        yield Row(f"{stream.name} {rule}: sent up", round(float(1.0 - kept.mean()), 4), "")
        yield Row(f"{stream.name} {rule}: kept risk", round(risk, 4), "")


def fusion_gains(streams: Mapping[str, Stream]) -> dict[str, tuple[float, float]]:
    """Return (AUROC of the confidence, of the plain signal) by task.

    The plain signal is the mean log-probability of a generated answer, else the top probability.
    Out of scope counts as a task: right answers in scope against requests out of scope.
    """
    found = {}
    for name in SETS:
        if name in streams:
            stream = streams[name]
            found[name] = (
                auroc(stream.confidence, stream.right),
                auroc(_plain(stream), stream.right),
            )
    if "clinc150-oos" in streams:
        inside, outside = streams["clinc150"], streams["clinc150-oos"]
        found["out of scope"] = (
            separation(inside.confidence, outside.confidence),
            separation(_plain(inside), _plain(outside)),
        )
    return found


def _plain(stream: Stream) -> Floats:
    for name in ("mean_logprob", "probability"):
        if name in stream.signals:
            return stream.signals[name]
    return stream.confidence


def worth_fusing(streams: Mapping[str, Stream]) -> Iterator[Row]:
    """Yield whether fusing signals beats the plain one: by 0.03 on 4 of 6 tasks, or drop it."""
    gains = fusion_gains(streams)
    for name, (fused, plain) in gains.items():
        yield Row(f"fusion over the plain signal, {name}", round(fused - plain, 4), "AUROC")
    won = sum(fused - plain >= GAIN for fused, plain in gains.values())
    yield Row(f"tasks of {len(gains)} where fusion adds 0.03 AUROC (4 asked)", won, "")
