"""Constrained decoding: every kind of grammar, exact masks, forced tokens, wrong grammars."""

from __future__ import annotations

import gc
import json
import math
import re
import threading
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ValidationError

from edge.backends.base import ModelInfo
from edge.backends.fake import BOS, END, FakeDecoder
from edge.backends.generate import generate
from edge.backends.structure import constraint as constrain_module
from edge.backends.structure.constraint import constrain
from edge.backends.structure.grammars import MAX_CHARS, Grammar
from edge.backends.structure.schemas import any_order, locate
from edge.backends.structure.vocabulary import vocabulary_of
from edge.errors import ConfigError, GenerationError, InputError
from edge.local import LocalTask
from edge.policy.sections import GrammarSpec
from edge.task import TaskSpec
from edge.types import Kind, SamplingParams

GREEDY = SamplingParams()
BYTES = FakeDecoder()


class Tokens:
    """A decoder with tokens of several bytes; its rows are noise that depends on the length."""

    scheduler = None

    def __init__(self, *pieces, seed=0, ends=True, prefix=""):
        self.pieces = [*(bytes([byte]) for byte in range(256)), *pieces, b""]
        self.end_tokens = frozenset({len(self.pieces) - 1}) if ends else frozenset()
        self.info = ModelInfo("tokens", "fake", "0" * 64, "cpu", 4096, vocab_size=len(self.pieces))
        self.seed, self.prefix, self.passes = seed, prefix, 0

    def piece(self, token, *, special=False):
        return self.pieces[token]

    def tokenize(self, text, *, add_bos=True, parse_special=False):
        """The longest token first; a prefix stands for what SentencePiece adds."""
        raw, found = text.encode(), [*self.prefix.encode()]
        while raw:
            fitting = [piece for piece in self.pieces if piece and raw.startswith(piece)]
            if not fitting:
                raise InputError("no token")
            longest = max(fitting, key=len)
            found.append(self.pieces.index(longest))
            raw = raw[len(longest) :]
        return found

    def sequence(self):
        return Noise(self)

    def close(self):
        pass


class Noise:
    def __init__(self, decoder):
        self.decoder, self.length = decoder, 0

    def forward(self, tokens):
        self.decoder.passes += 1
        self.length += len(tokens)
        source = np.random.default_rng([self.decoder.seed, self.length])
        row = source.standard_normal(self.decoder.info.vocab_size).astype(np.float32)
        row[[i for i, piece in enumerate(self.decoder.pieces) if set(piece) & set(b'"]},')]] += 3
        row[list(self.decoder.end_tokens)] += 3
        return row

    def close(self):
        pass


def bits(mask, size):
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[:size]))


def allowed(grammar, text, decoder=BYTES):
    """Return the tokens allowed after a text, or where the text leaves the grammar."""
    matcher = constrain(decoder, grammar).matcher()
    tokens = []
    for at, byte in enumerate(text.encode()):
        if byte not in bits(matcher.allowed(tokens), decoder.info.vocab_size):
            return at
        tokens.append(byte)
    return bits(matcher.allowed(tokens), decoder.info.vocab_size)


def accepts(grammar, text):
    found = allowed(grammar, text)
    return isinstance(found, set) and END in found


class Order(BaseModel):
    item: Literal["tea", "coffee"]
    count: int


