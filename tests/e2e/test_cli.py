"""The command as people and programs use it."""

import hashlib
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from edge.errors import ConfigError, InputError, StoreError
from edge.opening import open_runtime


def edge(*arguments, state, text=b"", **env):
    fixed = {"EDGE_STATE": str(state), "EDGE_OFFLINE": "1", "EDGE_THREADS": "1", "PATH": ""}
    return subprocess.run(
        [sys.executable, "-c", "from edge.cli.main import main; main()", *arguments],
        input=text,
        capture_output=True,
        check=False,
        env={**fixed, **env},
    )


def test_the_version(tmp_path):
    done = edge("--version", state=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.split() == [b"edge", version("edge-runtime").encode()]


def test_demo_answers_and_defers_and_prints_the_bill(tmp_path):
    done = edge("demo", state=tmp_path)
    words = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    for wanted in ("card_swallowed", "AddToPlaylist", "deferred", "kept on the device", "p95"):
        assert wanted in words
    rows = [json.loads(line) for line in edge("demo", "--json", state=tmp_path).stdout.splitlines()]
    assert len(rows) >= 12
    assert len({row["task"] for row in rows}) >= 5
    outside = [row for row in rows if "swallow" in row["text"] and "airspeed" in row["text"]]
    assert [row["route"] for row in outside] == ["deferred"]
    assert all(row["cost_microusd"] == 0 for row in rows)


def test_run_reads_lines_and_writes_json_lines(tmp_path):
    done = edge("run", "spam", "-", state=tmp_path, text=b"win a prize now\n\nsee you at noon\r\n")
    assert done.returncode == 0
    assert [json.loads(line)["task"] for line in done.stdout.splitlines()] == ["spam", "spam"]


@pytest.mark.parametrize(
    ("arguments", "text", "words"),
    [
        (("run", "nothing", "hi"), b"", "no task named 'nothing'"),
        (("run", "spam", ""), b"", "is empty"),
        (("run", "spam", "-"), b"\xff\xfe\n", "Line 1 of the input is not valid UTF-8"),
        (("run", "spam", "hi", "--pack", "nope"), b"", "no pack named 'nope'"),
        (("run", "spam", "hi", "--pack", "./x.yaml"), b"", "does not exist"),
        (("head", "train", "a b", "x.jsonl"), b"", "not valid"),
        (("head", "train", "a", "gone.jsonl"), b"", "gone.jsonl"),
        (("models", "verify", "gone"), b"", "gone"),
        (("queue", "retry", "gone"), b"", "Queued task 'gone' does not exist"),
        (("run", "spam", "hi", "--state", ""), b"", "The state folder is empty"),
        (("demo", "--state", ""), b"", "The state folder is empty"),
        (("models", "list", "--state", "~nouser/x"), b"", "The state folder ~nouser/x cannot"),
        (("doctor", "--state", "a" * 5000), b"", "cannot be one"),
        (("run", "spam", "hi", "--pack", "a" * 5000), b"", "no pack named"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, arguments, text, words):
    done = edge(*arguments, state=tmp_path, text=text)
    assert done.returncode == 2
    told = " ".join(done.stderr.decode().split())
    assert words in told
    assert "Traceback" not in told


CLI = f"{sys.executable} -c 'from edge.cli.main import main; main()'"


@pytest.mark.skipif(sys.platform == "win32", reason="redirections of a POSIX shell")
@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("run spam - <&-", 2, "Standard input is closed"),
        ("run spam hi >&-", 2, "Standard output is closed"),
        ("run spam hi >&- 2>&-", 2, ""),
        ("run spam hi >/dev/full", 2, "output cannot be written"),
        ("run spam hi >/dev/full 2>/dev/full", 2, ""),
        ("models list >/dev/full", 2, "output cannot be written"),
        ("doctor >/dev/full", 2, "output cannot be written"),
        ("--help >/dev/full", 2, "output cannot be written"),
        ("models list --json | head -1", 0, ""),
        ("models list | true", 0, ""),
        ("doctor | true", 0, ""),
        ("run nothing hi 2>&1 | true", 2, ""),
    ],
)
def test_streams_that_cannot_be_used(tmp_path, line, code, words):
    if "/dev/full" in line and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    command, _, reader = line.partition(" | ")
    script = f"{{ {CLI} {command}; echo $? >'{tmp_path}/code'; }}" + (f" | {reader}" * bool(reader))
    env = {**os.environ, "EDGE_STATE": str(tmp_path), "EDGE_OFFLINE": "1", "EDGE_THREADS": "1"}
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=False, env=env)
    told = done.stderr.decode()
    assert (tmp_path / "code").read_text() == f"{code}\n", told
    assert told.startswith("error: ") == bool(words)
    assert words in told
    assert len(told.splitlines()) == bool(words)


