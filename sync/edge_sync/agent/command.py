"""``edge agent``: a device without an app of its own, or one whose apps do not pass ``hub``."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.markup import escape

from edge.cli import show
from edge.config import is_offline, state_folder
from edge.errors import ConfigError
from edge.pack import find_pack, load_pack
from edge_sync.agent.activation import Change
from edge_sync.agent.device import Device, Senses
from edge_sync.agent.loop import Agent, Status
from edge_sync.agent.start import CODE, Standalone, open_device

_MOST_ROUNDS = 20
_LOOK_S = 1.0


def agent(
    *,
    hub: Annotated[
        str,
        typer.Option(envvar="EDGE_HUB", help="URL of the hub; replicas with commas between them."),
    ],
    code: Annotated[
        str, typer.Option(envvar=CODE, help="Enrolment code; needed once, to join.")
    ] = "",
    name: Annotated[str, typer.Option(help="What people call this device.")] = "",
    pack: Annotated[str, typer.Option(help="Name or file of the pack.")] = "kiosk",
    state: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="State folder; EDGE_STATE or the platform's place without."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Sync once and leave.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Join a fleet, keep this device's policy current, and report what it did.

    Exit code 1 where the hub's policy was refused with --once.
    """
    if is_offline(None):
        raise ConfigError(
            "EDGE_OFFLINE forbids sockets, and an agent needs one.", hint="Unset EDGE_OFFLINE."
        )
    folder = state_folder(state)
    title = load_pack(find_pack(pack)).name
    runs = Standalone(pack, folder)
    device, exchange = open_device(runs, hub, state=folder, pack=title)
    if once:
        try:
            _once(device, code, name, as_json=as_json)
        finally:
            device.close()
        return
    made = Agent(device, exchange, code=code, name=name, boot_s=Senses().boot_s)
    _run(made, _Teller(device, as_json=as_json))


def _once(device: Device, code: str, name: str, *, as_json: bool) -> None:
    if code and not device.memory().enrolled:
        device.enrol(code, name)
    changes: list[Change] = []
    for _ in range(_MOST_ROUNDS):
        done = device.sync()
        changes.append(done.change)
        if not done.more:
            break
    told = device.summary() | {"syncs": len(changes), "change": _strongest(changes).value}
    if as_json:
        show.print_json(told)
    else:
        _print(told)
    if Change.REFUSED in changes:
        raise typer.Exit(1)


def _print(told: dict[str, Any]) -> None:
    """Print what there is to say, a line each."""
    models = [f"{name}@{digest[:12]}" for name, digest in told["models"].items()]
    shown = told | {
        "models": ", ".join(models),
        "policy": told["policy"] or "none",
        "money": "; ".join(told["money"]),
    }
    for key, value in shown.items():
        if value:
            text = "yes" if value is True else str(value)
            line = f"[dim]{key:<12}[/dim]{escape(text)}"
            show.console.print(line, highlight=False, soft_wrap=True)


def _strongest(changes: list[Change]) -> Change:
    order = list(Change)
    return max(changes, key=order.index)


class _Teller:
    """Prints a line whenever something has changed."""

    def __init__(self, device: Device, *, as_json: bool) -> None:
        self._device = device
        self._as_json = as_json
        self._last = ""

    def tell(self, status: Status) -> None:
        if status.error is not None:
            self._line("error", str(status.error))
        elif status.rounds:
            told = self._device.summary()
            shown = "policy {policy} in force, group {group}".format(**told)
            self._line("ok", shown + (", tightened" if told["tightened"] else ""))

    def _line(self, state: str, text: str) -> None:
        if text == self._last:
            return
        self._last = text
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if self._as_json:
            show.print_json({"at": at, "state": state, "text": text})
        else:
            colour = {"ok": "green", "error": "red"}[state]
            show.console.print(
                f"[dim]{at}[/dim] [{colour}]{state}[/{colour}] {escape(text)}",
                highlight=False,
                soft_wrap=True,
            )


def _run(made: Agent, teller: _Teller) -> None:
    """Run until the agent gives up or the process is told to end."""
    asked: list[int] = []

    def end(number: int, _frame: object) -> None:
        asked.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    made.start()
    try:
        _watch(made, teller, ended=lambda: bool(asked))
    finally:
        made.close()
    error = made.status.error
    if error is not None and not asked:
        raise error


def _watch(made: Agent, teller: _Teller, *, ended: Callable[[], bool]) -> None:
    seen = Status()
    while not ended():
        before = seen
        made.wait(lambda status, before=before: status != before, _LOOK_S)  # type: ignore[misc]
        seen = made.status
        if seen.ended:
            return
        teller.tell(seen)