CLOSED = {
    "type": "object",
    "properties": {
        "b": {"type": "integer"},
        "a": {"$ref": "#/$defs/word"},
        "c": {
            "type": "object",
            "properties": {"x": True, "y": {"type": "null"}},
            "required": ["y"],
            "additionalProperties": False,
        },
    },
    "required": ["b"],
    "additionalProperties": False,
    "$defs": {"word": {"enum": ["p", "q"]}},
}


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (
            Grammar.json_schema({"type": "object", "properties": {"é": {"type": "string"}}}),
            ["{}", '{"é": ""}', '{"é": "a\\"b 👋"}', '{"é": "", "z": [1, null]}'],
            ["", "[]", '{"é":""}', '{"é": 1}', '{"é": "a}', " {}", "{} "],
        ),
        (
            Grammar.json_schema('{"enum": ["a", 1, null, {"b": [true]}]}'),
            ['"a"', "1", "null", '{"b": [true]}'],
            ["a", "2", '{"b": []}'],
        ),
        (
            Grammar.json_schema({"type": "array", "items": {"type": "integer"}}, compact=True),
            ["[]", "[1]", "[1,-2]"],
            ["[1, 2]", "[1,]", "[01]", "[1.0]"],
        ),
        (
            Grammar.json_schema(Order),
            ['{"item": "tea", "count": 2}'],
            ['{"count": 2, "item": "tea"}', '{"item": "milk", "count": 2}', '{"item": "tea"}'],
        ),
        (
            Grammar.json_schema(CLOSED, order="any"),
            [
                '{"b": 1}',
                '{"a": "p", "b": 1}',
                '{"c": {"y": null, "x": [1]}, "b": 1, "a": "q"}',
                '{"b": 1, "c": {"x": {}, "y": null}}',
            ],
            [
                "{}",
                '{"a": "p"}',
                '{"b": 1, "b": 2}',
                '{"b": 1, "d": 2}',
                '{"b": 1, "a": "r"}',
                '{"b": 1, "c": {}}',
                '{"b": 1, "c": {"y": null, "y": null}}',
            ],
        ),
        (
            Grammar.json_schema(
                {"type": "object", "properties": {"a": True}, "additionalProperties": False},
                order="any",
            ),
            ["{}", '{"a": 1}'],
            ["", '{"a": 1, "a": 1}'],
        ),
        (
            Grammar.json_schema({"type": "object", "properties": {"a": {}, "b": {}}}, order="any"),
            ['{"a": 1, "b": 1}', '{"b": 1, "z": 2}'],
            ['{"b": 1, "a": 1.}'],
        ),
        (
            Grammar.regex(r"a/\d{2}(b|é)*\n?"),
            ["a/12", "a/12bé", "a/99b\n"],
            ["a/1", "a12", "a/12c"],
        ),
        (Grammar.regex(r"\w\d"), ["a1", "é1"], ["a٣", " 1"]),
        (Grammar.regex("^(?i)yes$"), ["yes", "YES", "yEs"], ["yes ", "no"]),
        (
            Grammar.lark('start: NAME ("," NAME)*\nNAME: /[a-z]+/  // words'),
            ["a", "ab,c"],
            ["", "a,", "A"],
        ),
        (Grammar.lark('start: "(" start ")" | "x"'), ["x", "((x))"], ["(x", "x)"]),
        (Grammar.lark('start: "<b>" /<c>\\/>/ // <d>'), ["<b><c>/>"], ["<b>"]),
        (Grammar.lark('start: "v=" %json {"type": "boolean"}'), ["v=true"], ["v=1"]),
        (
            Grammar.choices(["a", "ab", 'say "hi"\n', "\\d\t/#", "é👋", "\x7f\x00"]),
            ["a", "ab", 'say "hi"\n', "\\d\t/#", "é👋", "\x7f\x00"],
            ["", "b", "abc", "say", "5"],
        ),
    ],
)
def test_every_kind_of_grammar(grammar, good, bad):
    assert [text for text in good if not accepts(grammar, text)] == []
    assert [text for text in bad if accepts(grammar, text)] == []


def test_the_mask_is_exact_byte_for_byte():
    grammar = Grammar.choices(["cat", "car", "ça"])
    assert allowed(grammar, "") == {ord("c"), "ça".encode()[0]}
    assert allowed(grammar, "ca") == {ord("t"), ord("r")}
    assert allowed(grammar, "cat") == {END}


def texts(grammar, decoder, **options):
    matcher = constrain(decoder, grammar).matcher()
    forced = matcher.forced if options.pop("fast", True) else None
    return generate(
        decoder,
        [1],
        **{"params": GREEDY, "max_tokens": 1500, **options},
        allowed=matcher.allowed,
        forced=forced,
    )