@pytest.mark.parametrize("tasks", ["{}", "{mood: {kind: classify, model: sms-spam-head}}"])
def test_a_demo_of_a_pack_without_samples(tmp_path, tasks):
    pack = tmp_path / "bare.yaml"
    pack.write_text(f"{{name: bare, version: 1, tasks: {tasks}}}", "utf-8")
    done = edge("demo", "--pack", str(pack), state=tmp_path)
    told = " ".join(done.stderr.decode().split())
    assert (done.returncode, done.stdout) == (2, b"")
    assert "has no samples" in told
    assert "Traceback" not in told


def test_doctor_counts_a_model_that_cannot_be_loaded(tmp_path):
    folder = tmp_path / "models" / "broken"
    folder.mkdir(parents=True)
    (folder / "broken.gguf").write_bytes(b"no model")
    digest = hashlib.sha256(b"no model").hexdigest()
    file = {"path": "broken.gguf", "role": "weights", "sha256": digest, "bytes": 8}
    manifest = {"name": "broken", "kind": "decoder", "engine": "llamacpp", "files": [file]}
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    done = edge("doctor", "--json", state=tmp_path)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert "problem" in found["placements"]["broken"]
    assert [p for p in found["problems"] if p.startswith("model broken: ")] == found["problems"]


def test_a_long_queue_is_listed_and_tried_whole(tmp_path):
    with open_runtime(state=tmp_path, offline=True) as runtime, runtime.book.transaction():
        for number in range(103):
            runtime.book.queue.put(
                "assistant_intent",
                text=f"text {number}",
                payload={},
                reason="offline",
                provisional=None,
                trace_id=f"{number}",
            )
    shown = edge("queue", "list", state=tmp_path).stdout.decode()
    assert shown.splitlines()[-1] == "3 more; --limit 103 shows all."
    for arguments, rows in (((), 103), (("--limit", "2"), 2), (("--limit", str(2**70)), 103)):
        done = edge("queue", "list", "--json", *arguments, state=tmp_path)
        assert len(done.stdout.splitlines()) == rows
    assert "more" not in edge("queue", "list", "--limit", "103", state=tmp_path).stdout.decode()
    tried = json.loads(edge("queue", "retry", "--json", state=tmp_path).stdout)
    assert (tried["waiting"], tried["pausing"]) == (103, 103)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda runtime: runtime.map("spam", "hello"), InputError, "one text, not a list"),
        (lambda runtime: runtime.map("spam", ["hello", ""]), InputError, "is empty"),
        (lambda runtime: runtime.map("nope", []), ConfigError, "no task named 'nope'"),
        (lambda runtime: runtime.embed("abc"), InputError, "one text, not a list"),
        (lambda runtime: runtime.embed([""]), InputError, "is empty"),
        (lambda runtime: runtime.embed(["a", b"b"]), InputError, "not text"),
        (lambda runtime: runtime.embed(["\ud800"]), InputError, "lone surrogate"),
        (lambda runtime: runtime.embed([], model="nope"), ConfigError, "no model 'nope'"),
    ],
)
def test_several_texts_that_cannot_be_answered(tmp_path, call, error, words):
    with open_runtime(state=tmp_path, offline=True) as runtime:
        with pytest.raises(error, match=words):
            call(runtime)
        assert runtime.map("spam", []) == runtime.embed([]) == []


def test_a_closed_runtime_says_so(tmp_path):
    runtime = open_runtime(state=tmp_path, offline=True)
    runtime.close()
    book, traces = runtime.book, runtime.traces
    for use in (book.queue.list, book.queue.counts, book.ledger.spent_microusd, traces.summary):
        with pytest.raises(StoreError, match="the runtime is closed"):
            use()


