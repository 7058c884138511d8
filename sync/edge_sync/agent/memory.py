"""What the agent remembers between rounds and restarts: a value, and its JSON.

Lives in the policy file beside the policy, so that it moves, is copied and is set back with it; a
nonce that a copy used up gives the copy away. Knows nothing of files and sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.errors import StoreError
from edge_sync.wire import Refusal

MAX_REFUSALS = 20
"""As many as one report can tell of; the oldest go first."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Batch(_Part):
    """Rows that the hub took, but that may not be in a backup of the hub yet.

    Attributes:
        receipt: the number under which it took them.
        low: all of these rows come after this one.

    """

    receipt: int
    low: int


class Rows(_Part):
    """How far the ledger was sent.

    Attributes:
        seq: all holds up to this one were sent at least once.
        open: state in which holds without an outcome were sent, by row id.
        batches: the oldest first.

    """

    seq: int = 0
    open: dict[str, str] = {}
    batches: tuple[Batch, ...] = ()


class Counted(_Part):
    """How far traces and corrections were counted."""

    traces: int = 0
    labels: int = 0


class Pending(_Part):
    """A report that is on its way: it is sent again as it is until it is answered.

    Attributes:
        body: before it was packed and signed.
        told: see ``Memory``.
        refusals: how many of them it tells of.
        rows: to go on with once it is answered.
        counted: likewise.
        low: see ``Batch``; ``None`` where it holds no rows.

    """

    request_id: str
    body: str
    told: str
    refusals: int
    rows: Rows
    counted: Counted
    low: int | None = None


class Turned(_Part):
    """The assignment that this device refused; it is not tried again by the same runtime.

    Attributes:
        runtime: version and pack that refused it.

    """

    serial: int
    revision: int
    runtime: str


class Memory(_Part):
    """All of it.

    Attributes:
        fleet: sha256 of the first root; what the enrolment code ends with.
        clock: see ``trust.clock.Clock``.
        told: the state that the hub knows of, so that a change is reported at once.
        refusals: not reported yet.

    """

    fleet: str = ""
    device_id: str = ""
    group: str = ""
    incarnation: int = 0
    nonce: str = ""
    token: str = ""
    receipt: int = 0
    watermark: int = 0
    epoch: int = 0
    clock: dict[str, float] = {}
    next_sync_s: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    quarantined: bool = False
    counted: Counted = Counted()
    rows: Rows = Rows()
    pending: Pending | None = None
    turned: Turned | None = None
    refusals: tuple[Refusal, ...] = Field(default=(), max_length=MAX_REFUSALS)
    told: str = ""

    @property
    def enrolled(self) -> bool:
        """Whether the device has joined a fleet."""
        return bool(self.device_id)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """Read what ``json`` gave.

        Raises:
            StoreError: it is something else.

        """
        try:
            return cls.model_validate(state)
        except ValidationError as error:
            place = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise StoreError(
                f"The state of the fleet's agent is damaged at {place}.",
                hint="Move policy.db away and enrol again.",
            ) from error

    def json(self) -> dict[str, Any]:  # type: ignore[override]
        """Return it as a JSON object."""
        return self.model_dump(mode="json")

    def but(self, **changes: Any) -> Self:
        """Return it with other values."""
        return self.model_copy(update=changes)
