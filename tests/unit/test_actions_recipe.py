"""The actions recipe: spans survive substitution, answers copy the prompt, rules allow the gold."""

from __future__ import annotations

import ast
import importlib
import json
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge.backends.grounding import ground_object

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "models" / "recipes" / "actions"
MODEL = ROOT / "models" / "actions-q8_0"
MODULES = ("data", "drafts", "constrain", "tokenizer")


@pytest.mark.parametrize("path", sorted(RECIPE.parent.rglob("*.py")), ids=lambda path: path.stem)
def test_the_command_in_a_docstring_is_whole(path):
    source = path.read_text("utf-8")
    told = ast.get_docstring(ast.parse(source)) or ""
    wanted = re.findall(r'add_argument\("(--\w+)"[^\n]*required=True', source)
    known = re.findall(r'add_argument\(\s*"(--[\w-]+)"', source)
    assert [option for option in wanted if option not in told] == []
    commands = re.findall(r"^ +.*python models/.*$", told, re.MULTILINE)
    used = re.findall(r"(?<!\S)--[\w-]+", " ".join(commands))
    assert [option for option in used if option not in known] == []


@pytest.fixture(scope="module")
def recipe():
    sys.path.insert(0, str(RECIPE))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(RECIPE))
        for name in MODULES:
            sys.modules.pop(name, None)


def example(recipe, text, intent, requested=(), **values):
    slots = [(name, text.index(value), value) for name, value in values.items()]
    return recipe.data.Example(
        text,
        intent,
        tuple(
            recipe.data.Slot(name, start, start + len(value))
            for name, start, value in sorted(slots, key=lambda slot: slot[1])
        ),
        requested,
    )


@pytest.fixture
def examples(recipe):
    return [
        example(
            recipe, "add Clem Burke to R&B", "AddToPlaylist", artist="Clem Burke", playlist="R&B"
        ),
        example(recipe, "Play U2's song", "PlayMusic", artist="U2", music_item="song"),
        example(recipe, 'Rate "Dune" 4', "RateBook", object_name="Dune", rating_value="4"),
        example(recipe, "6 p.m.", "FindRestaurant", ("time",), time="6 p.m."),
    ]


def test_prompt_says_the_text_twice_and_what_was_asked_for(recipe, examples):
    assert recipe.data.prompt_text(examples[0]) == (
        "<utt> add clem burke to r & b<again> add clem burke to r & b<answer>"
    )
    assert recipe.data.prompt_text(examples[3]).startswith("<ask>  time<utt> 6 p . m .<again>")


def test_answer_is_json_that_grounds_to_the_gold(recipe, examples):
    for one in examples:
        call = json.loads(recipe.data.answer_text(one))
        assert recipe.data.same_call(call, one.call())
        assert ground_object(call, one.text, skip={"intent"}) == (one.call(), ())


def test_first_value_of_a_repeated_slot_counts(recipe):
    slots = (recipe.data.Slot("music_item", 2, 6), recipe.data.Slot("music_item", 14, 19))
    one = recipe.data.Example("A song off an album", "PlayMusic", slots)
    assert one.call() == {"intent": "PlayMusic", "music_item": "song"}
    assert recipe.data.answer_text(one) == '{"intent": "PlayMusic", "music_item": " song"}'


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ({"intent": "I", "a": " clem  burke"}, True),
        ({"intent": "I", "a": "clem"}, False),
        ({"intent": "J", "a": "clem burke"}, False),
        ({"intent": "I"}, False),
    ],
)
def test_same_call(recipe, answer, same):
    assert recipe.data.same_call(answer, {"intent": "I", "a": "Clem Burke"}) is same


def test_substitution_keeps_spans_on_their_values(recipe, examples):
    known = {"Clem Burke", "U2"}
    swap = recipe.data.Substitution(examples, share=1.0, open_share=0.0)
    seen = set()
    for seed in range(20):
        varied = swap.apply(examples[0], random.Random(seed))  # noqa: S311
        artist, playlist = varied.slots
        assert varied.text == f"add {varied.value(artist)} to {varied.value(playlist)}"
        seen.add(varied.value(artist))
    assert seen == known


