"""Holds as values: what the ledger keeps of one request, and the errors about it.

Pure; money in integer micro-dollars. Knows no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from edge.errors import InputError, StoreError

HoldState: TypeAlias = Literal["reserved", "sent", "settled", "unclear", "released"]

MOST_MICROUSD = 10**15
COLUMNS = (
    "id, trace_id, task, pool, state, worst_case_microusd, cost_microusd, "
    "tokens_in, tokens_out, why, reserved_at, lease_id"
)
"""In the order of the fields of ``Hold``."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Money set aside for one request, as it was when read.

    Attributes:
        worst_case_microusd: what was set aside.
        cost_microusd: what it came to; 0 until settled.
        why: the reason of a release or an unclear outcome.
        reserved_at: seconds since the epoch; decides the period the money counts in.
        lease_id: the lease that pays; empty where the device's own cap alone does.

    """

    id: str
    trace_id: str
    task: str
    pool: str
    state: HoldState
    worst_case_microusd: int
    cost_microusd: int
    tokens_in: int
    tokens_out: int
    why: str
    reserved_at: float
    lease_id: str


def check_money(name: str, value: int) -> None:
    """Make sure that an amount is one.

    Raises:
        InputError: it is no whole number in range.

    """
    if type(value) is not int or not 0 <= value <= MOST_MICROUSD:
        raise InputError(f"{name} is {value!r} but must be an integer from 0 to {MOST_MICROUSD}.")


def usd(microusd: int) -> str:
    """Return an amount in dollars, exact."""
    dollars, rest = divmod(microusd, 1_000_000)
    return f"${dollars}.{rest:06d}"


def unknown(hold_id: str) -> StoreError:
    """Return the error about a hold that is not there."""
    return StoreError(f"Hold {hold_id} does not exist.", hint="List the holds and name one.")


def wrong_state(hold_id: str, state: str, wanted: str) -> StoreError:
    """Return the error about a step that a hold's state does not allow."""
    return StoreError(
        f"Hold {hold_id} is {state} and cannot become {wanted}.",
        hint="Nothing was changed; reserve again, or resolve an unclear hold.",
    )


def wrong_cost(hold_id: str, recorded: int, told: int) -> StoreError:
    """Return the error about a second cost of a settled hold."""
    return StoreError(
        f"Hold {hold_id} is settled at {usd(recorded)}, not {usd(told)}.",
        hint="Nothing was changed; compare with the provider's bill.",
    )
