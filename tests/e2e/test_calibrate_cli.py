"""``edge calibrate`` and ``edge simulate`` over a shipped model, from labels to kept answers."""

import io
import json
import os
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

import edge
from edge.cli.main import main
from edge.confidence.calibration import Calibration

PAGE = Path(__file__).resolve().parents[2] / "docs" / "confidence.md"
TASK = "assistant_intent"


def run(*arguments, state, **env):
    """Run the command in this process; return exit code and what it printed."""
    fixed = {"EDGE_STATE": str(state), "EDGE_OFFLINE": "1", "EDGE_THREADS": "1", "COLUMNS": "80"}
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        patch.dict(os.environ, {**fixed, **env}),
        patch.object(sys, "argv", ["edge", *map(str, arguments)]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def lines():
    """Return the labelled rows that the page on confidence shows."""
    (block,) = re.findall(
        r"^```jsonl requests.jsonl\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    return block.splitlines()


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines()), "utf-8")
    return path


def kept_at(state):
    return state / "calibrations" / f"{TASK}.json"


def test_a_certificate_reaches_the_runtime(tmp_path, rows):
    done = run("calibrate", TASK, rows, "--risk", "0.25", "--json", state=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    made = Calibration.load(kept_at(tmp_path))
    assert told["rows"] == len(lines())
    assert told["fitted_on"] + told["held_back"] == told["rows"]
    assert told["certificate"]["threshold"] == made.certificate(0.25).threshold
    assert told["refusal"] is None
    assert 0.5 < told["error_auroc"] <= 1.0
    assert len(made.reference["similarity"]) == told["held_back"]
    pack = tmp_path / "desk.yaml"
    pack.write_text(
        "name: desk\nversion: 1\ntasks:\n  assistant_intent:\n    kind: classify\n"
        "    model: clinc150-head\n    routing: {risk: 0.25}\n"
    )
    with edge.open(pack, state=tmp_path, offline=True) as runtime:
        sure = runtime.run(TASK, "set a timer for ten minutes")
        unsure = runtime.run(TASK, "how tall was the oldest tree")
    assert (sure.route, sure.certified) == ("local", True)
    assert (unsure.route, unsure.certified) == ("deferred", False)


def test_a_refusal_is_exit_1_and_the_calibration_is_written(tmp_path, rows):
    done = run("calibrate", TASK, rows, "--risk", "0.02", state=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "No certificate for 2 %: not with these labels" in done.stdout
    assert Calibration.load(kept_at(tmp_path)).certificates == ()


def test_what_a_person_reads_fits_eighty_columns(tmp_path, rows):
    done = run("calibrate", TASK, rows, "--risk", "0.25", state=tmp_path)
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    for words in ("error AUROC", "Certificate: keep", "▲ certified", "┃", "$ per 1,000", "25 %"):
        assert words in done.stdout


def test_the_same_rows_make_the_same_calibration(tmp_path, rows):
    for name in "ab":
        run("calibrate", TASK, rows, "--out", tmp_path / name, state=tmp_path)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert not kept_at(tmp_path).exists()


def test_the_picture(tmp_path, rows):
    pytest.importorskip("matplotlib")
    env = {"MPLCONFIGDIR": str(tmp_path)}
    done = run("calibrate", TASK, rows, "--plot", tmp_path / "a.png", state=tmp_path, **env)
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


BAD = {
    "label": (["Line 1 of rows.jsonl has the label 'nap'"], ['{"text": "x", "label": "nap"}', ...]),
    "twice": (["Line 65 of rows.jsonl repeats the text of line 1"], [..., 0]),
    "few": (["rows.jsonl has 5 labelled rows"], [0, 1, 2, 3, 4]),
    "broken": (["Line 2 of rows.jsonl is not JSON"], [0, "{", ...]),
    "long": (
        ["Line 1: ", "characters; the limit is"],
        ['{"text": "%s", "label": null}' % ("x" * 20001), ...],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_exit_2_and_nothing_is_written(name, tmp_path, rows):
    words, shape = BAD[name]
    own = lines()
    made = []
    for part in shape:
        made += own if part is ... else [own[part] if isinstance(part, int) else part]
    rows.write_text("\n".join(made), "utf-8")
    done = run("calibrate", TASK, rows, state=tmp_path)
    assert done.returncode == 2, done.stdout
    assert done.stdout == ""
    for each in words:
        assert each in done.stderr.replace("Line 1 of rows.jsonl: ", "Line 1: ")
    assert not kept_at(tmp_path).exists()


@pytest.mark.parametrize("gold", ["right", "wrong"])
def test_one_class_only_is_exit_2(gold, tmp_path, rows):
    texts = [json.loads(line)["text"] for line in lines()]
    with edge.open(state=tmp_path, offline=True) as runtime:
        answers = [each.value for each in runtime.map(TASK, texts)]
    labels = answers if gold == "right" else [None] * len(texts)
    made = [json.dumps({"text": t, "label": x}) for t, x in zip(texts, labels, strict=True)]
    rows.write_text("\n".join(made), "utf-8")
    done = run("calibrate", TASK, rows, state=tmp_path)
    assert done.returncode == 2
    assert f"All {len(texts)} valid answers are {gold}" in done.stderr
    assert not kept_at(tmp_path).exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing", "{rows}"), "no task named 'nothing'"),
        (("draft", "{rows}"), "kind generate has no right answer"),
        ((TASK, "{rows}", "--risk", "1.5"), "No promise can have risk 1.5"),
        ((TASK, "{rows}", "--plot", "a.svg"), "a.svg is no PNG"),
        ((TASK, "nowhere.jsonl"), "nowhere.jsonl cannot be read"),
        ((TASK, "{rows}", "--risk", "1e-9"), "risk 1e-09 takes more labels than anyone has"),
        ((TASK, "nowhere.jsonl", "--out", "{folder}"), "cannot be written: it is a folder"),
        ((TASK, "nowhere.jsonl", "--out", "{folder}/no/x.json"), "no is not there"),
    ],
)
def test_bad_arguments_are_exit_2(arguments, words, tmp_path, rows):
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    before = sorted(tmp_path.rglob("*"))
    given = (each.format(rows=rows, folder=tmp_path) for each in arguments)
    done = run("calibrate", *given, state=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr.replace("\n", " ")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_goes_away_leaves_nothing_behind(tmp_path, rows):
    out = tmp_path / "out.json"

    def taken(self, _):
        raise IsADirectoryError(21, "Is a directory", str(self))

    with patch.object(Path, "replace", taken):
        done = run("calibrate", TASK, rows, "--out", out, state=tmp_path / "state")
    assert done.returncode == 2
    assert "out.json cannot be written: Is a directory" in done.stderr
    assert not [each for each in tmp_path.iterdir() if each.name.startswith("out.json")]


def test_rows_that_a_head_was_trained_on_do_not_certify_it(tmp_path, rows):
    made = [json.loads(line) for line in lines()]
    own = [{**each, "label": "short" if len(each["text"]) < 24 else "long"} for each in made]
    examples = tmp_path / "own.jsonl"
    examples.write_text("\n".join(map(json.dumps, own)), "utf-8")
    assert run("head", "train", "length", examples, state=tmp_path).returncode == 0
    fresh = [{**each, "text": f"please tell me {each['text']}"} for each in own[8:]]
    shouted = [{**each, "text": each["text"].upper()} for each in own[:8]]
    rows.write_text("\n".join(map(json.dumps, [*shouted, *fresh])), "utf-8")
    done = run("calibrate", "length", rows, state=tmp_path)
    assert done.returncode == 2
    told = " ".join(done.stderr.split())
    assert f"8 of these {len(own)} rows are ones that length-head was made from" in told
    assert "labelled answers of your own traffic" in told
    assert not (tmp_path / "calibrations").exists()
    rows.write_text("\n".join(map(json.dumps, fresh)), "utf-8")
    done = run("calibrate", "length", rows, "--risk", "0.4", state=tmp_path)
    assert "made from" not in done.stderr
    assert run("models", "verify", state=tmp_path).returncode == 0


def test_a_calibration_of_another_model_is_not_lost(tmp_path, rows):
    run("calibrate", TASK, rows, state=tmp_path)
    body = json.loads(kept_at(tmp_path).read_text())
    body["key"]["model_digest"] = "0" * 64
    kept_at(tmp_path).write_text(json.dumps(body))
    before = kept_at(tmp_path).read_bytes()
    done = run("calibrate", TASK, rows, state=tmp_path)
    assert done.returncode == 2
    assert "is a calibration of the model 000000000000" in done.stderr
    assert kept_at(tmp_path).read_bytes() == before
    assert run("calibrate", TASK, rows, "--replace", state=tmp_path).returncode == 1
    assert Calibration.load(kept_at(tmp_path)).key.model_digest != "0" * 64


def test_a_calibration_that_the_pack_names_goes_first(tmp_path, rows):
    carried = tmp_path / "desk.json"
    pack = tmp_path / "desk.yaml"
    pack.write_text(
        "name: desk\nversion: 1\ncalibration: {assistant_intent: desk.json}\n"
        "tasks:\n  assistant_intent: {kind: classify, model: clinc150-head}\n"
    )
    refused = run("calibrate", TASK, rows, "--pack", pack, state=tmp_path)
    assert refused.returncode == 2
    assert f"--out, here {carried}" in " ".join(refused.stderr.split())
    assert not kept_at(tmp_path).exists()
    done = run("calibrate", TASK, rows, "--pack", pack, "--out", carried, state=tmp_path)
    assert done.returncode in {0, 1}, done.stderr
    with edge.open(pack, state=tmp_path, offline=True) as runtime:
        assert runtime.run(TASK, "set a timer for ten minutes").interval is not None


def test_a_damaged_calibration_is_not_lost_silently(tmp_path, rows):
    kept_at(tmp_path).parent.mkdir()
    kept_at(tmp_path).write_text("{")
    done = run("calibrate", TASK, rows, state=tmp_path)
    assert done.returncode == 2
    assert "--replace" in done.stderr
    assert kept_at(tmp_path).read_text() == "{"


DESK = """
name: desk
version: 1
pools:
  default:
    base_url: https://api.example.com/v1
    model: small
    price: {input_usd_per_mtok: 1, output_usd_per_mtok: 1}
tasks:
  assistant_intent:
    kind: classify
    model: clinc150-head
    routing: {keep_above: 0.7, audit_rate: 1.0}
    privacy: {allow_cloud: raw}
"""


@pytest.fixture
def state(tmp_path):
    """Return a state folder with traces, an audit that found an error, and a user's correction."""
    (tmp_path / "desk.yaml").write_text(DESK)
    with edge.open(tmp_path / "desk.yaml", state=tmp_path, offline=True) as runtime:
        found = runtime.map(TASK, [json.loads(line)["text"] for line in lines()])
        kept = [each for each in found if each.route == "local"]
        local = runtime.tasks()[TASK]
        for at, each in enumerate(kept[:10]):
            runtime.oversight.audited(
                local, each.trace_id, right=at > 0, propensity=1.0, rung=0, answers=at, at=float(at)
            )
        runtime.correct(kept[10].trace_id, "yes")
    return tmp_path


def simulated(state, *arguments):
    done = run("simulate", "--pack", state / "desk.yaml", *arguments, "--json", state=state)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_replay_keeps_less_and_pays_more_and_is_the_same_each_time(state):
    same, strict = simulated(state), simulated(state, "--keep-above", "0.99")
    assert same["changed"] == sum(same["prices"].values()) == same["happened"]["deferred"]
    assert same["simulated"]["kept"] == same["happened"]["kept"]
    assert strict["simulated"]["kept"] < same["simulated"]["kept"]
    assert strict["simulated"]["cost_microusd"] > same["simulated"]["cost_microusd"] > 0
    assert strict["happened"]["cost_microusd"] == 0
    assert simulated(state, "--keep-above", "0.99") == strict


def test_a_replay_knows_what_audits_and_users_said(state):
    happened = simulated(state)["happened"]
    assert (happened["judged"], happened["judged_wrong"]) == (1, 1)
    share = happened["right_by_labels"]
    assert (share["tasks"], share["audits"]) == (happened["kept"], 10)
    assert share["value"] == pytest.approx(0.9 * (share["tasks"] - 1) / share["tasks"])


def test_a_replay_under_a_certificate(state, rows):
    nothing = simulated(state, "--risk", "0.25")
    assert nothing["simulated"]["kept"] == 0
    assert "No certificate within 25 %" in nothing["notes"][0]
    run("calibrate", TASK, rows, "--risk", "0.25", state=state)
    certified = simulated(state, "--risk", "0.25")
    threshold = Calibration.load(kept_at(state)).certificate(0.25).threshold
    assert f"{threshold:.4f}" in certified["notes"][0]
    assert 0 < certified["simulated"]["kept"] < certified["tasks"]


TIERS = """
name: tiers
version: 1
tasks:
  assistant_intent: &task
    kind: classify
    model: clinc150-head
    routing: {keep_above: 0.9999, then: again}
    budget: {max_model_calls: 2}
  again: {<<: *task, routing: {keep_above: 0.0}}
"""


def test_drafts_of_the_next_tier_are_left_out_and_counted(state):
    pack = state / "tiers.yaml"
    pack.write_text(TIERS)
    before = simulated(state)
    with edge.open(pack, state=state, offline=True) as runtime:
        found = runtime.map(TASK, [json.loads(line)["text"] for line in lines()])
    above = sum("next_tier" in each.reasons for each in found)
    after = simulated(state)
    assert 0 < above < len(found)
    assert (before["next_tier"], after["next_tier"]) == (0, above)
    assert after["tasks"] == before["tasks"] + len(found) - above
    done = run("simulate", "--pack", state / "desk.yaml", state=state)
    assert f"Asked of the next tier, and left out: {above}." in done.stdout


def test_drafts_of_the_next_tier_alone_cannot_be_replayed(tmp_path):
    pack = tmp_path / "tiers.yaml"
    pack.write_text(TIERS)
    with edge.open(pack, state=tmp_path, offline=True) as runtime:
        assert "next_tier" in runtime.run(TASK, "how deep is the lake").reasons
    done = run("simulate", "--pack", pack, state=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "None of 1 recorded tasks can be replayed" in done.stderr


def test_a_table_for_a_person(state):
    done = run("simulate", "--pack", state / "desk.yaml", state=state)
    for words in ("happened", "simulated", "right of kept, by audits", "interval of 95 %"):
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--keep-above", "0.9", "--risk", "0.1"), "two policies"),
        (("--risk", "2"), "Nothing can be promised at risk 2"),
        ((), "has no traces"),
        (("--task", "spam"), "has no traces of task spam"),
    ],
)
def test_a_replay_of_nothing_is_exit_2(arguments, words, tmp_path):
    done = run("simulate", *arguments, state=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert not (tmp_path / "traces.db").exists()