VALUES = st.deferred(
    lambda: st.one_of(
        st.sampled_from(
            [
                {"type": "boolean"},
                {"type": "integer", "minimum": -3, "exclusiveMaximum": 40},
                {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 3},
                {"type": "string", "pattern": "^[a-f]{2,5}$"},
                {"type": "string", "format": "date"},
                {"type": "string", "minLength": 1, "maxLength": 6},
                {"const": "x"},
                {"enum": [1, "é", None]},
            ]
        ),
        st.lists(VALUES, min_size=1, max_size=2).map(lambda each: {"anyOf": each}),
        VALUES.map(lambda each: {"type": "array", "items": each, "maxItems": 2}),
        st.dictionaries(st.sampled_from(["a", "b b", "ü", '"']), VALUES, max_size=3).flatmap(
            lambda each: (
                st.lists(st.sampled_from(sorted(each)), unique=True).map(
                    lambda needed: {
                        "type": "object",
                        "properties": each,
                        "required": needed,
                        "additionalProperties": False,
                    }
                )
                if each
                else st.just({"type": "object", "maxProperties": 0})
            )
        ),
    )
)
WORDY = (b'{"', b'": ', b'", "', b' "', b'"}', b"true", b"bb", b'b b"', b", ", b"1", b"0.25")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(VALUES, st.sampled_from(["schema", "any"]), st.integers(0, 99))
def test_whatever_the_model_says_the_answer_fits_the_schema(schema, order, seed):
    decoder = Tokens(*WORDY, seed=seed)
    grammar = Grammar.json_schema(schema, order=order)
    made = texts(grammar, decoder)
    assert made.finish == "stop"
    Draft202012Validator(schema).validate(json.loads(made.text))
    assert texts(grammar, decoder, fast=False).text == made.text


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["a", "[b-d]", "(x|yz)", r"\d", r"[\d_]", ".", "é", "[^a]", r"\s", "/", '"', "#", r"\{"]
        ).flatmap(lambda part: st.sampled_from([part, part + "?", part + "{2}", part + "{0,3}"])),
        min_size=1,
        max_size=5,
    ).map("".join),
    st.integers(0, 99),
)
def test_a_regex_means_what_it_means_in_python(pattern, seed):
    made = texts(Grammar.regex(pattern), Tokens(seed=seed))
    assert made.finish == "stop"
    assert re.fullmatch(pattern, made.text)


@pytest.mark.parametrize(
    "lark",
    [
        "start: /(.|\\n)*/",
        "start: X\nX: ~/a/",
        "start: (X | Y)+\nX: ~/a/\nY: /./",
    ],
)
def test_control_tokens_are_never_allowed(lark):
    decoder = Tokens(b"<|im_end|>", b"[PAD7]", b"<unused12>", b"", b"ok")
    control = {256, 257, 258, 259}
    matcher = constrain(decoder, Grammar.lark(lark)).matcher()
    assert not control & bits(matcher.allowed(()), decoder.info.vocab_size)
    assert BOS not in allowed(Grammar.lark(lark), "")


def test_a_vocabulary_that_cannot_spell_the_grammar_is_refused():
    decoder = Tokens()
    decoder.pieces[ord("q")] = b""
    with pytest.raises(InputError, match="no token begins a text that fits"):
        constrain(decoder, Grammar.choices(["q"]))
    with pytest.raises(GenerationError):
        texts(Grammar.choices(["aq"]), decoder)


