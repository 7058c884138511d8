"""What a call costs, in whole micro-dollars, always rounded up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any

from edge.cloud.chat import Message, response_format
from edge.task import Price

# A chat template wraps each message, and opens the answer, in a handful of tokens; 32 is more than
# any template in the wild is known to use.
TEMPLATE_TOKENS = 32


def cost_microusd(price: Price, tokens_in: int, tokens_out: int) -> int:
    """Return the price of a call; a dollar per million tokens is a micro-dollar per token."""
    exact = price.input_usd_per_mtok * tokens_in + price.output_usd_per_mtok * tokens_out
    return int(Decimal(exact).to_integral_value(ROUND_CEILING))


def most_tokens_in(
    messages: Sequence[Message], *, response_schema: dict[str, Any] | None = None
) -> int:
    """Return the most tokens a request can count as.

    A token of a byte-level vocabulary stands for at least one byte, so a text has at most as many
    tokens as UTF-8 bytes; a schema may be put into the prompt and is counted as well.
    """
    size = sum(len(message.content.encode("utf-8", "replace")) for message in messages)
    if response_schema is not None:
        size += len(json.dumps(response_format(response_schema)).encode())
    return size + TEMPLATE_TOKENS * (len(messages) + 1)


def worst_case_microusd(
    price: Price,
    messages: Sequence[Message],
    max_tokens: int,
    *,
    response_schema: dict[str, Any] | None = None,
) -> int:
    """Return the most a call can cost; ``max_tokens`` is the limit on the answer."""
    most = most_tokens_in(messages, response_schema=response_schema)
    return cost_microusd(price, most, max_tokens)
