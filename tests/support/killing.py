"""Kills real processes at every step of a script, opens what they left, and goes on.

A scenario opens something durable and has calls that may be repeated. A process dies of SIGKILL
before its n-th step, or after a call that is over and before it says so; the next one dies while it
opens what was left; a third finds what all calls that were told have done, and perhaps the next
one, whole, and repeats the rest. Each is a fork of this process, which has one thread and nothing
open. A step is a statement of SQL (``Statements``) or a write to the disk (``Disk``).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from killing_ways import WAYS, Statements, Way

Say: TypeAlias = Callable[[Any], None]
DIED = -signal.SIGKILL


class Scenario:
    """What is opened, and what is done with it; a subclass says so.

    Attributes:
        parted: each call is a script of its own, on what the calls before left: quicker, where a
            new opening changes nothing.

    """

    name = ""
    parted = False

    def prepare(self, folder: Path) -> None:
        """Make what is there before the script begins."""

    def open(self, folder: Path) -> Any:
        """Open it."""
        raise NotImplementedError

    def calls(self, subject: Any) -> list[Callable[[], object]]:
        """Return the script; a call that is repeated after a death must lead to the same end."""
        raise NotImplementedError

    def seen(self, subject: Any) -> Any:
        """Return all that must be durable, as JSON would give it back."""
        raise NotImplementedError

    def reopened(self, seen: Any) -> Any:
        """Return what the next opening makes of it."""
        return seen

    def ended(self, seen: Any) -> Any:
        """Return what of the end does not depend on where a process died."""
        return seen

    def between(self, found: Any, before: Any, after: Any) -> bool:
        """Return whether a death in a call can leave this: a call is whole or not at all."""
        return found in (before, after)

    def check(self, subject: Any) -> None:
        """Raise where an invariant does not hold."""

    def copied(self, template: Path, folder: Path) -> None:
        """Give a run its own copy of what ``prepare`` made."""
        shutil.copytree(template, folder)

    def removed(self, folder: Path) -> None:
        """Remove what a run left."""
        shutil.rmtree(folder)


class Part(Scenario):
    """One call of a scenario, on a folder where those before it are over."""

    def __init__(self, whole: Scenario, at: int) -> None:
        self._whole, self._at = whole, at
        self.name = f"{whole.name} {at}"
        self.open, self.seen, self.check = whole.open, whole.seen, whole.check
        self.reopened, self.ended, self.between = whole.reopened, whole.ended, whole.between
        self.copied, self.removed = whole.copied, whole.removed

    def calls(self, subject: Any) -> list[Callable[[], object]]:
        """Return the one call; none behind the last."""
        return self._whole.calls(subject)[self._at : self._at + 1]


@dataclass
class Told:
    """What a run of many deaths came to."""

    scenario: str
    steps: int = 0
    calls: int = 0
    deaths: int = 0
    second_deaths: int = 0
    wrong: list[str] = field(default_factory=list)


def in_child(work: Callable[[Say], None]) -> tuple[int, list[Any]]:
    """Run something in a fork; return its exit status, or minus its signal, and what it said."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            work(partial(_say, writer))
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it is, the parent is told
            _say(writer, {"error": traceback.format_exc()})
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = [json.loads(line) for line in stream if line.endswith(b"\n")]
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), said


def _say(writer: int, value: Any) -> None:
    os.write(writer, json.dumps(value).encode() + b"\n")


