"""Structured output with real models: the shipped one, a SentencePiece one, one in ONNX."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator

import edge
from edge.backends.generate import generate
from edge.backends.llama.decoder import LlamaDecoder
from edge.backends.onnx.decoder import OnnxDecoder, genai_tokens
from edge.backends.structure.constraint import constrain
from edge.backends.structure.grammars import Grammar
from edge.backends.structure.vocabulary import vocabulary_of
from edge.errors import ConfigError
from edge.store.weights import ModelStore
from edge.task import Prompt
from edge.types import SamplingParams

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
STORIES = SHARED / "models" / "stories260k" / "stories260K.gguf"
TINY = SHARED / "models" / "tiny_gpt2_onnx"
MODEL = "actions-q8_0"
STORE = ModelStore(ROOT / "models")
GREEDY = SamplingParams()

needs_model = pytest.mark.skipif(
    MODEL not in STORE.names(), reason=f"the model {MODEL} has not been built"
)

PACK = """
name: forms
version: 1
prompts:
  call: {version: 1, template: "<utt>{text_spaced}<again>{text_spaced}<answer>"}
  say: {version: 1, template: "<utt>{text_spaced}<again>{text_spaced}<draft>"}
tasks:
  action:
    kind: extract
    model: actions-q8_0
    prompt: call
    ground: true
    constrain: true
    output_schema: SCHEMA
  size:
    kind: generate
    model: actions-q8_0
    prompt: say
    grammar: {choices: [small, medium, large]}
  code:
    kind: generate
    model: actions-q8_0
    prompt: say
    grammar: {regex: "[A-Z]{3}-\\\\d{4}"}
  pair:
    kind: generate
    model: actions-q8_0
    prompt: say
    grammar:
      lark: |
        start: "(" WORD "," WORD ")"
        WORD: /[a-z]{1,8}/
