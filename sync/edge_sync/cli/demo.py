"""``edge-hub demo``: a hub, three devices, and a rollout that stops itself, on this machine.

Everything is real: processes, signatures, models, tasks, and the reason for the halt, which is a
model that does not fit the memory of one device. What is told at the end is read back from the
hub's database.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import typer
import yaml
from rich.markup import escape
from sqlalchemy import select

from edge.cli import show
from edge.config import models_folder
from edge.errors import StoreError
from edge.store.weights import MANIFEST
from edge_sync.hub import audit, enrolment, fleet, models, policies, revisions, rollouts
from edge_sync.hub.home import CONFIG, Hub
from edge_sync.hub.rollout_record import Rollout
from edge_sync.store.schema import devices

WHO = "edge-hub demo"
TILLS = (("till-1", "lab", 0), ("till-2", "shops", 0), ("till-3", "shops", 30))
"""Name, group, and megabytes for models; 0 for no limit."""

MODEL, LONG_CONTEXT = "actions-q8_0", 4_096
FIRST = "tasks: {spam: {routing: {keep_above: 0.8}}}"
SECOND = "models: {%s: {digest: %s}}\n" + FIRST
TERMS = {
    "soak_s": 3.0,
    "grace_s": 3.0,
    "deadline_s": 60.0,
    "refusals": 1.0,
    "least_tasks": 20.0,
    "error_floor": 0.3,
    "correction_floor": 0.3,
}
_PATIENCE_S = 50.0
_LOOK_S = 0.2
_SERVE = "from edge_sync.cli.demo import run_hub; run_hub(*__import__('sys').argv[1:])"
_DEVICE = "from edge_sync.cli.demo import run_device; run_device(*__import__('sys').argv[1:])"


def demo() -> None:
    """Show a rollout that stops itself, in under a minute."""
    with tempfile.TemporaryDirectory(prefix="edge-hub-demo-") as folder, ExitStack() as stack:
        story = _Story()
        try:
            passed = _play(Path(folder), stack, story)
        finally:
            story.end()
    raise typer.Exit(0 if passed else 1)


@dataclass
class _Story:
    """What is told, each line with its second."""

    begun: float = field(default_factory=time.monotonic)

    def tell(self, mark: str, text: str) -> None:
        at = time.monotonic() - self.begun
        colour = {"✓": "green", "✗": "red", "→": "cyan", "!": "yellow"}.get(mark, "white")
        show.console.print(
            f"[dim]{at:5.1f} s[/dim]  [{colour}]{mark}[/{colour}]  {escape(text)}",
            highlight=False,
            soft_wrap=True,
        )

    def title(self, text: str) -> None:
        show.console.print(f"\n[bold]{escape(text)}[/bold]", highlight=False)

    def end(self) -> None:
        show.console.print()


def _play(folder: Path, stack: ExitStack, story: _Story) -> bool:
    story.title("A hub and three tills")
    hub = stack.enter_context(_hub(folder / "hub"))
    first = _publish(hub, FIRST, "Keep spam verdicts from 0.8 on", at_once=True)
    stack.enter_context(_process(_SERVE, str(hub.home), log=folder / "hub.log"))
    _until(lambda: _answers(hub), "the hub did not start", folder / "hub.log")
    story.tell("✓", f"hub at {hub.url}, policy {first} signed for the groups lab and shops")
    for name, group, memory_mb in TILLS:
        code = enrolment.make_code(hub, group=group, uses=1, expires_s=600.0, who=WHO)
        arguments = (hub.url, code.text, str(folder / name), name, str(memory_mb))
        stack.enter_context(_process(_DEVICE, *arguments, log=folder / f"{name}.log"))
    seen = _Watch(hub, story)
    seen.until(lambda tills: len(tills) == len(TILLS) and _all_run(tills, first))
    second = _second(hub, story)
    story.title("A rollout in two waves: lab first, then everybody")
    rollout = rollouts.start(hub, second, who=WHO, waves="lab,100", terms=TERMS)
    seen.until(lambda _: seen.rollout(rollout.id).state != "running")
    story.title("And back")
    ended = seen.rollout(rollout.id)
    if ended.restores is not None:
        back = ended.restores
        seen.until(lambda tills: _all_run(tills, back))
    return _told(hub, story, ended, first=first, seen=seen)


def _second(hub: Hub, story: _Story) -> int:
    """Publish a model for long commands and the policy that assigns it; return its revision."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / MODEL
        shutil.copytree(models_folder() / MODEL, source)
        manifest = json.loads((source / MANIFEST).read_bytes())
        shape = manifest["architecture"] | {"context": LONG_CONTEXT}
        longer = manifest | {"context": LONG_CONTEXT, "architecture": shape}
        (source / MANIFEST).write_text(json.dumps(longer))
        made = models.add(hub, source, who=WHO)
    revision = _publish(hub, SECOND % (MODEL, made.digest), "Long commands")
    story.tell(
        "✓",
        f"policy {revision} published: {MODEL} for {LONG_CONTEXT} tokens "
        f"({show.size(made.bytes)}, {made.digest[:12]}…)",
    )
    return revision


