"""The command as people and programs use it."""

import json
import subprocess
import sys

import pytest


def edge(*arguments, state, text=b""):
    return subprocess.run(
        [sys.executable, "-c", "from edge.cli.main import main; main()", *arguments],
        input=text,
        capture_output=True,
        check=False,
        env={"EDGE_STATE": str(state), "EDGE_OFFLINE": "1", "EDGE_THREADS": "1", "PATH": ""},
    )


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
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, arguments, text, words):
    done = edge(*arguments, state=tmp_path, text=text)
    assert done.returncode == 2
    told = " ".join(done.stderr.decode().split())
    assert words in told
    assert "Traceback" not in told


def test_queue_shows_what_waits_and_keeps_it(tmp_path):
    edge("run", "assistant_intent", "what do you get if you cross two whales", state=tmp_path)
    shown = [
        json.loads(line)
        for line in edge("queue", "list", "--json", state=tmp_path).stdout.splitlines()
    ]
    assert [(row["task"], row["state"]) for row in shown] == [("assistant_intent", "waiting")]
    tried = json.loads(edge("queue", "retry", "--json", state=tmp_path).stdout)
    assert tried == {"done": 0, "waiting": 1, "failed": 0}


def test_models_and_doctor(tmp_path):
    names = [
        json.loads(line)["name"]
        for line in edge("models", "list", "--json", state=tmp_path).stdout.splitlines()
    ]
    assert {"minilm-l6-int8", "actions-q8_0", "banking77-head"} <= set(names)
    assert edge("models", "verify", state=tmp_path).returncode == 0
    done = edge("doctor", "--json", state=tmp_path)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["problems"] == []


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
