"""What a gateway says, as values that add up in themselves.

Strict: a field that is missing, of another type or out of range, or two that contradict each other,
is no answer. Fields that are not known here are passed over. Knows no network and no tables; the
other side is ``edge_sync.gateway.admin``.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge_sync.money.lease import MOST_MICROUSD

MOST_TEXT = 200
_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_Money = Annotated[int, Field(ge=0, le=MOST_MICROUSD)]
_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Time = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Answer(BaseModel):
    """What all answers share."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class Standing(Answer):
    """How a lease stands at its gateway; money in micro-dollars.

    Attributes:
        amount_microusd: as it was signed; 0 where it was sealed before it was seen.
        used_microusd: redeemed and held.
        open: holds that are not closed.
        final: it takes no holds any more and none is open.

    """

    lease_id: _Id
    device_id: Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")]
    scope: Annotated[str, Field(max_length=200)]
    period: Annotated[str, Field(max_length=24)]
    epoch: _Money
    amount_microusd: _Money
    held_microusd: _Money
    redeemed_microusd: _Money
    used_microusd: _Money
    open: _Count
    sealed: bool
    final: bool

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.used_microusd != self.held_microusd + self.redeemed_microusd:
            raise ValueError("used is not redeemed and held")
        if self.used_microusd > self.amount_microusd:
            raise ValueError("more was used than granted")
        if self.open == 0 and self.held_microusd:
            raise ValueError("something is held by no hold")
        if self.final != (self.sealed and self.open == 0):
            raise ValueError("it is final while holds are open, or the other way round")
        return self


class Totals(Answer):
    """A gateway's whole register; money in micro-dollars."""

    held_microusd: _Count
    redeemed_microusd: _Count
    adjusted_microusd: _Count
    open: _Count
    unclear: _Count
    leases: _Count


class State(Answer):
    """A page of a gateway's leases by id.

    Attributes:
        epoch: in force; ``None`` where it was never told one.
        totals: ``None`` where they were not asked for.
        revoked: devices that it refuses, by id; ``None`` where they were not asked for, and from a
            gateway of an older version.

    """

    pool: str
    epoch: _Money | None
    totals: Totals | None
    leases: list[Standing]
    revoked: list[_Id] | None = None


class Row(Answer):
    """A hold.

    Attributes:
        seq: of its last change; rises with each change of any.
        most: held for it.
        actual: what it came to, once closed.

    """

    seq: Annotated[int, Field(gt=0, lt=2**53)]
    hold_id: _Id
    lease_id: _Id
    state: Literal["held", "unclear", "settled", "released"]
    most: _Money
    actual: _Money | None
    begun_at: _Time
    ended_at: _Time | None

    @property
    def held_microusd(self) -> int:
        """What it may still cost."""
        return self.most if self.state in {"held", "unclear"} else 0

    @property
    def cost_microusd(self) -> int:
        """What it has cost."""
        return (self.actual or 0) if self.state == "settled" else 0

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.state == "settled" and self.actual is None:
            raise ValueError("a settled hold has no cost")
        if (self.actual or 0) > self.most:
            raise ValueError("a hold cost more than was held")
        return self


class Sealed(Answer):
    """How leases stand that were to be sealed."""

    leases: list[Standing]


class Fenced(Answer):
    """The epoch in force, which may be higher than the one told."""

    epoch: _Money


class Told(Answer):
    """Devices that are refused from now on."""

    devices: list[str]
    revoked: bool


class Rows(Answer):
    """Holds by their last change."""

    rows: list[Row]


class Reconciled(Answer):
    """What a hold was booked at; ``excess`` is what was billed above it."""

    actual_microusd: _Money
    excess_microusd: _Count


class Said(Answer):
    """Why a gateway says no."""

    code: str
    message: str
    hint: Annotated[str, Field(max_length=MOST_TEXT)]