class _Watch:
    """Follows the hub's tables and tells what changes."""

    def __init__(self, hub: Hub, story: _Story) -> None:
        self._hub = hub
        self._story = story
        self._before: dict[str, tuple[int, str]] = {}
        self._state = ""
        self.ran: dict[str, list[int]] = {}

    def until(self, done: Callable[[dict[str, Mapping[str, Any]]], bool]) -> None:
        """Tell what happens until something is true, or patience ends."""
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            tills = _tills(self._hub)
            self._tell(tills)
            if done(tills):
                return
            time.sleep(_LOOK_S)
        self._story.tell("✗", "that did not happen in time")

    def rollout(self, number: int) -> Rollout:
        """Return a rollout as it is now, and tell what has changed."""
        found = rollouts.get(self._hub, number)
        state = f"{found.state} {found.wave}"
        if state != self._state:
            self._state = state
            mark = {"running": "→", "halted": "!"}.get(found.state, "→")
            what = f"wave {found.wave + 1} of {len(found.waves)}"
            told = f"{what} is {found.state}: {found.reason}" if found.reason else what
            self._story.tell(mark, told)
        return found

    def _tell(self, tills: Mapping[str, Mapping[str, Any]]) -> None:
        for name, till in tills.items():
            refused = json.loads(till["refused"])
            now = (till["revision"], refused.get("reason", ""))
            before = self._before.get(name, (0, ""))
            self._before[name] = now
            if now[0] != before[0]:
                self.ran.setdefault(name, []).append(now[0])
                self._story.tell("✓", f"{name} ({till['group_name']}) runs policy {now[0]}")
            if now[1] and now[1] != before[1]:
                self._story.tell("!", f"{name} refuses policy {refused['revision']}: {now[1]}")


def _told(hub: Hub, story: _Story, ended: Rollout, *, first: int, seen: _Watch) -> bool:
    """Read back from the hub whether all of it happened, and tell."""
    tills = _tills(hub)
    back = ended.restores
    same = back is not None and (
        revisions.get(hub, back).source == revisions.get(hub, first).source
    )
    checks = {
        "the first wave took the new policy": ended.revision in seen.ran.get("till-1", []),
        "the rollout was halted in its second wave": (ended.state, ended.wave) == ("halted", 1),
        "because a device reported that it failed": "refused" in ended.reason,
        "the old content came back under a new number": same,
        "all three devices run it": back is not None and _all_run(tills, back),
        "the audit log is whole": audit.verify(hub.store) is None,
    }
    for what, held in checks.items():
        story.tell("✓" if held else "✗", what)
    return all(checks.values())


@contextmanager
def _hub(home: Path) -> Iterator[Hub]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    with Hub.create(home, listen=listen) as made:
        for group in ("lab", "shops"):
            fleet.add_group(made, group, who=WHO)
    path = home / CONFIG
    settings = yaml.safe_load(path.read_text()) | {"sync_every_s": 1}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    with Hub.open(home) as hub:
        yield hub


def _publish(hub: Hub, text: str, message: str, *, at_once: bool = False) -> int:
    checked = policies.check(hub, text.encode(), what="The demo's policy")
    groups = ["lab", "shops"] if at_once else []
    return policies.publish(hub, checked, message=message, who=WHO, at_once=groups).revision


def _tills(hub: Hub) -> dict[str, Mapping[str, Any]]:
    """Return the devices that the hub knows, by name."""
    with hub.store.reading() as connection:
        rows = connection.execute(select(devices).order_by(devices.c.name)).mappings()
        return {row["name"]: dict(row) for row in rows}


def _all_run(tills: Mapping[str, Mapping[str, Any]], revision: int) -> bool:
    return bool(tills) and all(till["revision"] == revision for till in tills.values())


def _answers(hub: Hub) -> bool:
    try:
        return httpx.get(f"{hub.url}/readyz", timeout=5.0).is_success
    except httpx.HTTPError:
        return False


def _until(what: Callable[[], bool], problem: str, log: Path) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not what():
        if time.monotonic() > end:
            raise StoreError(f"In the demo {problem}: {log.read_text()[-500:]}", hint="Try again.")
        time.sleep(_LOOK_S)


@contextmanager
def _process(code: str, *arguments: str, log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603 - this very Python, and code from here
            [sys.executable, "-c", code, *arguments], stdout=out, stderr=out
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_hub(home: str) -> None:
    """Serve the demo's hub; runs in a process of its own."""
    from edge_sync.server.serve import serve

    with Hub.open(Path(home)) as hub:
        serve(hub)


def run_device(url: str, code: str, state: str, name: str, memory_mb: str) -> None:
    """Be one till: an app that answers tasks, and its agent; runs in a process of its own."""
    import edge
    from edge_sync.agent.start import start

    limit = float(memory_mb) or None
    with edge.open("kiosk", state=state, offline=True, threads=1, memory_mb=limit) as runtime:
        agent = start(runtime, url, code=code, name=name, pack="kiosk", env={})
        try:
            while not agent.status.ended:
                for task in ("spam", "support_intent", "action"):
                    runtime.run(task, runtime.tasks()[task].spec.samples[0])
                    time.sleep(0.1)
        finally:
            agent.close()
