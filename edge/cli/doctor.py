"""``edge doctor``: what engines, devices and models are here, and what is wrong."""

from __future__ import annotations

import platform
import sqlite3
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import typer
from rich.markup import escape

import edge
from edge.backends.devices import Devices, survey
from edge.backends.llama.engine import mismatch
from edge.backends.llama.library import llama_library
from edge.cli import show
from edge.cli.models import store
from edge.cli.placements import placements, sentence
from edge.cli.run import AsJson, Pack, State
from edge.cloud.pools import from_settings
from edge.config import state_folder
from edge.errors import EdgeError
from edge.pack import find_pack, load_pack
from edge.quality import nearest_rank
from edge.roster import model_store
from edge.runtime import Runtime
from edge.store.shortage import since
from edge.task import Pack as LoadedPack

_BUDGET = ("spent", "held", "remaining")
_WAL_BUG = (3, 7, 0), (3, 51, 2)


@dataclass
class _Findings:
    """What was found, and what is wrong with it."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def doctor(*, pack: Pack = "kiosk", state: State = None, as_json: AsJson = False) -> None:
    """Say what is here and what is wrong; exit code 1 where something is."""
    found = _Findings()
    devices = survey()
    _engines(found, devices)
    _sqlite(found)
    loaded = _pack(found, pack, state)
    _models(found, loaded, state)
    _state(found, loaded, state)
    if as_json:
        show.print_json({**found.facts, "problems": found.problems, "notes": found.notes})
    else:
        _print(found, devices)
    if found.problems:
        raise typer.Exit(1)


def _engines(found: _Findings, devices: Devices) -> None:
    found.facts |= {"edge": edge.__version__, "python": platform.python_version()}
    found.facts["devices"] = devices.as_dict()
    found.problems += [f"{e.name}: {e.problem}" for e in devices.engines if e.problem]
    with suppress(EdgeError):  # a library that cannot be loaded is among the problems already
        why = mismatch(llama_library())
        found.facts["native_loop"] = why is None
        if why is not None:
            found.notes.append(f"Decoders run through the loop in Python: {why}.")


def _sqlite(found: _Findings) -> None:
    version = sqlite3.sqlite_version_info
    found.facts["sqlite"] = sqlite3.sqlite_version
    if _WAL_BUG[0] <= version <= _WAL_BUG[1]:
        found.notes.append(
            f"SQLite {sqlite3.sqlite_version} has the WAL-reset bug (fixed in 3.51.3): money and "
            "queue do not use WAL; only traces do."
        )


def _pack(found: _Findings, pack: str, state: str | None) -> LoadedPack | None:
    """Read the pack and make sure that its pools could be asked."""
    found.facts["pack"] = pack
    try:
        loaded = load_pack(find_pack(pack))
    except EdgeError as error:
        found.problems.append(str(error))
        return None
    found.facts["tasks"] = sorted(loaded.tasks)
    for name, spec in loaded.pools.items():
        try:
            from_settings(name, spec, state_folder(state)).check()
        except EdgeError as error:
            found.problems.append(str(error))
    return loaded


def _models(found: _Findings, pack: LoadedPack | None, state: str | None) -> None:
    try:
        models = model_store(pack, state_folder(state)) if pack else store(state)
    except EdgeError:
        models = store(state)  # opening the runtime says why
    found.facts["models"] = models.names()
    for name in models.names():
        try:
            found.problems += [f"model {name}: {problem}" for problem in models.verify(name)]
        except EdgeError as error:
            found.problems.append(f"model {name}: {error.message}")


def _state(found: _Findings, pack: LoadedPack | None, state: str | None) -> None:
    folder = state_folder(state)
    found.facts["state"] = str(folder)
    if pack is None:
        return
    try:
        with Runtime(pack, folder, offline=True) as runtime:
            ledger = runtime.book.ledger
            found.facts["tasks"] = sorted(runtime.tasks())
            found.facts["queue"] = runtime.book.queue.counts()
            left = ledger.leftover()
            found.facts["budget"] = left.as_dict()
            found.notes += left.notes
            unclear = ledger.holds("unclear")
            _policy(found, runtime)
            _quality(found, runtime)
            _memory(found, runtime)
            found.facts["placements"] = placements(runtime.models.loader)
            _nowhere(found)
        if unclear:
            found.notes.append(f"{len(unclear)} holds have an unclear outcome and stay held.")
    except EdgeError as error:
        found.problems.append(str(error))


def _policy(found: _Findings, runtime: Runtime) -> None:
    """Say which policy of the fleet is in force, and why a later one is not."""
    switches = runtime.policies.switches()
    refusals = runtime.policies.refusals()
    found.facts["policy"] = {
        "revision": runtime.policy_revision,
        "stored_revision": switches.revision,
        "stopped": switches.stopped,
        "tightened": switches.tightened,
        "problem": runtime.policy_problem,
        "refused": [asdict(refusal) for refusal in refusals],
    }
    if runtime.policy_problem is not None:
        found.problems.append(runtime.policy_problem)
    newer = [each for each in refusals if each.revision > switches.revision]
    found.notes += [
        f"The policy of revision {each.revision} was refused: {each.reason}" for each in newer[:1]
    ]
    if switches.tightened:
        found.notes.append("The fleet's policy has expired: nothing leaves until a sync.")


def _quality(found: _Findings, runtime: Runtime) -> None:
    """Say which tasks are on a degrade step, beside the latency that was measured last."""
    found.facts["quality"] = told = {}
    for name, quality in runtime.quality.report().items():
        rows = runtime.traces.latest(quality.pop("window"), name)
        told[name] = {**quality, "p95_ms": nearest_rank([row["latency_ms"] for row in rows])}
        if quality["step"]:
            found.notes.append(
                f"Task {name} is on step {quality['step']} of {quality['of']} down: "
                f"{', '.join(quality['in_force'])}."
            )


def _quality_told(quality: dict[str, dict[str, Any]]) -> str:
    parts = []
    for name, each in quality.items():
        slow, goal = each["p95_ms"], each["objective_ms"]
        p95 = "no answer yet" if slow is None else f"p95 {slow:.0f} ms"
        wanted = "" if goal is None else f" of {goal} ms"
        parts.append(f"{name} on step {each['step']} of {each['of']}, {p95}{wanted}")
    return "; ".join(parts)


def _policy_told(policy: dict[str, Any]) -> str:
    if not policy["revision"] and not any(policy["stopped"].values()):
        return "none: the pack alone"
    parts = [f"revision {policy['revision']}"] if policy["revision"] else ["none"]
    parts += [
        f"stopped {kind}: {', '.join(names)}" for kind, names in policy["stopped"].items() if names
    ]
    return "; ".join(parts)


def _nowhere(found: _Findings) -> None:
    """Count what cannot be loaded among the problems, where a broken file is not there already."""
    for name, placement in found.facts["placements"].items():
        known = any(problem.startswith(f"model {name}: ") for problem in found.problems)
        if "problem" in placement and not known:
            found.problems.append(f"model {name}: {placement['problem']}")


def _memory(found: _Findings, runtime: Runtime) -> None:
    """Say what the tasks' models will take in memory, and which one can never be loaded."""
    models, names = runtime.models, set[str]()
    for task in runtime.tasks().values():
        if task.spec.model is not None:
            encoder = models.loader.store.manifest(task.spec.model).encoder
            names |= {task.spec.model, *([encoder.name] if encoder else [])}
    budget = models.residency.budget_bytes
    sizes: dict[str, int] = {}
    for name in sorted(names):
        try:
            sizes[name] = models.loader.estimate(name)
        except EdgeError:
            continue  # `_models` says why
        if budget is not None and sizes[name] > budget:
            found.problems.append(
                f"model {name} needs about {_mb(sizes[name])}; the pack's memory budget is "
                f"{_mb(budget)}"
            )
    loaded = [asdict(resident) for resident in models.residency.report()]
    found.facts["memory"] = {"budget_bytes": budget, "estimates": sizes, "loaded": loaded}


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _print(found: _Findings, devices: Devices) -> None:
    rows: list[tuple[str, str]] = [
        ("edge", f"{found.facts['edge']} on Python {found.facts['python']}"),
        ("machine", f"{devices.system} {devices.machine}, {devices.cores} cores"),
        ("instruction sets", " ".join(devices.instruction_sets) or "unknown"),
    ]
    for engine in devices.engines:
        where = ", ".join(engine.devices) or "no device"
        rows.append((engine.name, f"{engine.package} {engine.version or '-'}: {where}"))
    rows += [
        ("SQLite", found.facts["sqlite"]),
        ("models", ", ".join(found.facts["models"])),
        ("tasks", ", ".join(found.facts.get("tasks", []))),
        ("state", found.facts["state"]),
    ]
    for name, placement in found.facts.get("placements", {}).items():
        rows.append((f"runs {name}", sentence(placement)))
    if "policy" in found.facts:
        rows.append(("policy", _policy_told(found.facts["policy"])))
    if found.facts.get("quality"):
        rows.append(("quality", _quality_told(found.facts["quality"])))
    if "budget" in found.facts:
        budget = found.facts["budget"]
        parts = [f"{what} {show.dollars(budget[f'{what}_microusd'])}" for what in _BUDGET]
        known = f" ({since(budget['age_s'])})" if budget["synced"] else ""
        rows.append(("budget", ", ".join(parts) + known))
    if "memory" in found.facts:
        memory = found.facts["memory"]
        limit = memory["budget_bytes"]
        each = [f"{name} {_mb(size)}" for name, size in memory["estimates"].items()]
        told = "no budget" if limit is None else f"budget {_mb(limit)}"
        rows.append(("memory", f"{told}; about {', '.join(each)}"))
    show.table("", ("what", "found"), [(a, escape(b)) for a, b in rows])
    for note in found.notes:
        show.console.print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False)
    for problem in found.problems:
        show.console.print(f"[red]problem:[/red] {escape(problem)}", highlight=False)
    if not found.problems:
        show.console.print("[green]Nothing is wrong.[/green]")
