"""A fleet's policy over the shipped pack: switched under way, refused, stopped, killed half-way."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

import edge
from edge.cli.main import main
from edge.cloud.pool import Pool
from edge.config import assigned_folder
from edge.errors import (
    ConfigError,
    IntegrityError,
    LoadError,
    PolicyError,
    StoreError,
    VersionRollback,
)
from edge.overlay import compile_policy, read_policy
from edge.runtime import Runtime
from edge.store.policies import Policies
from edge.task import Pack

MODELS = Path(__file__).resolve().parents[2] / "models"
HAM = "see you at noon then"
JAZZ = "play some jazz by miles davis"
CARD = "my card was swallowed by the machine"
STRICT = {"tasks": {"spam": {"routing": {"keep_above": 1.0, "below": "abstain"}}}}
LAX = {"tasks": {"spam": {"routing": {"keep_above": 0.5, "below": "abstain"}}}}


def document(revision, sections):
    policy = read_policy(json.dumps(sections))
    return compile_policy(policy, revision=revision, created_at=1.0)


def opened(folder, **options):
    return edge.open(state=folder, offline=True, threads=1, **options)


@pytest.fixture
def runtime(tmp_path):
    with opened(tmp_path / "state") as found:
        yield found


def trace_of(runtime, result):
    return runtime.traces.get(result.trace_id)


def test_a_policy_changes_what_is_kept_and_outlives_the_process(runtime, tmp_path):
    before = runtime.run("spam", HAM)
    assert (before.route, trace_of(runtime, before)["policy"]) == ("local", 0)
    assert runtime.policy_revision == 0
    runtime.activate(document(3, STRICT), trust={"root": b"r"}, etag='"1.1.1"')
    after = runtime.run("spam", HAM)
    assert (after.route, after.value) == ("abstained", None)
    assert after.reasons == (edge.Reason.LOW_CONFIDENCE,)
    assert (trace_of(runtime, after)["policy"], runtime.policy_revision) == (3, 3)
    assert runtime.run("support_intent", CARD).value == "card_swallowed"
    assert [row["policy"] for row in runtime.traces.after(1, 9)] == [3, 3]
    runtime.close()
    with opened(tmp_path / "state") as again:
        assert again.run("spam", HAM).route == "abstained"
        assert (again.policy_revision, again.policy_problem) == (3, None)
        assert again.policies.etag() == '"1.1.1"'
        assert again.policies.trust() == {"root": b"r"}


def test_a_stopped_task_abstains_and_goes_on_once_it_is_let(runtime):
    runtime.activate(None, stopped={"tasks": ["spam"]})
    result = runtime.run("spam", HAM)
    assert (result.route, result.value, result.model) == ("abstained", None, None)
    assert result.reasons == (edge.Reason.STOPPED,)
    with pytest.raises(PolicyError, match="spam"):
        runtime.decide("spam", HAM)
    assert runtime.run("support_intent", CARD).route == "local"
    runtime.activate(document(1, LAX))  # what is stopped stays so
    assert runtime.run("spam", HAM).reasons == (edge.Reason.STOPPED,)
    runtime.activate(None, stopped={})
    assert runtime.run("spam", HAM).route == "local"


@pytest.mark.parametrize("stopped", [{"task": ["spam"]}, {"tasks": "spam"}])
def test_what_cannot_be_stopped_is_named(runtime, stopped):
    with pytest.raises(edge.errors.InputError, match="Nothing can be stopped"):
        runtime.activate(None, stopped=stopped)
    assert runtime.run("spam", HAM).route == "local"


def test_a_stopped_task_streams_nothing(runtime):
    runtime.activate(None, stopped={"tasks": ["draft"]})
    (last,) = runtime.stream("draft", JAZZ)
    assert (last.text, last.result.route) == ("", "abstained")


@pytest.mark.parametrize("model", ["sms-spam-head", "minilm-l6-int8"])
def test_a_stopped_model_is_no_local_tier(runtime, model):
    runtime.activate(None, stopped={"models": [model]})
    result = runtime.run("spam", HAM)
    assert (result.route, result.value, result.model) == ("deferred", None, None)
    assert result.reasons[0] is edge.Reason.STOPPED
    with pytest.raises(PolicyError, match="stopped"):
        runtime.decide("spam", HAM)
    if model == "minilm-l6-int8":
        with pytest.raises(PolicyError, match=model):
            runtime.embed([HAM])
    assert runtime.run("action", JAZZ).route == "local"


def test_a_stopped_next_tier_is_passed_over(tmp_path):
    task = {"kind": "classify", "model": "sms-spam-head"}
    first = {**task, "routing": {"keep_above": 1.0, "then": "second", "below": "abstain"}}
    pack = tmp_path / "two.yaml"
    tasks = {"first": first, "second": {**task, "routing": {"keep_above": 0.1}}}
    pack.write_text(json.dumps({"name": "two", "version": 1, "tasks": tasks}), "utf-8")
    with opened(tmp_path / "state", pack=pack) as runtime:
        assert edge.Reason.NEXT_TIER in runtime.run("first", HAM).reasons
        runtime.activate(None, stopped={"tasks": ["second"]})
        result = runtime.run("first", HAM)
        assert (result.route, result.reasons) == ("abstained", (edge.Reason.LOW_CONFIDENCE,))


def test_a_call_to_a_denied_or_stopped_tool_is_withheld(runtime):
    assert runtime.run("action", JAZZ).value["intent"] == "PlayMusic"
    runtime.activate(document(1, {"tools": {"PlayMusic": {"allow": False}}}))
    result = runtime.run("action", JAZZ)
    assert (result.route, result.value, result.certified) == ("abstained", None, False)
    assert result.reasons[0] is edge.Reason.TOOL_DENIED
    assert "miles" not in json.dumps(trace_of(runtime, result))
    assert runtime.run("action", "rate dune five stars").reasons[0] is not edge.Reason.TOOL_DENIED
    runtime.activate(document(2, {"tools": {"PlayMusic": {"allow": True}}}))
    assert runtime.run("action", JAZZ).route == "local"
    runtime.activate(None, stopped={"tools": ["PlayMusic"]})
    assert runtime.run("action", JAZZ).reasons[0] is edge.Reason.STOPPED


def test_an_expired_policy_sends_nothing_and_queues(runtime):
    asking = {"routing": {"keep_above": 1.0}, "privacy": {"allow_cloud": "raw"}}
    runtime.activate(document(1, {"tasks": {"spam": asking | {"routing": {"below": "escalate"}}}}))
    runtime.activate(document(2, {"tasks": {"support_intent": asking}}), tightened=True)
    result = runtime.run("support_intent", "colourless green ideas sleep")
    assert (result.route, result.provisional) == ("deferred", True)
    assert edge.Reason.POLICY_EXPIRED in result.reasons
    assert runtime.drain([result.task_id]).waiting == 1
    assert runtime.book.queue.get(result.task_id).error == "policy_expired"
    runtime.activate(None, tightened=False)
    result = runtime.run("support_intent", "colourless green ideas sleep")
    assert edge.Reason.POLICY_EXPIRED not in result.reasons


def test_every_call_goes_by_one_revision_while_policies_change(runtime):
    runtime.run("spam", HAM)
    done, wrong, seen = threading.Event(), [], set()

    def call():
        while not done.is_set():
            result = runtime.run("spam", HAM)
            revision = trace_of(runtime, result)["policy"]
            wanted = "abstained" if revision % 2 else "local"
            seen.add(revision)
            if result.route != wanted:
                wrong.append((revision, result))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for revision in range(1, 21):
        runtime.activate(document(revision, STRICT if revision % 2 else LAX), check=False)
        assert runtime.policy_revision == revision
        time.sleep(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(seen) > 5
    last = runtime.run("spam", HAM)
    assert (last.route, trace_of(runtime, last)["policy"]) == ("local", 20)


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        (lambda: b"{}", ConfigError, "policy document"),
        (lambda: document(2, LAX)[:-9], ConfigError, "policy document"),
        (lambda: document(1, LAX), VersionRollback, "older than revision 5"),
        (lambda: document(5, LAX), VersionRollback, "another policy of revision 5"),
        (
            lambda: document(6, {"tasks": {"spam": {"model": "no-such-model"}}}),
            ConfigError,
            "no-such-model",
        ),
        (
            lambda: document(6, {"tasks": {"spam": {"model": "actions-q8_0"}}}),
            ConfigError,
            "is of kind decoder",
        ),
        (
            lambda: document(
                6,
                {
                    "tasks": {
                        "spam": {"samples": ["word " * 9], "input": {"max_chars": 4}},
                        "action": {"samples": ["la " * 4000]},
                    }
                },
            ),
            PolicyError,
            "self-check of task action",
        ),
        (
            lambda: document(6, {"models": {"sms-spam-head": {"digest": "0" * 64}}}),
            ConfigError,
            "not on this device",
        ),
    ],
)
def test_a_policy_that_cannot_be_is_refused_and_the_old_one_stays(runtime, made, error, words):
    runtime.activate(document(5, STRICT), trust={"root": b"r"}, etag="a")
    with pytest.raises(error, match=words):
        runtime.activate(made(), trust={"root": b"new"}, etag="b", stopped={"tasks": ["spam"]})
    result = runtime.run("spam", HAM)
    assert result.reasons == (edge.Reason.LOW_CONFIDENCE,)
    assert trace_of(runtime, result)["policy"] == 5
    stored = runtime.policies.active()
    assert (stored.document, runtime.policies.etag()) == (document(5, STRICT), "a")
    (refusal,) = runtime.policies.refusals()
    assert words.split()[0] in refusal.reason


def assigned(state, *, golden=None, harm=False):
    """Lay a copy of the spam model, with golden cases, where the fleet's agent would."""
    work = state / "fetched"
    shutil.copytree(MODELS / "sms-spam-head", work)
    manifest = json.loads((work / "manifest.json").read_text("utf-8"))
    if golden is not None:
        raw = json.dumps(golden).encode()
        (work / "golden.json").write_bytes(raw)
        digest = hashlib.sha256(raw).hexdigest()
        manifest["files"].append(
            {"path": "golden.json", "role": "golden", "sha256": digest, "bytes": len(raw)}
        )
    (work / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    digest = hashlib.sha256((work / "manifest.json").read_bytes()).hexdigest()
    if harm:
        weights = next(work.glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    work.rename(assigned_folder(state, "sms-spam-head", digest))
    return {"models": {"sms-spam-head": {"digest": digest}}}


def here(runtime):
    return [each.name for each in runtime.models.residency.report()]


@pytest.fixture
def assigning(tmp_path):
    (tmp_path / "state" / "models").mkdir(parents=True)
    with opened(tmp_path / "state") as found:
        yield found, tmp_path / "state"


def test_a_model_that_another_takes_the_place_of_leaves_and_the_others_stay(assigning):
    runtime, state = assigning
    old = runtime.run("spam", HAM)
    assert here(runtime) == ["minilm-l6-int8", "sms-spam-head"]
    with (
        runtime.models.encoder("minilm-l6-int8") as encoder,
        runtime.models.head("sms-spam-head") as head,
    ):
        runtime.activate(document(1, assigned(state, golden=[{"text": HAM, "value": "ham"}])))
        assert here(runtime).count("sms-spam-head") == 2  # one is still in use
    assert here(runtime).count("sms-spam-head") == 1
    with (
        runtime.models.encoder("minilm-l6-int8") as same,
        runtime.models.head("sms-spam-head") as other,
    ):
        assert same is encoder
        assert other is not head
    assert runtime.run("spam", HAM).value == old.value
    runtime.activate(document(2, {}))
    assert "sms-spam-head" not in here(runtime)
    assert runtime.run("spam", HAM).value == old.value


@pytest.mark.parametrize(
    ("golden", "harm", "error", "words"),
    [
        ([{"text": HAM, "value": "spam"}], False, PolicyError, "golden case"),
        ([{"text": HAM, "value": "spam", "task": "other"}], False, None, None),
        ([{"text": 3}], False, PolicyError, "cannot be read"),
        ({"text": HAM}, False, PolicyError, "cannot be read"),
        (None, True, PolicyError, "sha256"),
    ],
)
def test_a_model_must_answer_its_golden_cases(assigning, golden, harm, error, words):
    runtime, state = assigning
    policy = document(1, assigned(state, golden=golden, harm=harm))
    if error is None:
        runtime.activate(policy)
        assert runtime.policy_revision == 1
        return
    with pytest.raises(error, match=words):
        runtime.activate(policy)
    assert runtime.policy_revision == 0
    assert runtime.run("spam", HAM).value == "ham"


def test_a_lower_cap_counts_at_once(runtime):
    assert runtime.book.ledger.remaining_microusd() == 1_000_000
    hold = runtime.book.ledger.reserve("t", task="spam", pool="p", worst_case_microusd=900_000)
    runtime.activate(document(1, {"budget": {"cap_usd": 0.5}}))
    assert runtime.book.ledger.remaining_microusd() == 0
    with pytest.raises(edge.errors.BudgetExceeded):
        runtime.book.ledger.reserve("u", task="spam", pool="p", worst_case_microusd=1)
    assert runtime.book.ledger.hold(hold.id).state == "reserved"
    runtime.activate(document(2, {"budget": {"cap_usd": 2, "period": "day"}}))
    assert runtime.book.ledger.remaining_microusd() == 1_100_000


ACTIVATING = """
import sys
from itertools import count
from pathlib import Path
import edge
from edge.overlay import compile_policy, read_policy

lines = '{"tasks": {"spam": {"routing": {"keep_above": %s, "below": "abstain"}}}}'
with edge.open(state=sys.argv[1], offline=True, threads=1) as runtime:
    for revision in count(runtime.policy_revision + 1):
        policy = read_policy(lines % (1.0 if revision % 2 else 0.5))
        runtime.activate(
            compile_policy(policy, revision=revision, created_at=1.0),
            trust={"targets": b"%d" % revision}, etag=str(revision), check=False,
        )
        print(revision, flush=True)
        if len(sys.argv) > 2:
            break
"""


def test_another_process_is_followed_by_the_next_call(runtime, tmp_path):
    assert runtime.run("spam", HAM).route == "local"
    command = [sys.executable, "-c", ACTIVATING, str(tmp_path / "state"), "once"]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    result = runtime.run("spam", HAM)
    assert (result.route, trace_of(runtime, result)["policy"]) == ("abstained", 1)
    with Policies.open(tmp_path / "state") as other:
        other.set_trust(None, None, stopped={"tasks": ["spam"]}, tightened=False)
    assert runtime.run("spam", HAM).reasons == (edge.Reason.STOPPED,)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_kill_while_a_policy_is_activated_leaves_one_of_both(tmp_path):
    state = tmp_path / "state"
    for wait_ms in (5, 17, 31):
        child = subprocess.Popen(
            [sys.executable, "-c", ACTIVATING, str(state)], stdout=subprocess.PIPE, text=True
        )
        said = int(child.stdout.readline())
        time.sleep(wait_ms / 1e3)
        os.kill(child.pid, signal.SIGKILL)
        said = max([said, *map(int, child.stdout.read().split("\n")[:-1])])
        child.stdout.close()
        child.wait()
        with opened(state) as runtime:
            revision = runtime.policy_revision
            assert (revision in {said, said + 1}, runtime.policy_problem) == (True, None)
            assert runtime.policies.trust() == {"targets": b"%d" % revision}
            assert runtime.policies.etag() == str(revision)
            result = runtime.run("spam", HAM)
            assert result.route == ("abstained" if revision % 2 else "local")


def test_a_stored_policy_that_no_longer_loads_gives_way_and_is_named(tmp_path, capsys, monkeypatch):
    state = tmp_path / "state"
    with Policies.open(state) as policies:
        policies.activate(revision=1, document=document(1, STRICT), stopped={}, at=1.0)
        policies.activate(revision=2, document=b"of a later version", stopped={}, at=2.0)
    with opened(state) as runtime:
        assert "revision 2" in runtime.policy_problem
        assert runtime.policy_revision == 1
        assert runtime.run("spam", HAM).route == "abstained"
        runtime.policies.activate(revision=3, document=b"later still", stopped={}, at=3.0)
        assert runtime.run("spam", HAM).route == "abstained"  # the one in force stays
        assert "revision 3" in runtime.policy_problem
    with opened(state) as runtime:
        assert runtime.policy_revision == 0
        assert runtime.run("spam", HAM).route == "local"
    monkeypatch.setattr(sys, "argv", ["edge", "doctor", "--state", str(state), "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    told = json.loads(capsys.readouterr().out)
    assert end.value.code == 1
    assert any("revision 3" in problem for problem in told["problems"])
    assert (told["policy"]["revision"], told["policy"]["stored_revision"]) == (0, 3)
    with opened(state) as runtime:
        runtime.activate(document(4, STRICT))
        assert (runtime.policy_revision, runtime.policy_problem) == (4, None)


def test_an_apps_own_policy_wins_but_not_over_what_is_stopped(tmp_path):
    written = tmp_path / "own.yaml"
    written.write_text("TASKS: {spam: {routing: {keep_above: 1.0, below: abstain}}}\n", "utf-8")
    compiled = tmp_path / "own.json"
    compiled.write_bytes(document(7, STRICT))
    state = tmp_path / "state"
    with Policies.open(state) as policies:
        policies.activate(revision=9, document=document(9, LAX), stopped={}, at=1.0)
    for path, revision in ((written, 0), (compiled, 7)):
        with opened(state, policy=path) as runtime:
            assert runtime.policy_revision == revision
            assert runtime.run("spam", HAM).reasons == (edge.Reason.LOW_CONFIDENCE,)
            with pytest.raises(ConfigError, match="of its own"):
                runtime.activate(document(10, LAX))
            runtime.activate(None, stopped={"tasks": ["spam"]})
            assert runtime.run("spam", HAM).reasons == (edge.Reason.STOPPED,)
            runtime.activate(None, stopped={})
    with opened(state) as runtime:
        assert runtime.policy_revision == 9
    with pytest.raises(ConfigError, match="cannot be read"):
        opened(state, policy=tmp_path / "gone.yaml")


def test_offline_a_hub_is_left_alone(tmp_path):
    with opened(tmp_path / "state", hub="https://hub.example") as runtime:
        assert runtime.run("spam", HAM).route == "local"


def test_no_room_now_is_no_refusal(runtime, monkeypatch):
    def full(*_):
        raise edge.errors.Busy("There is no room for the model minilm-l6-int8 now.")

    policy = document(1, {"tasks": {"spam": {"samples": [HAM]}}})
    with monkeypatch.context() as patch:
        patch.setattr("edge.local.LocalModels.draft", full)
        with pytest.raises(edge.errors.Busy):
            runtime.activate(policy)
    assert (runtime.policy_revision, runtime.policies.refusals()) == (0, [])
    runtime.activate(policy)
    assert runtime.policy_revision == 1


def test_a_damaged_model_keeps_no_policy_out_that_does_not_change_it(assigning):
    runtime, state = assigning
    damaged = assigned(state, harm=True)
    runtime.activate(document(1, damaged), check=False)
    runtime.activate(document(2, damaged | {"routing": {"keep_above": 0.9}}))
    assert runtime.policy_revision == 2
    with pytest.raises(PolicyError, match="self-check of task spam"):
        runtime.activate(document(3, damaged | {"tasks": {"spam": {"samples": [HAM]}}}))
    runtime.activate(document(3, {}))
    assert runtime.run("spam", HAM).value == "ham"


def test_a_damaged_model_refuses_with_its_own_error_later_too(assigning):
    runtime, state = assigning
    runtime.activate(document(1, assigned(state, harm=True)), check=False)
    with pytest.raises((IntegrityError, LoadError)):
        runtime.run("spam", HAM)
    (trace,) = runtime.traces.latest(1)
    assert (trace["route"], trace["policy"]) == ("error", 1)


def test_what_cannot_be_read_now_is_followed_by_a_later_call(runtime, tmp_path, monkeypatch):
    def locked():
        raise StoreError("State file policy.db cannot be used: another process keeps it locked.")

    with Policies.open(tmp_path / "state") as other:
        other.activate(revision=1, document=document(1, LAX), stopped={"tasks": ["spam"]}, at=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(runtime.policies, "active", locked)
        assert runtime.run("spam", HAM).route == "local"
    assert runtime.run("spam", HAM).reasons == (edge.Reason.STOPPED,)
    assert (runtime.policy_revision, runtime.policy_problem) == (1, None)


def test_a_change_that_comes_between_writing_and_going_on_is_followed(
    runtime, tmp_path, monkeypatch
):
    write = runtime.policies.activate
    with Policies.open(tmp_path / "state") as other:

        def overtaken(**given):
            write(**given)
            other.activate(
                revision=9, document=document(9, LAX), stopped={"tasks": ["spam"]}, at=2.0
            )

        monkeypatch.setattr(runtime.policies, "activate", overtaken)
        runtime.activate(document(5, LAX))
    assert runtime.policy_revision == 9
    assert runtime.run("spam", HAM).reasons == (edge.Reason.STOPPED,)


def test_a_stop_of_another_process_outlives_an_activation_that_stops_nothing(
    runtime, tmp_path, monkeypatch
):
    write = runtime.policies.activate
    with Policies.open(tmp_path / "state") as other:

        def late(**given):
            other.set_trust(None, None, stopped={"tasks": ["spam"]}, tightened=True)
            write(**given)

        monkeypatch.setattr(runtime.policies, "activate", late)
        runtime.activate(document(5, LAX))
    assert runtime.run("spam", HAM).reasons == (edge.Reason.STOPPED,)
    assert runtime.policies.switches().tightened


def test_a_stop_counts_although_a_model_is_gone_from_the_disk(assigning):
    runtime, state = assigning
    policy = document(1, assigned(state) | LAX)
    runtime.activate(policy)
    runtime.run("spam", HAM)
    for folder in (state / "models").glob("sms-spam-head@*"):
        shutil.rmtree(folder)
    runtime.activate(None, stopped={"tasks": ["spam"]})
    assert runtime.run("spam", HAM).reasons == (edge.Reason.STOPPED,)
    assert runtime.policy_revision == 1
    with Policies.open(state) as other:
        other.set_trust(None, None, stopped={"models": ["sms-spam-head"]}, tightened=False)
    assert runtime.run("spam", HAM).reasons[0] is edge.Reason.STOPPED
    assert (runtime.policy_revision, runtime.policy_problem) == (1, None)


class Asked:
    """A runtime whose pool is in this process; ``on_ask`` runs before it answers."""

    def __init__(self, folder):
        self.texts, self.on_ask = [], lambda: None
        pool = {
            "base_url": "http://pool.example/v1",
            "model": "large",
            "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 10},
        }
        task = {"kind": "classify", "model": "sms-spam-head", "privacy": {"allow_cloud": "raw"}}
        self.pack = Pack.model_validate(
            {
                "name": "p",
                "version": 1,
                "budget": {"cap_usd": "1", "period": "month"},
                "pools": {"default": pool},
                "tasks": {"t": {**task, "routing": {"keep_above": 1.0}}},
            }
        )
        self.folder = folder

    def open(self, *, offline=False):
        return Runtime(self.pack, self.folder, offline=offline, threads=1, open_pool=self._pool)

    def _pool(self, name):
        transport = httpx.MockTransport(self._answer)
        return Pool(name, self.pack.pools[name], env={}, transport=transport)

    def _answer(self, request):
        self.texts.append(json.loads(request.content)["messages"][-1]["content"])
        self.on_ask()
        body = {
            "model": "large",
            "choices": [{"message": {"content": "ham"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 30, "completion_tokens": 1},
        }
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps(body).encode()))


TEXTS = ["are you there", "call me then", "win a prize now"]


@pytest.mark.parametrize(
    ("stop", "why"),
    [
        ({"stopped": {"tasks": ["t"]}}, "stopped"),
        ({"tightened": True}, "policy_expired"),
        ({"document": document(1, {"privacy": {"allow_cloud": "never"}})}, "privacy_never"),
    ],
)
def test_a_stop_under_way_ends_a_drain(tmp_path, stop, why):
    asked = Asked(tmp_path)
    with asked.open(offline=True) as runtime:
        ids = [each.task_id for each in runtime.map("t", TEXTS)]
    with asked.open() as runtime:
        asked.on_ask = lambda: runtime.activate(
            stop.get("document"),
            check=False,
            **{key: value for key, value in stop.items() if key != "document"},
        )
        drained = runtime.drain(ids)
        assert (drained.done, drained.waiting, len(asked.texts)) == (1, 2, 1)
        assert runtime.book.queue.get(ids[2]).error == why


def test_a_stop_under_way_counts_for_the_texts_still_to_come(tmp_path):
    asked = Asked(tmp_path)
    with asked.open() as runtime:
        asked.on_ask = lambda: runtime.activate(
            document(1, {"tasks": {"t": {"routing": {"below": "abstain"}}}}),
            stopped={"tasks": ["t"]},
            check=False,
        )
        first, *rest = runtime.map("t", TEXTS)
        assert first.route == "cloud"
        assert [each.reasons for each in rest] == [(edge.Reason.STOPPED,)] * 2
        assert {trace_of(runtime, each)["policy"] for each in (first, *rest)} == {0}
        assert len(asked.texts) == 1


def test_a_call_to_a_denied_tool_is_not_in_the_queue_either(runtime):
    sections = {
        "tools": {"PlayMusic": {"allow": False}},
        "tasks": {"action": {"routing": {"keep_above": 1.0, "below": "defer"}}},
        "privacy": {"allow_cloud": "raw"},
    }
    runtime.activate(document(1, sections))
    result = runtime.run("action", JAZZ)
    assert (result.value, result.reasons[0]) == (None, edge.Reason.TOOL_DENIED)
    assert runtime.book.queue.get(result.task_id).provisional is None
    other = runtime.run("action", "rate dune five stars")
    assert other.value is not None
    assert runtime.book.queue.get(other.task_id).provisional == other.value
