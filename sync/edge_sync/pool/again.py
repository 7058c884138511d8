"""Asks another replica where one died, so that a call outlives its replica.

Ray Serve itself routes a call anew only while no replica has taken it; where a replica dies with a
call, the caller gets an error. A pool may ask again without doubt: computing twice is billed by
nobody.

Guarantees: an answer is told once, whole, and by one replica's usage. Of a stream whose replica
died, the part that went out stands: another replica computes the answer again with the same seed,
and only what comes after that part is told. Where it comes out otherwise, the stream fails and says
so; nothing is patched together.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from edge_sync.pool.asked import Asked, End, Event, Failed, Text

ATTEMPTS = 3
"""Replicas that one call may cost; a request that kills whoever computes it ends here."""


class ReplicaLost(Exception):  # noqa: N818 - says what it is
    """The replica died, or could not be reached, before the end of its answer."""


Ask = Callable[[Asked], AsyncIterator[Iterable[Event]]]
"""Asks some replica.

Raises:
    ReplicaLost: it died.

"""


@dataclass(slots=True)
class Caller:
    """Asks until a replica has answered.

    Attributes:
        ask: asks some replica.
        lost: told of each replica that died with a call.

    """

    ask: Ask
    lost: Callable[[], None]

    async def answer(self, asked: Asked) -> AsyncGenerator[Event]:
        """Yield the events of one answer; the last one is ``End`` or ``Failed``."""
        told = ""
        for _ in range(ATTEMPTS):
            seen = ""
            try:
                async for events in self.ask(asked):
                    for event in events:
                        if isinstance(event, Text):
                            seen += event.text
                        ended = isinstance(event, End)
                        new = "" if isinstance(event, Failed) else _beyond(told, seen, ended=ended)
                        if new is None:
                            yield _differs()
                            return
                        if new:
                            told = seen
                            yield Text(new)
                        if not isinstance(event, Text):
                            yield event
                            return
            except ReplicaLost:
                self.lost()
        yield Failed(503, "unavailable", f"{ATTEMPTS} replicas in turn died with this call.")


def _beyond(told: str, seen: str, *, ended: bool) -> str | None:
    """Return what is new in ``seen``; ``None`` where it is not what was told."""
    if len(seen) < len(told):
        return None if ended or not told.startswith(seen) else ""
    return seen[len(told) :] if seen.startswith(told) else None


def _differs() -> Failed:
    return Failed(
        502, "differs", "A replica died, and another one's answer begins otherwise. Ask again."
    )
