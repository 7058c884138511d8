"""Recorded tasks under a policy that is not published yet: what ``edge simulate`` would say.

Asks nothing and changes nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from edge.cli import show, trials
from edge.lab.simulating import Simulated, Tally
from edge.lab.simulating import simulate as simulated
from edge.task import Pack
from edge_sync.cli.common import table, told


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """One task: how it went, how it would go, and what has to be said of it."""

    task: str
    found: Simulated
    notes: tuple[str, ...]


def rehearse(packs: Iterable[Pack], traces: Path) -> list[Rehearsed]:
    """Return what would become of the tasks that a state folder has recorded.

    Args:
        packs: with the policy laid over them; a task is tried with the first that has it.
        traces: a state folder.

    Raises:
        InputError: nothing is recorded there that can be replayed.
        ConfigError: a model or a calibration of a pack cannot be read.

    """
    recorded = trials.recorded(traces, None)
    labels = trials.known_labels(traces)
    left = set(recorded.traces)
    results = []
    for pack in packs:
        for name, trial in _trials(pack, traces, left).items():
            accuracy = trial.policy.task.routing.cloud_accuracy
            found = simulated(recorded.traces[name], trial.policy, labels, cloud_accuracy=accuracy)
            results.append(Rehearsed(name, found, trial.notes))
            left.discard(name)
    return sorted(results, key=lambda each: each.task)


def print_rehearsal(results: list[Rehearsed]) -> None:
    """Print a line a task."""
    if not results:
        told("None of the recorded tasks is in the packs: nothing was simulated.")
        return
    rows = (
        (
            each.task,
            each.found.tasks,
            each.found.changed or "-",
            f"{_share(each.found.happened)} → {_share(each.found.simulated)}",
            f"{each.found.happened.escalated} → {each.found.simulated.escalated}",
            f"{_cost(each.found.happened)} → {_cost(each.found.simulated)}",
        )
        for each in results
    )
    total = sum(each.found.tasks for each in results)
    title = f"Recorded tasks under this policy ({total:,})"
    table(title, ("task", "recorded>", "changed>", "kept>", "escalated>", "cost>"), rows)
    tasks: dict[str, list[str]] = {}
    for each in results:
        for note in each.notes:
            tasks.setdefault(note, []).append(each.task)
    for note, names in tasks.items():
        told(f"{', '.join(names)}: {note}")


def _trials(pack: Pack, traces: Path, names: set[str]) -> dict[str, trials.Trial]:
    if not names & set(pack.tasks):
        return {}
    # The steps behind `edge simulate` read a pack from a file; what was laid together is one.
    with tempfile.TemporaryDirectory(prefix="edge-hub-") as folder:
        path = Path(folder) / "pack.yaml"
        path.write_text(yaml.safe_dump(pack.model_dump(mode="json")), "utf-8")
        return trials.trials(str(path), traces, names, keep_above=None, risk=None)


def _share(tally: Tally) -> str:
    total = tally.kept + tally.escalated + tally.deferred + tally.abstained
    return f"{tally.kept / total:.0%}" if total else "-"


def _cost(tally: Tally) -> str:
    return "?" if tally.cost_microusd is None else show.dollars(tally.cost_microusd)
