"""Prices in whole micro-dollars, and the bound that a reservation rests on."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.cloud.chat import Message, request_body, response_format
from edge.cloud.pricing import TEMPLATE_TOKENS, cost_microusd, most_tokens_in, worst_case_microusd
from edge.task import Price

SCHEMA = {"type": "object", "properties": {"größe": {"type": "string"}}}


def price(dollars_in, dollars_out):
    return Price(input_usd_per_mtok=dollars_in, output_usd_per_mtok=dollars_out)


@pytest.mark.parametrize(
    ("dollars_in", "dollars_out", "tokens_in", "tokens_out", "cost"),
    [
        ("0", "0", 10**9, 10**9, 0),
        ("1", "2", 0, 0, 0),
        ("1", "2", 10, 3, 16),
        ("0.15", "0.60", 1, 0, 1),
        ("0.15", "0.60", 100, 10, 21),
        ("0.15", "0.60", 100, 11, 22),
        ("0.000001", "0", 1, 0, 1),
        ("0.000001", "0", 1_000_000, 0, 1),
        ("0.000001", "0", 1_000_001, 0, 2),
        ("0.1", "0.2", 1, 1, 1),
        ("999999999.999999", "999999999.999999", 10**9, 0, 999_999_999_999_999_000),
    ],
)
def test_a_cost_is_exact_and_rounded_up(dollars_in, dollars_out, tokens_in, tokens_out, cost):
    found = cost_microusd(price(dollars_in, dollars_out), tokens_in, tokens_out)
    assert found == cost
    assert type(found) is int


@pytest.mark.parametrize(
    ("texts", "schema", "most"),
    [
        ([""], None, 2 * TEMPLATE_TOKENS),
        (["hello"], None, 5 + 2 * TEMPLATE_TOKENS),
        (["hello", "you"], None, 8 + 3 * TEMPLATE_TOKENS),
        (["größe"], None, 7 + 2 * TEMPLATE_TOKENS),
        (["日本", "👍"], None, 10 + 3 * TEMPLATE_TOKENS),
        (["a\ud800b"], None, 3 + 2 * TEMPLATE_TOKENS),
        (["x"], SCHEMA, 1 + len(json.dumps(response_format(SCHEMA))) + 2 * TEMPLATE_TOKENS),
    ],
)
def test_the_most_tokens_are_the_bytes_and_the_templates(texts, schema, most):
    messages = [Message("user", text) for text in texts]
    assert most_tokens_in(messages, response_schema=schema) == most


@given(text=st.text(st.characters(exclude_categories=["Cs"])), out=st.integers(1, 10_000))
def test_the_worst_case_covers_every_token_that_the_text_could_become(text, out):
    messages = [Message("system", "Say it."), Message("user", text)]
    worst = worst_case_microusd(price("3", "15"), messages, out, response_schema=SCHEMA)
    text_bytes = len(text.encode()) + len(json.dumps(SCHEMA, ensure_ascii=False).encode())
    assert worst >= cost_microusd(price("3", "15"), text_bytes, out)
    assert request_body("m", messages, max_tokens=out, temperature=0.0, response_schema=SCHEMA)


def test_a_price_is_read_as_it_is_written():
    assert price("0.15", "0.6").input_usd_per_mtok == Decimal("0.15")