class Run:
    """A scenario, and what it looks like where nobody dies.

    Args:
        scenario: what is run.
        way: how its processes die.
        template: what it finds.
        folder: for the runs.

    """

    def __init__(self, scenario: Scenario, way: Way, template: Path, folder: Path) -> None:
        self.scenario, self.way = scenario, way
        self._template, self._folder = template, folder
        self._numbers = count()
        with self.fresh() as place:
            self.states = self._said(partial(self._watched, place))
        with self.fresh() as place:
            self.opening, self.steps = self._said(partial(self._counted, place))
        self.calls = len(self.states) - 1

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        """Yield a copy of what the scenario finds."""
        place = self._folder / f"run{next(self._numbers)}"
        self.scenario.copied(self._template, place)
        yield place
        self.scenario.removed(place)

    def dies(self, place: Path, *, step: int = 0, told: int = -1) -> int:
        """Let a process die before a step, or before it tells of a call; return what it told.

        Raises:
            RuntimeError: it ended otherwise.

        """
        work = partial(self._dying, place, step, told)
        status, said = in_child(work)
        if status != DIED:
            raise RuntimeError(f"It ended with {status} instead: {said[-1:]}.")
        return len(said)

    def dies_opening(self, place: Path, *, step: int) -> None:
        """Let a process die while it opens what another left; where it opens sooner, it is well."""
        in_child(partial(self._opening, place, step))

    def goes(self, place: Path) -> None:
        """Run the script once, to its end."""
        self._said(partial(self._watched, place))

    def found(self, place: Path, told: int) -> str:
        """Open what a dead process left, and go on; return what is wrong.

        Args:
            place: where it died.
            told: how often it said that something was over: the opening, and each call.

        """
        status, said = in_child(partial(self._resumed, place, max(0, told - 1)))
        if status != 0:
            return f"cannot go on: {said[-1:]}"
        was, end = said
        good = [self._reopened(at) for at in (max(0, told - 1), min(told, self.calls))]
        if not self.scenario.between(was, *good):
            return f"found {was}, not {good[0]} nor {good[1]}"
        wanted = self.scenario.ended(self.states[-1])
        return "" if self.scenario.ended(end) == wanted else f"ends as {end}, not as {wanted}"

    def _reopened(self, at: int) -> Any:
        return json.loads(json.dumps(self.scenario.reopened(self.states[at])))

    def _said(self, work: Callable[[Say], None]) -> list[Any]:
        status, said = in_child(work)
        if status != 0:
            raise RuntimeError(f"{self.scenario.name} does not run by itself: {said[-1]}")
        return said

    def _watched(self, place: Path, say: Say) -> None:
        subject = self.scenario.open(place)
        say(self.scenario.seen(subject))
        for call in self.scenario.calls(subject):
            call()
            self.scenario.check(subject)
            say(self.scenario.seen(subject))

    def _counted(self, place: Path, say: Say) -> None:
        way = self.way()
        way.watch(place)
        subject = self.scenario.open(place)
        say(way.done)
        for call in self.scenario.calls(subject):
            call()
        say(way.done)

    def _dying(self, place: Path, step: int, told: int, say: Say) -> None:
        way = self.way(step)
        way.watch(place)
        subject = self.scenario.open(place)
        for at, call in enumerate([lambda: None, *self.scenario.calls(subject)]):
            call()
            if at == told:
                way.die()
            say(at)

    def _opening(self, place: Path, step: int, _say: Say) -> None:
        way = self.way(step)
        way.watch(place)
        self.scenario.open(place)
        way.die()

    def _resumed(self, place: Path, done: int, say: Say) -> None:
        subject = self.scenario.open(place)
        self.scenario.check(subject)
        say(self.scenario.seen(subject))
        for call in self.scenario.calls(subject)[done:]:
            call()
            self.scenario.check(subject)
        say(self.scenario.seen(subject))


def killed_everywhere(
    scenario: Scenario, folder: Path, *, way: Way = Statements, stride: int = 1
) -> Told:
    """Kill a scenario before each step and after each call, and say what was wrong.

    Args:
        scenario: what is run.
        folder: empty.
        way: what a step is.
        stride: only every so many-th step; every call all the same.

    """
    template = folder / "template"
    template.mkdir()
    status, said = in_child(lambda _: scenario.prepare(template))
    if status:
        raise RuntimeError(f"{scenario.name} cannot be prepared: {said}")
    told = Told(scenario.name)
    if not scenario.parted:
        _kill(Run(scenario, way, template, folder), told, first=1, stride=stride)
        scenario.removed(template)
        return told
    at = 0
    while (run := Run(part := Part(scenario, at), way, template, folder)).calls:
        _kill(run, told, first=1 + run.opening * bool(at), stride=stride)
        at += 1
        old, template = template, folder / f"template{at}"
        part.copied(old, template)
        run.goes(template)
        part.removed(old)
    scenario.removed(template)
    return told


def _kill(run: Run, told: Told, *, first: int, stride: int) -> None:
    # A stride starts where the last one of another part ended, or short parts had few deaths.
    begin = first + -told.steps % stride
    points = [{"step": number} for number in range(begin, run.steps + 1, stride)]
    points += [{"told": number} for number in range(int(first > 1), run.calls + 1)]
    told.steps += run.steps + 1 - first
    told.calls += run.calls
    for number, point in enumerate(points):
        with run.fresh() as place:
            done = run.dies(place, **point)
            told.deaths += 1
            if run.opening:
                run.dies_opening(place, step=1 + number % run.opening)
                told.second_deaths += 1
            wrong = run.found(place, done)
        if wrong:
            told.wrong.append(f"{run.scenario.name} {point}: {wrong}"[:2_000])


def main(scenarios: dict[str, Callable[[], Scenario]]) -> None:
    """Run a scenario by name and print what it came to as JSON."""
    name, way, stride, base = sys.argv[1:]
    with TemporaryDirectory(dir=base) as folder:
        told = killed_everywhere(scenarios[name](), Path(folder), way=WAYS[way], stride=int(stride))
    sys.stdout.write(json.dumps(asdict(told)) + "\n")
