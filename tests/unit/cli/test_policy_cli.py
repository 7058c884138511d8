"""``edge policy``: what it shows, and what it lets pass."""

import hashlib
import json

import pytest
from typer.testing import CliRunner

from edge.cli.policy import app
from edge.config import assigned_folder
from edge.errors import ConfigError, IntegrityError, PolicyError
from edge.overlay import compile_policy, read_policy
from edge.store.policies import Policies

TEXT = """
ROUTING:
  keep_above: 0.8
  escalate_if: [{condition: "sentiment=='bad'", model: large}]
pools:
  large:
    base_url: https://pool.example/v1
    model: "[bold]large[/bold]"
    price: {input_usd_per_mtok: 1, output_usd_per_mtok: 4}
"""


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "night.yaml"
    path.write_text(TEXT, "utf-8")
    return path


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


def told(*arguments, code=0):
    """Run a command and return what it prints; what it raises is raised."""
    done = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


def test_a_file_is_shown_key_by_key(policy):
    lines = [line.split(None, 1) for line in told("show", policy).splitlines() if line.strip()]
    rows = {key: rest[0].strip() for key, *rest in lines if rest}
    assert rows["routing.keep_above"] == "0.8"
    assert rows["pools.large.model"] == "[bold]large[/bold]"
    assert json.loads(told("show", policy, "--json"))["revision"] == 0


def test_a_compiled_document_is_shown_with_its_revision(policy, tmp_path):
    path = tmp_path / "night.json"
    data = compile_policy(read_policy(TEXT), revision=9, created_at=5.0, restores=7)
    path.write_bytes(data)
    out = told("show", path)
    assert "revision 9, restores revision 7" in out
    assert hashlib.sha256(data).hexdigest() in out
    body = json.loads(told("show", path, "--json"))
    assert (body["revision"], body["created_at"], body["restores"]) == (9, 5.0, 7)
    assert body["sections"]["routing"]["escalate_if"] == [
        {"condition": "sentiment == 'bad'", "model": "large"}
    ]


def test_without_a_file_the_policy_in_force_is_shown(state):
    assert "No policy is in force" in told("show", "--state", state)
    assert not state.exists()
    state.mkdir()
    data = compile_policy(read_policy(TEXT), revision=4, created_at=5.0)
    with Policies.open(state) as policies:
        assert "No policy is in force" in told("show", "--state", state)
        policies.set_trust(None, None, stopped={"tasks": ["spam"]}, tightened=True)
        out = told("show", "--state", state)
        assert "stopped tasks: spam" in out
        assert "nothing new leaves" in out
        body = json.loads(told("show", "--state", state, "--json"))
        assert (body["stopped"]["tasks"], body["tightened"]) == (["spam"], True)
        policies.activate(
            revision=4, document=data, stopped={"tools": ["pay"]}, at=6.0, tightened=True
        )
    out = told("show", "--state", state)
    assert "revision 4" in out
    assert "stopped tools: pay" in out
    assert "expired" in out
    body = json.loads(told("show", "--state", state, "--json"))
    assert (body["revision"], body["activated_at"], body["tightened"]) == (4, 6.0, True)
    assert body["stopped"] == {"models": [], "tools": ["pay"], "tasks": []}


def test_a_policy_that_fits_is_told_so(policy, state):
    assert "night.yaml fits pack kiosk: it changes 6 of 6 tasks." in told(
        "verify", policy, "--state", state
    )
    body = json.loads(told("verify", policy, "--state", state, "--json"))
    assert body["pack"] == "kiosk"
    assert "spam" in body["changed"]
    policy.write_text("tasks: {spam: {routing: {keep_above: 0.99}}}", "utf-8")
    assert json.loads(told("verify", policy, "--state", state, "--json"))["changed"] == ["spam"]
    assert not state.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("routing: {keep_abov: 1}", "night.yaml is wrong at routing.keep_abov: unknown key"),
        (
            "tasks: {spam: {model: gone}}",
            "Task spam .* needs .* head, but there is no model 'gone'",
        ),
        ("tasks: {spam: {model: minilm-l6-int8}}", "minilm-l6-int8 is of kind encoder"),
        ("routing: {default_model: gone}", "default model of pack kiosk is 'gone'"),
        ("tasks: {gone: {model: sms-spam-head}}", "task 'gone', which is unknown"),
        ("models: {m: {folder: /nowhere}}", "Model m of pack kiosk is not in /nowhere"),
        ("routing: {pool: gone}", "pool 'gone'"),
        ("routing: {escalate_if: [{condition: age < 5}]}", "age is not a name"),
        ('{"format":"edge-policy-1"}', "policy document .* at revision: "),
    ],
)
def test_one_that_does_not_fit_is_refused(policy, state, text, words):
    policy.write_text(text, "utf-8")
    with pytest.raises((ConfigError, PolicyError), match=words):
        told("verify", policy, "--state", state)


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_file_that_is_not_there(tmp_path, command):
    with pytest.raises(ConfigError, match=r"gone\.yaml cannot be read"):
        told(command, tmp_path / "gone.yaml")


def test_an_assigned_model_may_still_be_on_its_way(policy, state):
    manifest = {
        "name": "night-head",
        "kind": "head",
        "engine": "head",
        "licence": "none",
        "encoder": {"name": "minilm-l6-int8", "sha256": "0" * 64},
        "files": [{"path": "w", "role": "weights", "sha256": "0" * 64, "bytes": 1}],
    }
    raw = json.dumps(manifest).encode()
    digest = hashlib.sha256(raw).hexdigest()
    policy.write_text(
        f"models: {{night-head: {{digest: {digest}}}}}\n"
        "tasks: {spam: {model: night-head}}\nrouting: {default_model: night-head}",
        "utf-8",
    )
    assert "night-head is not here yet" in told("verify", policy, "--state", state)
    folder = assigned_folder(state, "night-head", digest)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(raw)
    assert json.loads(told("verify", policy, "--state", state, "--json"))["awaited"] == []
    (folder / "manifest.json").write_bytes(raw + b" ")
    with pytest.raises(IntegrityError, match=r"night-head .* is not the assigned one"):
        told("verify", policy, "--state", state)
