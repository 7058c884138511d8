"""``edge simulate``: recorded tasks under another policy, beside what really happened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any, Optional

import typer

from edge.cli import show, trials
from edge.cli.run import AsJson, State
from edge.config import state_folder
from edge.errors import InputError
from edge.lab.simulating import Simulated, Tally
from edge.lab.simulating import simulate as simulated

_PACK = "The pack to try: a name, or a YAML file."
_KEEP = "Keep from this confidence on."
_RISK = "Keep what a certificate within this risk keeps."
_CLOUD = "Share of the pool's answers that is right; the pack's where not given."


def simulate(
    *,
    task: Annotated[Optional[str], typer.Option(help="Only this task.")] = None,  # noqa: UP045
    pack: Annotated[str, typer.Option(help=_PACK)] = "kiosk",
    keep_above: Annotated[Optional[float], typer.Option(help=_KEEP, min=0, max=1)] = None,  # noqa: UP045
    risk: Annotated[Optional[float], typer.Option(help=_RISK)] = None,  # noqa: UP045
    cloud_accuracy: Annotated[Optional[float], typer.Option(help=_CLOUD, min=0, max=1)] = None,  # noqa: UP045
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Replay recorded tasks under another policy: what it keeps, and what it costs.

    Nothing is asked and nothing is changed. The same traces give the same output.
    """
    if keep_above is not None and risk is not None:
        raise InputError("There are two policies to try.", hint="Pass --keep-above or --risk.")
    if risk is not None and not 0.0 < risk < 1.0:
        raise InputError(f"Nothing can be promised at risk {risk:g}.", hint="It lies within 0..1.")
    folder = state_folder(state)
    recorded = trials.recorded(folder, task)
    traces = recorded.traces
    tried = trials.trials(pack, folder, set(traces), keep_above=keep_above, risk=risk)
    if not tried:
        raise InputError(
            f"The pack {pack} has none of the recorded tasks: {', '.join(sorted(traces))}.",
            hint="Pass the --pack that they were run with, or a changed one.",
        )
    labels = trials.known_labels(folder)
    for name, trial in tried.items():
        accuracy = cloud_accuracy
        if accuracy is None:
            accuracy = trial.policy.task.routing.cloud_accuracy
        found = simulated(traces[name], trial.policy, labels, cloud_accuracy=accuracy)
        if as_json:
            above = recorded.next_tier.get(name, 0)
            told = {"task": name, **asdict(found), "next_tier": above}
            show.print_json({**told, "notes": list(trial.notes)})
        else:
            _print(name, found, trial.notes, accuracy)
    if not as_json:
        _print_left_out(recorded, sorted(traces.keys() - tried.keys()), pack)


def _print_left_out(recorded: trials.Recorded, strange: list[str], pack: str) -> None:
    if strange:
        typer.echo(f"Not in the pack {pack}: {', '.join(strange)}.")
    if recorded.unread:
        typer.echo(f"Without recorded signals, and left out: {recorded.unread}.")
    above = sum(recorded.next_tier.values())
    if above:
        typer.echo(f"Asked of the next tier, and left out: {above}.")


def _print(name: str, found: Simulated, notes: tuple[str, ...], accuracy: float) -> None:
    title = f"{name}: {found.tasks} tasks, of which {found.changed} would have gone another way"
    happened, then = (dict(_cells(each, accuracy)) for each in (found.happened, found.simulated))
    rows = [(what, happened[what], then[what]) for what in happened]
    show.table(title, ("", "happened>", "simulated>"), rows)
    if found.prices:
        named = {"mean": "the mean of recorded ones", "worst case": "the worst case"}
        how = ", ".join(f"{count} {named.get(kind, kind)}" for kind, count in found.prices.items())
        typer.echo(f"Cost of simulated escalations: {how}.")
    for note in notes:
        typer.echo(note)


def _cells(tally: Tally, accuracy: float) -> Iterator[tuple[str, str]]:
    total = tally.kept + tally.escalated + tally.deferred + tally.abstained
    for what in ("kept", "escalated", "deferred", "abstained"):
        count: Any = getattr(tally, what)
        yield what, f"{count} ({count / total:.1%})"
    cost = tally.cost_microusd
    yield "cost", "unknown" if cost is None else show.dollars(cost)
    share = tally.right_by_labels
    yield "right of kept, by audits", _percent(share.value if share else None)
    yield "  interval of 95 %", f"{share.low:.1%} to {share.high:.1%}" if share else "-"
    yield "  audits it rests on", str(share.audits if share else 0)
    yield "  kept, but never open to audit", str(tally.unaudited)
    yield "judged by users: wrong, of", f"{tally.judged_wrong}, {tally.judged}"
    yield "right of kept, by confidence", _percent(tally.right_by_confidence)
    yield f"right of all, cloud at {accuracy:.0%}", _percent(tally.right_expected)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"
