"""Requests that the hub refuses, and how many of them the audit log is told of.

A refusal has one of the stable codes of the wire. Knows nothing of HTTP and of tables.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from edge.errors import EdgeError
from edge_sync.wire import Failure

WINDOW_S = 60.0
NOTED = 10
"""Entries of one kind in the audit log per window; the next one says how many were left out."""


class Refused(EdgeError):  # noqa: N818 - the root of the tree names its leaves so
    """A request is refused.

    Attributes:
        code: one of the wire's.
        what: the kind of the audit entry; empty where the log need not know.
        about: the device, as far as it is known.
        retry_after_s: when to come back; ``None`` where coming back does not help.

    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str,
        what: str = "",
        about: str = "",
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.what = what
        self.about = about
        self.retry_after_s = retry_after_s

    @property
    def failure(self) -> Failure:
        """What the device is told."""
        return Failure(code=self.code, message=self.message, hint=self.hint)


@dataclass
class Noted:
    """Bounds the entries about refusals, so that a flood of bad requests does not fill the log."""

    _begun: dict[str, tuple[float, int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, what: str, *, now: float) -> dict[str, Any] | None:
        """Return what to add to the entry; ``None`` where there are enough of this kind.

        Args:
            what: kind of the entry; one of few.
            now: seconds that never step back.

        """
        with self._lock:
            begun, count = self._begun.get(what, (now, 0))
            left_out = 0
            if now - begun >= WINDOW_S:
                left_out = max(0, count - NOTED)
                begun, count = now, 0
            self._begun[what] = (begun, count + 1)
        if count >= NOTED:
            return None
        return {"left_out_before": left_out} if left_out else {}
