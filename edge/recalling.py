"""Asking a gateway again what became of a request whose outcome is unclear.

The gateway knows the request by its idempotency key: it gives the first answer, or says what was
billed, and never bills twice. Guarantees: the hold is settled at what the gateway says, or stays as
it is; it comes to nothing only where the gateway can never bill it any more. Reads no answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.errors import AnswerLost, CloudError, ConfigError, LeaseRefused
from edge.store.ledger import Hold, Ledger

if TYPE_CHECKING:
    from edge.cloud.pool import CloudAnswer, Pool


@dataclass(frozen=True, slots=True)
class Recalled:
    """What a gateway said of a request.

    Attributes:
        answer: whole, and not settled yet; ``None`` without one.
        settled: the hold has its outcome, without an answer.
        cost_microusd: what that was.
        error: why it is still unclear, or why there is no answer.

    """

    answer: CloudAnswer | None = None
    settled: bool = False
    cost_microusd: int = 0
    error: str = ""


def recall(ledger: Ledger, pool: Pool, hold: Hold) -> Recalled:
    """Ask about a hold; see ``Pool.recall``.

    Args:
        ledger: that holds it.
        pool: that was asked, a gateway.
        hold: unclear, with its request kept.

    Raises:
        StoreError: the ledger cannot be read or written.

    """
    from edge.cloud.gateway import ENDED
    from edge.cloud.pool import Right

    body = ledger.request(hold.id)
    if body is None or not pool.spec.gateway:
        return Recalled(error=f"pool {hold.pool} cannot be asked again")
    try:
        right = Right(hold.lease_id, ledger.lease_text(hold))
        answer = pool.recall(body, idempotency_key=hold.id, right=right)
    except AnswerLost as error:
        ledger.settle(hold, error.cost_microusd, tokens_in=0, tokens_out=0)
        return Recalled(settled=True, cost_microusd=error.cost_microusd, error=error.message)
    except LeaseRefused as error:
        if error.code not in ENDED:
            return Recalled(error=error.message)
        ledger.settle(hold, 0, tokens_in=0, tokens_out=0, end_lease=error.code)
        return Recalled(settled=True, error=error.message)
    except (CloudError, ConfigError) as error:
        return Recalled(error=error.message)
    return Recalled(answer)