FIXED = {
    "type": "object",
    "properties": {"name": {"enum": ["ab", "cd"]}, "size": {"type": "integer", "maximum": 9}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
PARTS = (b'{"', b"name", b'":', b' "', b"size", b'",')


def test_forced_tokens_go_in_at_once_and_change_nothing():
    for seed in range(20):
        decoder = Tokens(*PARTS, seed=seed)
        fast = texts(Grammar.json_schema(FIXED), decoder)
        passes, decoder.passes = decoder.passes, 0
        slow = texts(Grammar.json_schema(FIXED), decoder, fast=False)
        assert fast.text == slow.text
        assert fast.tokens[: len(slow.tokens)] == slow.tokens
        assert passes < decoder.passes
        drawn = [not math.isnan(entry.logprob) for entry in fast.stats]
        assert (sum(drawn), len(drawn)) == (passes, len(fast.tokens))
        assert [entry.token for entry in fast.stats] == list(fast.tokens)
        assert fast.usage.tokens_out == len(fast.tokens)
        Draft202012Validator(FIXED).validate(json.loads(fast.text))


def test_a_complete_answer_ends_without_another_pass():
    decoder = Tokens()
    made = texts(Grammar.choices(["x"]), decoder)
    assert (made.text, made.finish, decoder.passes) == ("x", "stop", 1)
    assert made.tokens[-1] in decoder.end_tokens


@pytest.mark.parametrize(
    ("options", "text", "finish"),
    [
        ({"max_tokens": 3}, '{"name":', "length"),
        ({"stop": ["ame"]}, '{"n', "stop"),
        ({"cancel": lambda: True}, "", "cancelled"),
    ],
)
def test_an_end_among_forced_tokens(options, text, finish):
    made = texts(Grammar.json_schema(FIXED), Tokens(*PARTS), **options)
    assert (made.text, made.finish) == (text, finish)
    assert made.usage.tokens_out == len(made.tokens) == len(made.stats) <= 3


def test_no_token_is_forced_that_a_longer_one_could_replace():
    plain, long = Tokens(b'{"'), Tokens(b'{"', b'{"name": "cd", "size')
    grammar = Grammar.json_schema(FIXED)
    assert constrain(plain, grammar).matcher().forced(())
    matcher = constrain(long, grammar).matcher()
    assert matcher.forced(()) == ()
    assert {ord("{"), 256, 257} == bits(matcher.allowed(()), long.info.vocab_size)


@pytest.mark.parametrize("prefix", [" ", "x", ""])
def test_a_tokenizer_that_adds_to_the_text_forces_no_wrong_bytes(prefix):
    decoder = Tokens(*PARTS, f"only with {prefix!r}".encode(), prefix=prefix)
    forced = constrain(decoder, Grammar.json_schema(FIXED)).matcher().forced(())
    spelled = b"".join(decoder.pieces[token] for token in forced)
    assert b'{"name": "'.startswith(spelled)
    assert bool(spelled) == (prefix != "x")


def test_text_outside_the_grammar_is_an_error_and_harms_nobody():
    constraint = constrain(BYTES, Grammar.choices(["abc"]))
    lost, kept = constraint.matcher(), constraint.matcher()
    with pytest.raises(GenerationError, match="grammar cannot be followed"):
        lost.allowed([ord("x")])
    with pytest.raises(GenerationError):
        lost.allowed([ord("x"), ord("y")])
    assert bits(kept.allowed([ord("a")]), 258) == {ord("b")}


def test_a_grammar_is_compiled_once_for_a_vocabulary():
    first, twin, other = Tokens(b"ab"), Tokens(b"ab"), Tokens(b"cd")
    grammar, again = Grammar.choices(["abc"]), Grammar.choices(["abc"])
    assert constrain(first, grammar) is constrain(first, again) is constrain(twin, grammar)
    assert constrain(other, grammar) is not constrain(first, grammar)
    assert vocabulary_of(first).digest == vocabulary_of(twin).digest
    del first
    gc.collect()
    assert constrain(twin, grammar).matcher().forced(()) == (256, ord("c"))


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(constrain_module, "CACHE_SIZE", 2)
    decoder = Tokens(b"cache")
    first = constrain(decoder, Grammar.choices(["1"]))
    for word in ("2", "1", "3"):
        constrain(decoder, Grammar.choices([word]))
    assert len(vocabulary_of(decoder).compiled) == 2
    assert constrain(decoder, Grammar.choices(["1"])) is first


def test_a_vocabulary_goes_with_its_decoder():
    decoder = Tokens(b"gone")
    constrain(decoder, Grammar.choices(["1"]))
    known = vocabulary_of(decoder).digest
    from edge.backends.structure import vocabulary

    del decoder
    gc.collect()
    assert known not in vocabulary._by_digest


def test_many_threads_share_a_constraint():
    decoder, grammar = Tokens(*WORDY), Grammar.json_schema(FIXED)
    wanted, found = texts(grammar, decoder).text, []
    threads = [
        threading.Thread(target=lambda: found.append(texts(grammar, decoder).text))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 8


def test_a_decoder_without_an_end_token_is_refused():
    with pytest.raises(InputError, match="tokens names no end token"):
        constrain(Tokens(ends=False), Grammar.choices(["a"]))


def nested(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def looped():
    schema = {"type": "object"}
    schema["properties"] = {"a": schema}
    return schema


def of(part):
    return {"type": "object", "properties": {"a": {"type": "array", "items": part}}}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (of({"not": {"type": "string"}}), r'at /properties/a/items: Unimplemented keys: \["not"\]'),
        (of({"if": {}, "then": {}}), r"at /properties/a/items: Unimplemented"),
        (of({"uniqueItems": True}), "uniqueItems"),
        (of({"type": "strin"}), "at /properties/a/items: Invalid type: strin"),
        (of({"format": "nope"}), "Unknown format: nope"),
        (of({"pattern": "(a"}), "/items: unclosed group, at character 1"),
        (of({"pattern": "(?=a)b"}), "look-around"),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 2}},
                "required": ["a"],
            },
            r"at /properties/a: .*minimum \(3\) is greater",
        ),
        (of({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
        ({"$defs": {"x": {"type": "y"}}, **of({"$ref": "#/$defs/x"})}, r"at /\$defs/x: Invalid"),
        (of({"$ref": "#/$defs/none"}), r"items: Pointer '/\$defs/none' does not exist"),
        (of({"$ref": "https://example.com/s.json"}), r"example.com.*/items/\$ref; nothing is fet"),
        (of({"$ref": "file:///etc/passwd"}), "nothing is fetched"),
        (of({"$ref": "other.json#/a"}), "nothing is fetched"),
        ({"enum": []}, "at the top level: Unsatisfiable"),
        ({"$ref": "#"}, "at the top level: no text fits it"),
        ({"allOf": [{"anyOf": [{"properties": {f"a{i}": {"const": j}}} for j in range(3)]}
                    for i in range(12)]}, "too large"),
        (nested(1000), "nested deeper than 100 levels, at /properties/a/properties/a"),
        (json.dumps(nested(300)), "nested deeper"),
        ('{"a":' * 100_000, "longer than 131072"),
        ("[" * 60_000, "nested too deep"),
        (looped(), "nested deeper"),
        ({"enum": list(range(60_000))}, "more than 50000 values"),
        ({"properties": {f"p{i}": {"type": "string"} for i in range(9000)}}, "longer than 131072"),
        ({"const": math.nan}, "no JSON value at /const"),
        ({"const": b"x"}, "no JSON value at /const"),
        ({"const": "\ud800"}, "no JSON value at /const"),
        ({"properties": {1: {}}}, "a key that is no text at /properties"),
        ("{", "is no JSON"),
        ("3", "is an object, not int"),
        (None, "is an object, not NoneType"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_enforced_is_named(schema, words):
    with pytest.raises(InputError, match=words) as caught:
        Grammar.json_schema(schema)
    assert "%json" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert accepts(Grammar.json_schema({"type": "null"}), "null")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Grammar.regex("(a"), "regular expression cannot be used: unclosed group, at char"),
        (lambda: Grammar.regex("a(?=b)"), "look-ahead.*at character 2"),
        (lambda: Grammar.regex(r"(a)\1"), "backreferences"),
        (lambda: Grammar.regex(r"\bfoo"), "lookarounds not supported"),
        (lambda: Grammar.regex("(" * 5000 + ")" * 5000), "nest"),
        (lambda: Grammar.regex("a" * (MAX_CHARS + 1)), "longer than"),
        (lambda: Grammar.regex(""), "only the empty text"),
        (lambda: Grammar.regex(r"[^\s\S]"), "no text fits"),
        (lambda: Grammar.regex("\ud800"), "surrogate"),
        (lambda: Grammar.regex(3), "is text, not int"),
        (lambda: Grammar.lark("start: foo"), 'unknown name: "foo"'),
        (lambda: Grammar.lark('start: "a'), "lexer error"),
        (lambda: Grammar.lark('x: "a"'), "no start rule"),
        (lambda: Grammar.lark(""), "start rule|Empty"),
        (lambda: Grammar.lark("start: start"), "no text fits"),
        (lambda: Grammar.lark("start: " + "(" * 9000 + '"a"' + ")" * 9000), "deeply nested"),
        (lambda: Grammar.lark("%import .other.WORD\nstart: WORD"), "Unknown common regex"),
        (lambda: Grammar.lark('start: <|im_start|> "a"'), "names a token between < and >"),
        (lambda: Grammar.lark("start: /<b>/ <[5]> // <c>"), "names a token between < and >"),
        (lambda: Grammar.choices([]), "empty or no list"),
        (lambda: Grammar.choices("abc"), "empty or no list"),
        (lambda: Grammar.choices(["a", ""]), "A choice is empty"),
        (lambda: Grammar.choices(["a", None]), "A choice is empty or no text"),
        (lambda: Grammar.choices(["\udfff"]), "surrogate"),
        (lambda: Grammar.choices(["a" * 90_000, "b" * 90_000]), "list of choices is longer"),
    ],
)
def test_a_wrong_grammar_is_named(make, words):
    with pytest.raises(InputError, match=words) as caught:
        make()
    assert len(str(caught.value)) < 700


def test_a_model_without_a_schema_is_named():
    class Odd(BaseModel):
        model_config = {"arbitrary_types_allowed": True}
        field: threading.Thread

    with pytest.raises(InputError, match="Odd has no JSON schema"):
        Grammar.json_schema(Odd)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {}}},
        {**CLOSED, "minProperties": 2},
        {**CLOSED, "properties": {"b": {"$ref": "#"}}},
        {**CLOSED, "properties": {f"p{i}": {} for i in range(64)}, "required": []},
        {**CLOSED, "required": ["none"]},
        {"type": "array"},
    ],
)
def test_where_any_order_cannot_be_kept_the_order_is_the_schemas(schema):
    assert any_order(schema, compact=False) is None


