"""Typed decisions on the shipped models: exact, shared, without a generated token."""

import json
from pathlib import Path

import numpy as np
import pytest

import edge
from edge.backends.fake import FakeDecoder
from edge.backends.label_loop import score_by_sequences
from edge.backends.llama.decoder import LlamaDecoder
from edge.backends.questions import Question, distribution, trie
from edge.choosing import Asked, choose
from edge.errors import ConfigError, InputError
from edge.task import TaskSpec

MODEL = Path(__file__).resolve().parents[2] / "models" / "actions-q8_0" / "actions-q8_0.gguf"
INTENTS = (
    "AddToPlaylist",
    "BookRestaurant",
    "GetWeather",
    "PlayMusic",
    "RateBook",
    "SearchCreativeWork",
    "SearchScreeningEvent",
)


@pytest.fixture(scope="module")
def decoder():
    made = LlamaDecoder.open(MODEL, name="actions", digest="d", context=512, threads=1)
    yield made
    made.close()


def tokens(decoder, text, *, special=False):
    return tuple(decoder.tokenize(text, add_bos=False, parse_special=special))


def question(decoder, *labels, suffix=()):
    return Question(suffix, tuple(tokens(decoder, label) for label in labels), 1)


def prompt(decoder, text):
    return decoder.tokenize(f"<utt> {text}<again> {text}<answer>", parse_special=True)


def test_branches_give_what_one_sequence_a_label_gives(decoder):
    asked = [
        question(decoder, " play", " play some", " play some jazz", " jazz by miles", " rate"),
        question(decoder, " in town", " in the town", suffix=tokens(decoder, " weather")),
        question(decoder, *[f" label {a} {b}" for a in "abcdefghijk" for b in "lmnopqr"]),
    ]
    start = prompt(decoder, "play some jazz by miles davis")
    ours, theirs = decoder.label_scores(start, asked), score_by_sequences(decoder, start, asked)
    for one, other in zip(ours, theirs, strict=True):
        assert distribution(one) == pytest.approx(distribution(other), abs=1e-5)
        sure = np.array(other) > max(other) - 10
        assert np.array(one)[sure] == pytest.approx(np.array(other)[sure], abs=1e-4)
    assert [len(scores) for scores in ours] == [5, 2, 77]


def test_several_questions_change_nothing_for_each_other(decoder):
    start = prompt(decoder, "will it rain in boston")
    asked = [question(decoder, " boston", " rain"), question(decoder, " a b", " a c", " d")]
    together = decoder.label_scores(start, asked)
    for at, one in enumerate(asked):
        assert decoder.label_scores(start, [one])[0] == pytest.approx(together[at], abs=1e-4)


def test_a_trie_shares_what_labels_share():
    nodes = trie(Question((), ((5, 6), (5, 7), (5,)), end=1))
    assert [(node.token, node.depth, node.labels) for node in nodes] == [
        (-1, 0, [0, 1, 2]),
        (5, 1, [0, 1, 2]),
        (6, 2, [0]),
        (7, 2, [1]),
    ]
    assert nodes[1].children == {6: 2, 7: 3, 1: -3}


@pytest.mark.parametrize(
    ("labels", "words"), [(((5,), ()), "no tokens"), (((5, 6), (5, 6)), "same tokens")]
)
def test_labels_that_are_no_choice(labels, words):
    with pytest.raises(InputError, match=words):
        trie(Question((), labels, end=1))


def test_a_prompt_that_does_not_fit_is_named(decoder):
    with pytest.raises(InputError, match="512"):
        decoder.label_scores([5] * 512, [question(decoder, " a", " b")])
    with pytest.raises(InputError, match="prompt"):
        decoder.label_scores([], [question(decoder, " a", " b")])
    assert decoder.label_scores([5], [question(decoder, " a", " b")])


def test_an_engine_without_branches_answers_the_same_call():
    fake = FakeDecoder("x")
    scores = fake.label_scores([1, 2], [Question((), ((5,), (6, 7)), end=3)])
    assert len(scores[0]) == 2
    assert fake.open_sequences == 0


def pack(folder, **changes):
    task = {
        "kind": "classify",
        "model": "actions-q8_0",
        "prompt": "ask",
        "labels": list(INTENTS),
        "label_form": '{"intent": "{label}"',
        **changes,
    }
    document = {
        "name": "choices",
        "version": 1,
        "prompts": {
            "ask": {
                "version": 1,
                "template": "<utt>{text_spaced}<again>{text_spaced}<answer>",
            }
        },
        "tasks": {
            "intent": task,
            "few": {**task, "labels": ["PlayMusic", "RateBook"]},
            "support": {"kind": "classify", "model": "banking77-head"},
            "write": {"kind": "generate", "model": "actions-q8_0", "prompt": "ask"},
        },
    }
    path = folder / "pack.yaml"
    path.write_text(json.dumps(document), "utf-8")
    return path


@pytest.fixture
def runtime(tmp_path):
    with edge.open(pack(tmp_path), state=tmp_path / "s", offline=True, threads=1) as opened:
        yield opened


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("play some jazz by miles davis", "PlayMusic"),
        ("will it be chilly in weldon on friday", "GetWeather"),
        ("book a table for four in boston", "BookRestaurant"),
    ],
)
def test_a_decoder_chooses_and_run_answers_with_it(runtime, text, value):
    choice = runtime.decide("intent", text)
    assert isinstance(choice, edge.Choice)
    assert choice.value == value == max(choice.distribution, key=choice.distribution.get)
    assert set(choice.distribution) == set(INTENTS)
    assert sum(choice.distribution.values()) == pytest.approx(1.0)
    result = runtime.run("intent", text)
    assert (result.value, result.tokens_out, result.confidence) == (value, 0, None)
    assert edge.Reason.UNCALIBRATED in result.reasons


def test_heads_answer_the_same_call(runtime):
    choice, other = runtime.decide(["support", "few"], "my card was swallowed by the machine")
    assert choice.value == "card_swallowed"
    assert len(choice.distribution) == 77
    assert sum(choice.distribution.values()) == pytest.approx(1.0, abs=1e-5)
    assert set(other.distribution) == {"PlayMusic", "RateBook"}
    assert runtime.run("support", "my card was swallowed by the machine").value == choice.value


def test_prompts_without_a_common_beginning_are_asked_one_by_one(decoder):
    spec = TaskSpec(kind="classify", model="m", prompt="p", labels=(" jazz", " rain"))
    asked = [Asked("a", spec, (300, 301)), Asked("b", spec, (302,))]
    apart = [choose(decoder, [one])[0] for one in asked]
    assert choose(decoder, asked) == apart


def test_what_cannot_be_decided_is_named(runtime):
    with pytest.raises(InputError, match="kind generate"):
        runtime.decide("write", "hello")
    with pytest.raises(ConfigError, match="no task named"):
        runtime.decide("nothing", "hello")
    with pytest.raises(InputError, match="empty"):
        runtime.decide(["intent", "support"], " ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ["one"]}, "at least two"),
        ({"labels": ["a", "a"]}, "all different"),
        ({"label_form": "x"}, "must hold"),
        ({"prompt": None}, "needs a prompt"),
        ({"kind": "embed"}, "only a task of kind classify"),
        ({"model": "banking77-head"}, "needs a model of kind decoder"),
    ],
)
def test_a_task_with_labels_that_do_not_fit(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        edge.open(pack(tmp_path, **changes), state=tmp_path / "s", offline=True)