def test_queue_shows_what_waits_and_keeps_it(tmp_path):
    edge("run", "assistant_intent", "what do you get if you cross two whales", state=tmp_path)
    shown = [
        json.loads(line)
        for line in edge("queue", "list", "--json", state=tmp_path).stdout.splitlines()
    ]
    assert [(row["task"], row["state"]) for row in shown] == [("assistant_intent", "waiting")]
    tried = json.loads(edge("queue", "retry", "--json", state=tmp_path).stdout)
    assert tried.pop("due_at") > 0
    nothing = {"done": 0, "failed": 0, "expired": 0, "cancelled": 0, "stopped": {}}
    assert tried == {**nothing, "waiting": 1, "pausing": 1}
    again = edge("queue", "retry", state=tmp_path).stdout.decode()
    assert re.fullmatch(r"Nothing was due: 1 waits until \d\d:\d\d\.\n", again)


def test_queue_retry_of_named_tasks_leaves_the_others_alone(tmp_path):
    nothing = edge("queue", "retry", state=tmp_path).stdout
    assert nothing == b"Nothing was due.\n"
    lines = b"what do you get if you cross two whales\ncolourless green ideas sleep\n"
    ran = edge("run", "assistant_intent", state=tmp_path, text=lines)
    first, second = (json.loads(line)["task_id"] for line in ran.stdout.splitlines())
    done = edge("queue", "retry", second[:16], state=tmp_path)
    assert done.stdout == b"0 answered, 1 still waiting, 0 given up\n"
    shown = edge("queue", "list", "--json", state=tmp_path).stdout.splitlines()
    attempts = {row["id"]: row["attempts"] for row in map(json.loads, shown)}
    assert attempts == {first: 0, second: 1}


POOLED = """
name: pooled
version: 1
budget: {cap_usd: 1}
pools:
  default:
    base_url: http://127.0.0.1:9/v1
    model: m
    api_key_env: EDGE_TEST_POOL_KEY
    price: {input_usd_per_mtok: 1, output_usd_per_mtok: 1}
tasks:
  intent:
    kind: classify
    model: clinc150-head
    routing: {keep_above: 1.0}
    privacy: {allow_cloud: raw}
"""


def test_a_pool_without_its_key_defers_and_doctor_says_so(tmp_path):
    pack = tmp_path / "pooled.yaml"
    pack.write_text(POOLED, "utf-8")
    with_pack, online = ("--pack", str(pack)), {"EDGE_OFFLINE": "off"}
    done = edge("run", "intent", "wake me up", *with_pack, state=tmp_path, **online)
    result = json.loads(done.stdout)
    assert (done.returncode, result["value"], result["provisional"]) == (0, "alarm", True)
    assert result["reasons"] == ["low_confidence", "pool_misconfigured", "queued"]
    retried = edge("queue", "retry", *with_pack, state=tmp_path, **online)
    assert retried.stdout == (
        b"0 answered, 1 still waiting, 0 given up\n"
        b"Pool default was left alone after that: pool_misconfigured.\n"
    )
    told = edge("doctor", *with_pack, "--json", state=tmp_path)
    assert told.returncode == 1
    (problem,) = json.loads(told.stdout)["problems"]
    assert "EDGE_TEST_POOL_KEY" in problem
    assert "not set" in problem
    fine = edge("doctor", *with_pack, state=tmp_path, EDGE_TEST_POOL_KEY="key")
    assert fine.returncode == 0, fine.stdout


def test_doctor_lists_a_task_on_the_wrong_kind_of_model(tmp_path):
    pack = tmp_path / "wrong.yaml"
    pack.write_text(
        "{name: wrong, version: 1, tasks: {mood: {kind: classify, model: minilm-l6-int8}}}", "utf-8"
    )
    done = edge("doctor", "--pack", str(pack), state=tmp_path)
    told = " ".join(done.stdout.decode().split())
    assert done.returncode == 1
    assert "mood of kind classify needs a model of kind head, but minilm-l6-int8 is" in told
    assert "Nothing is wrong" not in told


