"""``edge policy``: what a policy says, and whether it fits a pack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.markup import escape

from edge.activation import read_own
from edge.cli import show
from edge.cli.run import AsJson, Pack, State
from edge.config import assigned_folder, is_file, state_folder
from edge.overlay import Document, Policy, difference, lay, load_document
from edge.pack import find_pack, load_pack
from edge.roster import all_tasks, check_models, model_store
from edge.store.policies import Policies, StoredPolicy, Switches
from edge.store.weights import MANIFEST
from edge.task import Pack as LoadedPack

app = typer.Typer(no_args_is_help=True)
_FILE = "A policy in YAML, or a compiled document."


@app.command("show")
def show_policy(
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help=f"{_FILE} Without it, the policy in force."),
    ] = None,
    *,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Show what a policy changes, one key a line."""
    stored, switches = (None, None) if file else _stored(state_folder(state))
    policy = read_own(file) if file else None
    if stored is not None:
        policy = load_document(stored.document)
    if as_json:
        show.print_json(_plain(policy, stored, switches))
        return
    if policy is None:
        typer.echo("No policy is in force: tasks go by their pack alone.")
    for line in (*_heading(policy), *_switched(switches)):
        show.console.print(line, markup=False, highlight=False, soft_wrap=True)
    if policy is None:
        return
    written = policy.policy if isinstance(policy, Document) else policy
    rows = ((escape(each.path), escape(_value(each.after))) for each in difference(None, written))
    show.table("", ("key", "value"), rows)


@app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(help=_FILE)],
    *,
    pack: Pack = "kiosk",
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Check that a policy fits a pack: every key, task, model, pool and condition.

    Signatures are checked where policies come from a hub, not here.
    """
    base, folder = load_pack(find_pack(pack)), state_folder(state)
    laid = lay(base, read_own(file))
    awaited = _check_tasks(laid, folder)
    changed = [name for name in laid.tasks if laid.tasks[name] != base.tasks.get(name)]
    if as_json:
        show.print_json(
            {"file": str(file), "pack": base.name, "changed": changed, "awaited": awaited}
        )
        return
    show.console.print(
        f"{file.name} fits pack {base.name}: it changes {len(changed)} of {len(laid.tasks)} tasks.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for name in awaited:
        typer.echo(f"Model {name} is not here yet, so what needs it was not checked.")


def _check_tasks(pack: LoadedPack, state: Path) -> list[str]:
    """Fit tasks and models together; return the assigned models that are not here yet.

    Raises:
        ConfigError: something does not fit.

    """
    awaited = [
        name
        for name, model in pack.models.items()
        if model.digest and not is_file(assigned_folder(state, name, model.digest) / MANIFEST)
    ]
    here = {name: model for name, model in pack.models.items() if name not in awaited}
    update: dict[str, Any] = {"models": here}
    if pack.routing.default_model in awaited:
        update["routing"] = pack.routing.model_copy(update={"default_model": None})
    tasks = all_tasks(pack, state)
    store = model_store(pack.model_copy(update=update), state)
    present = {name: task for name, task in tasks.items() if task.spec.model not in awaited}
    check_models(present, store)
    return awaited


def _stored(state: Path) -> tuple[StoredPolicy | None, Switches | None]:
    """Return the policy in force of a state folder, which is not created, and what is stopped."""
    if not is_file(state / "policy.db"):
        return None, None
    with Policies.open(state) as policies:
        return policies.active(), policies.switches()


def _heading(policy: Document | Policy | None) -> list[str]:
    if not isinstance(policy, Document):
        return []
    restores = f", restores revision {policy.restores}" if policy.restores else ""
    return [f"revision {policy.revision}{restores}", f"sha256 {policy.sha256}"]


def _switched(switches: Switches | None) -> list[str]:
    """Say what holds beside a policy, and also where there is none."""
    if switches is None:
        return []
    stopped = ((kind, ", ".join(names)) for kind, names in switches.stopped.items() if names)
    lines = [f"stopped {kind}: {names}" for kind, names in stopped]
    return [*lines, "expired: nothing new leaves this device"] if switches.tightened else lines


def _plain(
    policy: Document | Policy | None, stored: StoredPolicy | None, switches: Switches | None
) -> dict[str, Any]:
    """Return a policy as plain JSON, conditions as text."""
    body: dict[str, Any] = {"revision": 0, "sections": {}}
    if isinstance(policy, Policy):
        body["sections"] = policy.sections
    if isinstance(policy, Document):
        body |= {
            "revision": policy.revision,
            "sections": policy.policy.sections,
            "sha256": policy.sha256,
            "created_at": policy.created_at,
            "restores": policy.restores,
        }
    if stored is not None:
        body["activated_at"] = stored.activated_at
    if switches is not None:
        body |= {"stopped": switches.stopped, "tightened": switches.tightened}
    return body


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
