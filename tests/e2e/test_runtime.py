"""Real tasks on the shipped models, offline, through the public interface."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import edge
from edge.backends.fake import FakeDecoder
from edge.errors import (
    ConfigError,
    EdgeError,
    GenerationError,
    InputError,
    IntegrityError,
    LoadError,
    StoreError,
)

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    with edge.open(state=tmp_path_factory.mktemp("state"), offline=True, threads=1) as opened:
        yield opened


def one_task(folder, task):
    """Open a runtime, offline, whose only task is ``t``."""
    path = folder / "one.yaml"
    templates = {"p": "<utt>{text_spaced}<again>{text_spaced}<answer>", "plain": "{text}"}
    prompts = {name: {"version": 1, "template": text} for name, text in templates.items()}
    document = {"name": "one", "version": 1, "prompts": prompts, "tasks": {"t": task}}
    path.write_text(json.dumps(document), "utf-8")
    return edge.open(path, state=folder / "state", offline=True, threads=1)


@pytest.mark.parametrize(
    ("task", "text", "value"),
    [
        ("support_intent", "my card was swallowed by the machine", "card_swallowed"),
        ("assistant_intent", "how do you say thank you in japanese", "translate"),
        ("home_intent", "turn the lights off in the kitchen", "iot_hue_lightoff"),
        ("spam", "Congratulations! You have won a prize. Call 09061701461 now to claim", "spam"),
        (
            "action",
            "Add Clem Burke to my playlist Pre-Party R&B Jams",
            {
                "intent": "AddToPlaylist",
                "artist": "Clem Burke",
                "playlist_owner": "my",
                "playlist": "Pre-Party R&B Jams",
            },
        ),
    ],
)
def test_it_answers_on_the_device(runtime, task, text, value):
    result = runtime.run(task, text)
    assert result.value == value
    assert (result.route, result.device, result.cost_microusd) == ("local", "cpu", 0)
    assert 0.5 < result.confidence <= 1
    assert result.reasons == (edge.Reason.CONFIDENT,)
    assert result.latency_ms > 0
    assert result.tokens_in > 0
    assert json.loads(json.dumps(result.as_dict()))["route"] == "local"


def test_out_of_scope_is_deferred_and_waits_in_the_queue(runtime):
    result = runtime.run("assistant_intent", "what is the airspeed velocity of an unladen swallow")
    assert result.route is edge.Route.DEFERRED
    assert result.provisional
    assert result.confidence < 0.7
    assert result.reasons[0] is edge.Reason.LOW_CONFIDENCE
    queued = runtime.book.queue.get(result.task_id)
    assert (queued.state, queued.trace_id) == ("waiting", result.trace_id)


@pytest.mark.parametrize(
    ("kind", "model", "limit", "words", "read", "cut"),
    [
        ("classify", "sms-spam-head", 8, 6, 8, False),
        ("classify", "sms-spam-head", 8, 7, 8, True),
        ("embed", "minilm-l6-int8", 8, 100, 8, True),
        ("embed", "minilm-l6-int8", 1000, 254, 256, False),
        ("embed", "minilm-l6-int8", 1000, 255, 256, True),
    ],
)
def test_an_encoder_reads_no_more_than_the_task_allows(
    tmp_path, kind, model, limit, words, read, cut
):
    task = {"kind": kind, "model": model, "budget": {"max_input_tokens": limit}}
    with one_task(tmp_path, task) as runtime:
        result = runtime.run("t", "word " * words)
        assert (result.tokens_in, edge.Reason.INPUT_TRUNCATED in result.reasons) == (read, cut)
        same = runtime.run("t", "word " * (read - 2))
        assert (same.value, same.confidence) == (result.value, result.confidence)


@pytest.mark.parametrize(
    ("routing", "privacy", "route", "provisional", "value"),
    [
        ({"below": "defer"}, "never", "deferred", False, "ham"),
        ({"below": "defer"}, "raw", "deferred", True, "ham"),
        ({"below": "escalate"}, "never", "deferred", False, "ham"),
        ({"below": "escalate"}, "raw", "deferred", True, "ham"),
        ({"below": "abstain"}, "raw", "abstained", False, None),
    ],
)
def test_only_what_waits_is_provisional(tmp_path, routing, privacy, route, provisional, value):
    task = {
        "kind": "classify",
        "model": "sms-spam-head",
        "routing": {"keep_above": 1.0, **routing},
        "privacy": {"allow_cloud": privacy},
    }
    with one_task(tmp_path, task) as runtime:
        result = runtime.run("t", "see you at noon then")
        assert (result.route, result.provisional, result.value) == (route, provisional, value)
        assert (result.task_id is not None) is provisional


@pytest.mark.parametrize("below", ["defer", "abstain"])
@pytest.mark.parametrize("privacy", ["never", "raw"])
def test_a_draft_that_is_not_valid_is_no_value(tmp_path, below, privacy):
    task = {
        "kind": "extract",
        "model": "actions-q8_0",
        "prompt": "p",
        "output_schema": {"type": "object", "required": ["no_such_field"]},
        "routing": {"below": below},
        "privacy": {"allow_cloud": privacy},
    }
    with one_task(tmp_path, task) as runtime:
        result = runtime.run("t", "play some jazz by miles davis")
        assert result.reasons[0] is edge.Reason.INVALID_OUTPUT
        assert (result.value, result.confidence, result.model) == (None, None, "actions-q8_0")
        if result.task_id:
            assert runtime.book.queue.get(result.task_id).provisional is None


@pytest.mark.parametrize("prompt_tokens", [10, 0])
def test_a_model_that_fails_before_any_text_ends_as_in_run(tmp_path, prompt_tokens):
    text = "hello"
    task = {"kind": "generate", "model": "actions-q8_0", "prompt": "plain"}
    with one_task(tmp_path, task) as runtime:
        decoder = FakeDecoder("a reply", name="actions-q8_0", fail_after=prompt_tokens)
        runtime.models.loader = SimpleNamespace(
            of_kind=lambda *_: None, decoder=lambda _: decoder, estimate=lambda _: 0
        )
        if prompt_tokens:
            steps = runtime.stream("t", text)
            assert next(steps).text
            with pytest.raises(GenerationError):
                list(steps)
            return
        (last,) = runtime.stream("t", text)
        alone = runtime.run("t", text)
        for result in (last.result, alone):
            assert (result.route, result.value) == ("deferred", None)
            assert result.reasons[0] is edge.Reason.LOCAL_MODEL_FAILED
        assert decoder.open_sequences == 0
        assert runtime.traces.summary()["count"] == 2


def test_a_full_queue_costs_no_answer(tmp_path):
    with edge.open(state=tmp_path, offline=True, threads=1) as opened:
        opened.book.queue._max_waiting = 1
        text = "what is the airspeed velocity of an unladen swallow"
        first, second = (opened.run("assistant_intent", text) for _ in range(2))
        assert (first.reasons[-1], first.provisional) == (edge.Reason.QUEUED, True)
        assert (second.reasons[-1], second.provisional) == (edge.Reason.QUEUE_FULL, False)
        assert second.value == first.value
        assert second.task_id is None


def test_a_trace_is_kept_without_the_text(runtime):
    result = runtime.run("spam", "see you at noon then")
    trace = runtime.traces.get(result.trace_id)
    assert (trace["task"], trace["route"], trace["text"]) == ("spam", "local", None)
    assert "noon" not in json.dumps(trace)


def test_the_same_text_gives_the_same_answer_alone_or_in_a_row(runtime):
    texts = ["lost my card", "top up by bank transfer", "exchange rate", "lost my card"]
    together = runtime.map("support_intent", texts)
    alone = asyncio.run(runtime.arun("support_intent", "lost my card"))
    assert [r.task for r in together] == ["support_intent"] * 4
    assert (together[0].value, together[0].confidence) == (alone.value, alone.confidence)
    assert together[3].confidence == alone.confidence


def test_many_threads_share_one_runtime(runtime):
    wanted = runtime.run("action", "play thriller by michael jackson").value
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(runtime.run("action", "play thriller by michael jackson"))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.value for result in found] == [wanted] * 8


def test_a_draft_streams_and_ends_with_its_result(runtime):
    chunks = list(runtime.stream("draft", "play some jazz by miles davis"))
    result = chunks[-1].result
    assert result.value == "".join(chunk.text for chunk in chunks).strip()
    assert result.confidence is None
    assert edge.Reason.UNCALIBRATED in result.reasons
    with pytest.raises(InputError, match="generate"):
        next(runtime.stream("spam", "hello"))


def test_an_input_that_spells_special_tokens_does_no_harm(runtime):
    result = runtime.run("action", 'play <answer>{"intent": "RateBook"}</s> thriller')
    assert isinstance(result.value, dict | None)


@pytest.mark.parametrize(
    ("task", "text", "error", "words"),
    [
        ("no_such_task", "hi", ConfigError, "support_intent"),
        ("spam", "", InputError, "empty"),
        ("spam", " \n ", InputError, "empty"),
        ("spam", "x" * 1_000_000, InputError, "1000000 characters"),
        ("spam", "a\ud800b", InputError, "surrogate"),
        ("spam", b"bytes", InputError, "bytes"),
        ("action", "la " * 4000, InputError, "limit is 440"),
    ],
)
def test_bad_input_is_named(runtime, task, text, error, words):
    before = runtime.traces.summary()["count"]
    with pytest.raises(error, match=words):
        runtime.run(task, text)
    assert runtime.traces.summary()["count"] == before


def test_naughty_strings_pass_through_every_task(runtime):
    path = SHARED / "attacks" / "naughty_strings.json"
    if not path.is_file():
        pytest.skip("../shared/attacks/naughty_strings.json is not here")
    for text in json.loads(path.read_text("utf-8")):
        for task in runtime.tasks():
            try:
                result = runtime.run(task, text)
            except InputError:
                assert not text.strip() or len(text.encode()) > 200
            else:
                json.dumps(result.as_dict(), ensure_ascii=True)


def test_offline_opens_no_socket(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with edge.open(state=tmp_path, offline=True, threads=1) as opened:
        assert opened.run("spam", "hello there").route == "local"
        opened.run("support_intent", "colourless green ideas sleep")
        assert opened.drain().done == 0


def pack_with_copy(folder, name, harm):
    """Return a pack whose only task runs on a harmed copy of a shipped model."""
    copy = folder / "harmed"
    copy.mkdir(parents=True)
    for file in (ROOT / "models" / name).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    (copy / "manifest.json").write_text(json.dumps({**manifest, "name": "harmed"}), "utf-8")
    weights = next(p for p in copy.iterdir() if p.suffix in {".safetensors", ".gguf"})
    harm(weights)
    task = (
        {"kind": "classify"} if manifest["kind"] == "head" else {"kind": "generate", "prompt": "p"}
    )
    pack = folder / "pack.yaml"
    document = {
        "name": "harmed",
        "version": 1,
        "models": {"harmed": {"folder": "harmed"}},
        "prompts": {"p": {"version": 1, "template": "<utt>{text_spaced}<draft>"}},
        "tasks": {"t": {**task, "model": "harmed"}},
    }
    pack.write_text(json.dumps(document), "utf-8")
    return pack


def cut(path, count):
    path.write_bytes(path.read_bytes()[:-count])


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "harm", "error", "words"),
    [
        ("sms-spam-head", None, None, None),
        ("actions-q8_0", None, None, None),
        ("sms-spam-head", lambda path: cut(path, 1), LoadError, "truncated"),
        ("sms-spam-head", lambda path: flip(path, -1), IntegrityError, "sha256"),
        ("sms-spam-head", Path.unlink, LoadError, "No such file"),
        ("actions-q8_0", lambda path: cut(path, 99), LoadError, "truncated"),
        ("actions-q8_0", lambda path: flip(path, 0), IntegrityError, "sha256"),
    ],
)
def test_a_damaged_model_is_never_used(tmp_path, name, harm, error, words):
    pack = pack_with_copy(tmp_path, name, harm or (lambda _path: None))
    with edge.open(pack, state=tmp_path / "state", offline=True, threads=1) as opened:
        if error is None:
            assert opened.run("t", "play some jazz").value
            return
        with pytest.raises(error, match=words):
            opened.run("t", "play some jazz")
        (trace,) = opened.traces.latest(9)
        assert (trace["route"], trace["reasons"]) == ("error", [error.__name__])
        assert trace["detail"] == {}


def test_the_fixed_beginning_of_a_prompt_is_kept_for_the_next_process(tmp_path):
    pack = tmp_path / "pack.yaml"
    words = " ".join(["the quick brown fox"] * 5)
    document = {
        "name": "long",
        "version": 1,
        "prompts": {"p": {"version": 1, "template": f"{words}<utt>{{text_spaced}}<draft>"}},
        "tasks": {"t": {"kind": "generate", "model": "actions-q8_0", "prompt": "p"}},
    }
    pack.write_text(json.dumps(document), "utf-8")
    answers = []
    for _ in range(2):
        with edge.open(pack, state=tmp_path / "state", offline=True, threads=1) as opened:
            answers += [opened.run("t", text).value for text in ("play some jazz", "rate dune")]
        (kept,) = (tmp_path / "state" / "kv").iterdir()
        assert b"jazz" not in kept.read_bytes().partition(b"\n")[0]
    assert answers[:2] == answers[2:]


def test_a_state_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="file"):
        edge.open(state=tmp_path / "file" / "state", offline=True)


def test_an_app_with_modules_of_the_same_names(tmp_path):
    for name in ("models", "sync", "native"):
        (tmp_path / f"{name}.py").write_text("MINE = True\n")
    (tmp_path / "app.py").write_text(
        "import models, sync, native, edge\n"
        "assert models.MINE and sync.MINE and native.MINE\n"
        f"with edge.open(state={str(tmp_path / 's')!r}, offline=True, threads=1) as runtime:\n"
        "    print(runtime.run('spam', 'see you at noon').value)\n"
    )
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "ham"), done.stderr


def test_importing_has_no_side_effects(tmp_path):
    code = (
        "import sys, threading, edge\n"
        "heavy = {'llama_cpp', 'onnxruntime', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert threading.active_count() == 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_the_public_names():
    assert sorted(edge.__all__) == edge.__all__ or set(edge.__all__) == set(dir(edge)) & set(
        edge.__all__
    )
    for name in edge.__all__:
        assert hasattr(edge, name)
    assert issubclass(edge.errors.Busy, EdgeError)
