"""How careful the hub is with money: the part ``money`` of ``hub.yaml``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from edge_sync.money import grants
from edge_sync.money.lease import MOST_MICROUSD

_DAY_S = 86_400


class MoneyTerms(BaseModel):
    """What stands there; see docs/budgets.md.

    Attributes:
        parts: one lease takes at most one part in so many of what is free.
        least_microusd: a smaller lease is of no use; what one call may cost at most.
        floor_microusd: kept back for each device that wanted money and is away.
        lease_days: the longest that a lease lasts; it also ends with its period.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: int = Field(default=8, ge=1, le=1_000_000)
    least_microusd: int = Field(default=10_000, ge=1, le=MOST_MICROUSD)
    floor_microusd: int = Field(default=0, ge=0, le=MOST_MICROUSD)
    lease_days: float = Field(default=7, gt=0, le=366)

    @property
    def grants(self) -> grants.Terms:
        """As the rules of granting take it."""
        return grants.Terms(self.parts, self.least_microusd, self.floor_microusd)

    @property
    def lease_s(self) -> float:
        """The longest that a lease lasts."""
        return self.lease_days * _DAY_S
