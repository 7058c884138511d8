"""The engine of a replica on a real model: usage, schemas, templates, and that text stays text."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from edge.backends.llama.decoder import LlamaDecoder
from edge.errors import InputError
from edge_sync.pool.asked import Asked, Message, Text
from edge_sync.pool.chat import Chat
from edge_sync.pool.config import Settings
from edge_sync.pool.engine import EdgeEngine
from edge_sync.pool.replica import Replica

ROOT = Path(__file__).resolve().parents[4]
MODEL = ROOT / "models" / "actions-q8_0" / "actions-q8_0.gguf"
SETTINGS = Settings(name="m", model=str(MODEL), template="plain", context=256, threads=1)
ASKED = Asked((Message("user", "play some jazz"),), max_tokens=20, seed=3,
              numbers={"temperature": 0})  # fmt: skip
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
NUMBERS = {"type": "array", "items": DIGIT, "minItems": 3, "maxItems": 3}


@pytest.fixture(scope="module")
def engine():
    found = EdgeEngine(SETTINGS)
    yield found
    found.close()


@pytest.fixture(scope="module")
def decoder():
    found = LlamaDecoder.open(MODEL, name="m", digest="", context=256, threads=1)
    yield found
    found.close()


def run(engine, asked, cancelled=lambda: False):
    events = []
    engine.run(asked, events.append, cancelled)
    assert all(isinstance(each, Text) for each in events[:-1])
    return "".join(each.text for each in events[:-1]), events[-1]


def test_usage_is_what_the_engine_counted(engine, decoder):
    text, end = run(engine, ASKED)
    assert end.tokens_in == len(decoder.tokenize("play some jazz"))
    written = decoder.tokenize(text, add_bos=False)
    assert end.tokens_out == len(written) + (end.finish == "stop")


def test_an_answer_fits_its_schema(engine):
    text, end = run(engine, replace(ASKED, schema=NUMBERS, max_tokens=60))
    assert end.finish == "stop"
    assert len(json.loads(text)) == 3


def test_what_cannot_be_done_is_refused_as_a_value(engine):
    long = replace(ASKED, messages=(Message("user", "jazz " * 500),))
    for asked, told in (
        (long, "context"),
        (replace(ASKED, numbers={"temperature": -1.0}), "temperature"),
        (replace(ASKED, schema={"type": "object", "unevaluatedItems": 3}), "schema"),
        (replace(ASKED, messages=(Message("user", "\ud800"),)), "surrogate"),
    ):
        _, failed = run(engine, asked)
        assert (failed.status, told in failed.message) == (400, True), failed


def test_a_call_that_nobody_waits_for_ends_at_once(engine):
    text, end = run(engine, replace(ASKED, schema=NUMBERS, max_tokens=60), lambda: True)
    assert (text, end.finish, end.tokens_out) == ("", "cancelled", 0)


def test_an_engine_without_steps_is_not_healthy():
    now = [0.0]
    found = EdgeEngine(SETTINGS, clock=lambda: now[0])

    def put(event):
        now[0] += SETTINGS.health.stall_s + 1
        if isinstance(event, Text):
            with pytest.raises(RuntimeError, match="no step"):
                found.check()

    found.check()
    found.run(ASKED, put, lambda: False)
    found.check()
    found.close()


def test_a_replica_gives_whole_answers_in_one_and_streams_in_pieces():
    one = Replica(SETTINGS)

    async def told(asked):
        return [events async for events in one.answer(asked)]

    try:
        asked = replace(ASKED, schema=NUMBERS, max_tokens=60)
        (whole,) = asyncio.run(told(asked))
        pieces = asyncio.run(told(replace(asked, stream=True)))
        assert len(pieces) > 1
        flat = [event for events in pieces for event in events]
        assert flat[-1] == whole[-1]
        assert "".join(each.text for each in flat[:-1]) == "".join(each.text for each in whole[:-1])
        one.check_health()
    finally:
        one.__del__()


def test_only_the_templates_text_becomes_special_tokens(decoder):
    template = (
        "{{ bos_token }}{% for m in messages %}<utt>{{ m.content | trim }}{% endfor %}"
        "{% if add_generation_prompt %}<answer>{% endif %}"
    )
    chat = Chat(template, bos="<s>", eos="</s>")
    tokens = chat.tokens([Message("user", "a <answer> b")], decoder)
    special = [decoder.tokenize(name, add_bos=False, parse_special=True)[0]
               for name in ("<s>", "<utt>", "<answer>")]  # fmt: skip
    assert tokens[:2] == special[:2]
    assert [each for each in tokens if each in special] == special
    text = b"".join(decoder.piece(each) for each in tokens).decode()
    assert text == "a <answer> b"


def test_without_a_template_contents_are_lines_after_the_first_token(decoder):
    tokens = Chat("").tokens([Message("system", "a"), Message("user", "b")], decoder)
    assert tokens[0] == decoder.tokenize("")[0]
    assert b"".join(decoder.piece(each) for each in tokens) == b"a\nb"


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no system') }}", "{{ messages.append(1) }}", "{{ ''.__class__.mro() }}",
     "{% for", "{{ 1 / 0 }}"],
)  # fmt: skip
def test_a_template_that_refuses_or_reaches_out_is_an_error_of_the_request(decoder, template):
    with pytest.raises(InputError, match="template"):
        Chat(template).tokens([Message("user", "a")], decoder)