def task(**options):
    return TaskSpec(**{"kind": Kind.GENERATE, "model": "m", "prompt": "p", **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"constrain": True}, "only a task of kind extract"),
        ({"kind": "extract", "output_schema": {}, "grammar": {"regex": "a"}}, "kind generate"),
        ({"grammar": {}}, "exactly one of regex, lark and choices"),
        ({"grammar": {"regex": "a", "choices": ["b"]}}, "exactly one"),
        ({"grammar": {"gbnf": "a"}}, "gbnf"),
    ],
)
def test_a_task_says_at_most_one_thing_of_its_form(options, words):
    with pytest.raises(ValidationError, match=words):
        task(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grammar": GrammarSpec(regex="(a")}, "Task t: The regular expression cannot be used"),
        ({"grammar": GrammarSpec(lark="start: x")}, "Task t: The Lark grammar"),
        ({"grammar": GrammarSpec(choices=())}, "Task t: A list of choices"),
        (
            {"kind": "extract", "constrain": True, "output_schema": of({"not": {}})},
            "Task t: The JSON schema cannot be enforced at /properties/a/items",
        ),
    ],
)
def test_a_task_with_a_wrong_grammar_is_named_before_it_runs(options, words):
    with pytest.raises(ConfigError, match=words):
        LocalTask("t", task(**options))


def test_a_task_keeps_its_grammar():
    assert LocalTask("t", task()).grammar is None
    assert LocalTask("t", task(grammar={"choices": ["a"]})).grammar == Grammar.choices(["a"])
    spec = task(kind="extract", output_schema=CLOSED)
    assert LocalTask("t", spec).grammar is None
    constrained = LocalTask("t", spec.model_copy(update={"constrain": True}))
    assert constrained.grammar == Grammar.json_schema(CLOSED, order="any")


def test_temperature_draws_only_what_fits():
    for seed in range(20):
        params = SamplingParams(temperature=1.5, seed=seed)
        made = texts(Grammar.choices(["red", "green"]), Tokens(b"re", b"gr"), params=params)
        assert made.text in {"red", "green"}


def test_looking_for_the_place_ends_in_time():
    ticks = iter(range(100))
    schema = {"properties": {f"p{i}": {"title": str(i)} for i in range(50)}}
    asked = []
    place, why = locate(schema, asked.append, budget_s=5, clock=lambda: next(ticks))
    assert (place, why, len(asked)) == ("the top level", None, 4)