"""
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["song", "album"]},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2100},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
    },
    "required": ["title", "kind", "year", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def actions():
    digest = STORE.manifest(MODEL).digest
    decoder = LlamaDecoder.open(STORE.path(MODEL), name=MODEL, digest=digest, threads=1)
    yield decoder
    decoder.close()


def stories():
    return LlamaDecoder.open(STORIES, name="stories", digest="0" * 64, threads=1)


def tiny():
    facts = genai_tokens(TINY / "genai_config.json")
    return OnnxDecoder.open(
        TINY / "past.onnx",
        TINY / "tokenizer.json",
        name="tiny",
        digest="0" * 64,
        context=facts.context,
        bos_token=facts.bos_token,
        end_tokens=facts.end_tokens,
        threads=1,
    )


class Plain:
    """The same decoder without its native loop."""

    scheduler = None

    def __init__(self, decoder):
        self.decoder = decoder

    def __getattr__(self, name):
        return getattr(self.decoder, name)


def answer(decoder, tokens, grammar, *, fast=True, max_tokens=200, params=GREEDY):
    matcher = constrain(decoder, grammar).matcher()
    return generate(
        decoder,
        tokens,
        params=params,
        max_tokens=max_tokens,
        allowed=matcher.allowed,
        forced=matcher.forced if fast else None,
    )


def prompt(decoder, text):
    template = "<utt>{text_spaced}<again>{text_spaced}<answer>"
    parts = Prompt(version=1, template=template).render(text)
    return [
        token
        for at, part in enumerate(parts)
        for token in decoder.tokenize(part.text, add_bos=at == 0, parse_special=part.trusted)
    ]


@needs_model
def test_tasks_of_a_pack_keep_their_form(tmp_path):
    schema = json.loads((ROOT / "models" / MODEL / "schema.json").read_text())
    (tmp_path / "forms.yaml").write_text(PACK.replace("SCHEMA", json.dumps(schema)))
    with edge.open(
        tmp_path / "forms.yaml", state=tmp_path / "s", offline=True, threads=1
    ) as runtime:
        call = runtime.run("action", "Add Clem Burke to my playlist Pre-Party R&B Jams")
        assert call.value == {
            "intent": "AddToPlaylist",
            "artist": "Clem Burke",
            "playlist_owner": "my",
            "playlist": "Pre-Party R&B Jams",
        }
        # The shipped calibration is of answers without a constraint.
        assert call.confidence is None
        assert edge.Reason.UNCALIBRATED in call.reasons
        odd = runtime.models.draft(runtime.tasks()["action"], "}}}} \u2028 \\ {{ 漢字 zzz")
        Draft202012Validator(schema).validate(json.loads(odd.text))
        assert runtime.run("size", "a rather big one").value in {"small", "medium", "large"}
        assert runtime.run("code", "the number is abc").value[3] == "-"
        assert runtime.run("pair", "two words").value.startswith("(")
        chunks = list(runtime.stream("size", "a rather big one"))
        assert "".join(chunk.text for chunk in chunks) == chunks[-1].result.value


@needs_model
def test_a_wrong_grammar_is_named_when_the_pack_is_opened(tmp_path):
    (tmp_path / "forms.yaml").write_text(PACK.replace("SCHEMA", '{"not": {}}'))
    with pytest.raises(ConfigError, match="Task action: The JSON schema cannot be enforced"):
        edge.open(tmp_path / "forms.yaml", state=tmp_path / "s", offline=True)


@needs_model
@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json_schema(SCHEMA),
        Grammar.json_schema(SCHEMA, order="any", compact=True),
        Grammar.regex("[a-z ]{4,30}!"),
        Grammar.choices(["play some jazz", "play some music", "stop"]),
    ],
    ids=lambda grammar: grammar.kind,
)
def test_the_native_loop_the_loop_in_python_and_no_fast_forward_agree(actions, grammar):
    for text in ("play thriller by michael jackson", "book a table", "42"):
        tokens = prompt(actions, text)
        native = answer(actions, tokens, grammar)
        python = answer(Plain(actions), tokens, grammar)
        slow = answer(actions, tokens, grammar, fast=False)
        assert native.finish == "stop"
        assert native.text == python.text == slow.text
        assert native.tokens == python.tokens
        assert [math.isnan(entry.logprob) for entry in native.stats] == [
            math.isnan(entry.logprob) for entry in python.stats
        ]
        if grammar.kind == "json_schema":
            Draft202012Validator(SCHEMA).validate(json.loads(native.text))


@pytest.mark.parametrize(
    ("path", "open_decoder"),
    [(STORIES, stories), (TINY / "past.onnx", tiny)],
    ids=["sentencepiece", "onnx"],
)
def test_other_vocabularies(path, open_decoder):
    if not path.is_file():
        pytest.skip(f"the fixture {path.name} is not here")
    decoder = open_decoder()
    tokens = [5, 6, 7]
    for seed in range(4):
        params = SamplingParams(temperature=1.0, seed=seed)
        made = answer(decoder, tokens, Grammar.json_schema(SCHEMA), params=params)
        assert made.finish == "stop"
        Draft202012Validator(SCHEMA).validate(json.loads(made.text))
    fast = answer(decoder, tokens, Grammar.choices(["Once upon", "Onto"]))
    slow = answer(decoder, tokens, Grammar.choices(["Once upon", "Onto"]), fast=False)
    assert fast.text == slow.text
    assert fast.text in {"Once upon", "Onto"}
    decoder.close()


@pytest.mark.parametrize("open_decoder", [stories, tiny])
def test_every_token_with_the_right_text_is_allowed(open_decoder):
    if not STORIES.is_file() or not TINY.is_dir():
        pytest.skip("the fixtures of shared/models are not here")
    decoder = open_decoder()
    size = decoder.info.vocab_size
    mask = constrain(decoder, Grammar.regex("(?s:.)*")).matcher().allowed(())
    found = np.unpackbits(mask.view(np.uint8), bitorder="little")[:size]
    whole = [token for token in range(size) if is_text(decoder.piece(token))]
    assert len(whole) > 200
    assert [token for token in whole if not found[token]] == []
    assert not any(found[token] for token in range(size) if token not in decoder.end_tokens
                   and not decoder.piece(token))  # fmt: skip
    assert vocabulary_of(decoder).end in decoder.end_tokens
    decoder.close()


def is_text(piece):
    try:
        return bool(piece.decode())
    except UnicodeDecodeError:
        return False


@needs_model
def test_the_schema_does_not_make_calls_worse(actions):
    path = SHARED / "data" / "snips" / "bench.jsonl"
    if not path.is_file():
        pytest.skip("../shared/data/snips is not here")
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        from structured import exact
    finally:
        sys.path.remove(str(ROOT / "bench"))
    schema = json.loads((ROOT / "models" / MODEL / "schema.json").read_text())
    grammar = Grammar.json_schema(schema, order="any")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()[:60]]
    free, held = (sum(exact(actions, row, each) for row in rows) for each in (None, grammar))
    assert held >= free - 1