def test_a_switch_that_says_neither_yes_nor_no(tmp_path):
    done = edge("run", "spam", "hi", state=tmp_path, EDGE_OFFLINE="maybe")
    assert done.returncode == 2
    assert b"EDGE_OFFLINE is 'maybe'" in done.stderr


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", ["models list", "doctor", "queue list"])
def test_nothing_is_cut_on_a_narrow_terminal(tmp_path, command, columns):
    state = tmp_path / "a-rather-long-name-of-a-folder" / "for-the-state-of-a-kiosk" / "in-a-shop"
    edge("run", "assistant_intent", "colourless green ideas", state=state)
    done = edge(*command.split(), state=state, COLUMNS=str(columns))
    words = done.stdout.decode()
    assert done.returncode == 0, words
    assert max(len(line) for line in words.splitlines()) <= columns
    assert "…" not in words
    wanted = {
        "models list": ("clinc150-head", "accuracy 0.972 over 2236", "2.8 MB", "exact match"),
        "doctor": ("clinc150-head", "remaining $1 ", "Nothing is wrong"),
        "queue list": ("colourless", "waiting"),
    }
    assert not [each for each in wanted[command] if each not in words]
    assert "n 708" not in words
    if command == "doctor":
        assert str(state) in "".join(words.split())


def test_models_and_doctor(tmp_path):
    names = [
        json.loads(line)["name"]
        for line in edge("models", "list", "--json", state=tmp_path).stdout.splitlines()
    ]
    assert {"minilm-l6-int8", "actions-q8_0", "banking77-head"} <= set(names)
    assert edge("models", "verify", state=tmp_path).returncode == 0
    done = edge("doctor", "--json", state=tmp_path)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert (found["problems"], found["native_loop"]) == ([], True)


def test_a_head_is_trained_in_one_command_and_then_answers(tmp_path):
    pairs = [
        *((f"{a} pizza {b}", "food") for a in ("one", "a large", "hot") for b in ("now", "to go")),
        *((f"the train to {c} {d}", "travel") for c in ("rome", "york") for d in ("leaves", "")),
        *((f"{e} rain in {f}", "weather") for e in ("heavy", "no") for f in ("may", "oslo")),
    ]
    examples = tmp_path / "examples.jsonl"
    examples.write_text("".join(json.dumps({"text": t, "label": v}) + "\n" for t, v in pairs))
    done = edge("head", "train", "topic", str(examples), "--json", state=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["rows"] == len(pairs)
    assert report["accuracy"] > 0.5
    answer = json.loads(edge("run", "topic", "two pizzas please", state=tmp_path).stdout)
    assert answer["value"] == "food"
    assert answer["model"] == "topic-head"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "no examples"),
        ('{"text": "a"}\n', "Line 1"),
        ('{"text": "a", "label": "x"}\n[1]\n', "Line 2"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}\n', "same label"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n', "single example"),
        ('{"text": "", "label": "x"}\n{"text": "b", "label": "y"}\n', "empty"),
        ('{"text": "a", "label": "\\ud800"}\n', "surrogate"),
    ],
)
def test_examples_that_cannot_be_learned_from(tmp_path, lines, words):
    examples = tmp_path / "examples.jsonl"
    examples.write_text(lines)
    done = edge("head", "train", "topic", str(examples), state=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr.decode()
    assert not (tmp_path / "tasks").exists()


@pytest.mark.parametrize("command", [(), ("run",), ("queue",), ("head",), ("models",)])
def test_help_is_there(tmp_path, command):
    done = edge(*command, "--help", state=tmp_path)
    assert done.returncode == 0
    assert b"Usage" in done.stdout


def test_queue_drop_gives_up_what_waits(tmp_path):
    for _ in range(2):
        edge("run", "assistant_intent", "what do you get if you cross two whales", state=tmp_path)
    assert edge("queue", "drop", state=tmp_path).returncode == 2
    first = json.loads(edge("queue", "list", "--json", state=tmp_path).stdout.splitlines()[0])
    assert b"1 dropped" in edge("queue", "drop", first["id"][:8], state=tmp_path).stdout
    assert edge("queue", "drop", "nosuch", state=tmp_path).returncode == 2
    done = edge("queue", "drop", "--all", "--json", state=tmp_path)
    assert json.loads(done.stdout) == {"dropped": 1}


@pytest.mark.parametrize(
    ("name", "words"), [("banking77", "banking77-head"), ("sms-spam", "sms-spam"), ("spam", "task")]
)
def test_a_head_cannot_take_a_shipped_name(tmp_path, name, words):
    examples = tmp_path / "examples.jsonl"
    examples.write_text('{"text": "a", "label": "x"}\n')
    done = edge("head", "train", name, str(examples), state=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr.decode()