def test_pieces_are_the_utterance_with_its_slots(recipe, examples):
    pieces = recipe.data.tagged_pieces(examples[0])
    assert pieces == [
        (" add", ""),
        (" clem burke", "artist"),
        (" to", ""),
        (" r & b", "playlist"),
    ]
    for one in examples:
        found = recipe.data.tagged_pieces(one)
        assert "".join(text for text, _ in found) == recipe.data.spaced(one.text)
    inside = recipe.data.Example("replay it", "PlayMusic", (recipe.data.Slot("x", 2, 6),))
    assert recipe.data.tagged_pieces(inside) is None


def test_split_is_by_text_and_repeatable(recipe):
    rows = [recipe.data.Example(f"play song {i}", "PlayMusic", ()) for i in range(400)]
    twins = [recipe.data.Example(f"PLAY  song {i}", "PlayMusic", ()) for i in range(400)]
    train, held = recipe.data.split(rows)
    assert len(train) + len(held) == len(rows)
    assert 5 <= len(held) <= 40
    again = recipe.data.split(twins)[1]
    assert [e.text.lower().split() for e in again] == [e.text.lower().split() for e in held]


def test_draft_uses_only_the_slots_at_hand(recipe, examples):
    rng = random.Random(0)  # noqa: S311
    draft = recipe.drafts.draft_text(examples[0], rng)
    assert draft in recipe.drafts.confirmations(examples[0])
    assert "clem burke" in draft
    assert "{" not in draft
    assert recipe.drafts.draft_text(examples[3], rng) is None


def test_values_are_tokens_of_the_prompt_and_allowed(recipe, examples):
    structure = recipe.tokenizer.structure_tokens(examples)
    texts = [recipe.data.prompt_text(one) for one in examples]
    tokenizer = recipe.tokenizer.train_tokenizer(texts, structure, vocab_size=400)
    slots = {one.intent: [slot.name for slot in one.slots] for one in examples}
    rules = recipe.constrain.grammar(tokenizer.get_vocab(), slots)
    for one in examples:
        words = tokenizer.encode(recipe.data.spaced(one.text)).ids
        answer = [*tokenizer.encode(recipe.data.answer_text(one)).ids, rules.end]
        for index, token in enumerate(answer):
            assert token in recipe.constrain.allowed(rules, words, answer[:index])


GRAMMAR = {"keys": {1: frozenset({2, 3})}, "quote": 4, "brace": 5, "end": 6}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([], {1}),
        ([1], {5, 2, 3}),
        ([1, 2], {10, 11, 12}),
        ([1, 2, 10], {4, 11, 12}),
        ([1, 2, 10, 12], {4}),
        ([1, 2, 10, 4], {5, 3}),
        ([1, 5], {6}),
    ],
)
def test_allowed(recipe, answer, expected):
    rules = recipe.constrain.Grammar(**GRAMMAR)
    assert recipe.constrain.allowed(rules, [10, 11, 10, 12], answer) == expected


@pytest.mark.skipif(not (MODEL / "manifest.json").exists(), reason="the model is not built yet")
def test_manifest_schema_and_recipe_agree(recipe):
    manifest = json.loads((MODEL / "manifest.json").read_text("utf-8"))
    schema = json.loads((MODEL / "schema.json").read_text("utf-8"))
    slots = manifest["facts"]["slots_by_intent"]
    named = {name for intent in schema["properties"]["intent"]["enum"] for name in slots[intent]}
    assert set(schema["properties"]) == {"intent", *named}
    assert manifest["special_tokens"]["control"] == list(recipe.tokenizer.CONTROL)
    assert set(recipe.drafts.WORDINGS) == set(schema["properties"]["intent"]["enum"])
