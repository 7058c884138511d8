"""A device process: a runtime, its fleet agent, and threads that ask and drain until told to end.

    python _chaos_device.py PACK STATE HUB_URLS THREADS

Commands on stdin, one a line, each answered with one line of JSON: ``rest`` (ask no more, go on
draining) and ``told`` (how things stand).
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import edge
from edge.errors import EdgeError
from edge_sync.agent.start import start

PAUSE_S = 4.5


class Work:
    """What the threads share."""

    def __init__(self, runtime: edge.Runtime) -> None:
        self.runtime = runtime
        self.resting = threading.Event()
        self.ended = threading.Event()

    def ask(self, seed: int) -> None:
        """Ask until it is time to rest."""
        rng = random.Random(seed)  # noqa: S311 - no secret
        while not self.resting.is_set():
            text = f"please confirm order {rng.getrandbits(64):x} {'very ' * rng.randrange(8)}soon"
            with suppress(EdgeError):  # the books are compared in the end
                self.runtime.run("reply", text)
            time.sleep(PAUSE_S * (0.5 + rng.random()))

    def drain(self) -> None:
        """Drain until the end."""
        while not self.ended.is_set():
            with suppress(EdgeError):
                self.runtime.drain(limit=50)
            time.sleep(0.3)


def main(pack: str, state: str, hubs: str, threads: str) -> None:
    """Run until stdin says so, or ends."""
    with edge.open(pack, state=Path(state)) as runtime:
        agent = start(runtime, hubs, pack="field")
        work = Work(runtime)
        asking = [
            threading.Thread(target=work.ask, args=(random.getrandbits(62),), daemon=True)
            for _ in range(int(threads))
        ]
        draining = threading.Thread(target=work.drain, daemon=True)
        for thread in [*asking, draining]:
            thread.start()
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            command = line.strip()
            if command == "rest":
                work.resting.set()
            told = {
                "queue": runtime.book.queue.counts(),
                "syncs": agent.status.syncs,
                "asking": sum(thread.is_alive() for thread in asking),
            }
            print(json.dumps(told), flush=True)
        work.resting.set()
        work.ended.set()
        draining.join(30)
        agent.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
