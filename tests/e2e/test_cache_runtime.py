"""The cache through the public interface: the shipped pack under a policy, and a pool's answers."""

import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import edge
from edge.cloud.pool import Pool
from edge.errors import InputError
from edge.overlay import compile_policy, lay, read_policy
from edge.pack import find_pack, load_pack
from edge.runtime import Runtime
from edge.types import Reason, Route

HAM = "see you at noon then"
JAZZ = "play some jazz by miles davis"
# As an admin writes it.
CACHING = """
CACHING:
  semantic_cache: {enabled: true, similarity_threshold: 0.92, ttl_seconds: 86400}
  exact_cache: {enabled: true, ttl_seconds: 3600}
"""
POOL = """
privacy: {allow_cloud: raw}
pools:
  default:
    base_url: http://pool.example/v1
    model: small
    price: {input_usd_per_mtok: 1, output_usd_per_mtok: 10}
    retries: 0
tasks:
  support_intent: {routing: {keep_above: 1.0}, privacy: {allow_cloud: raw}}
  assistant_intent: {model: null, privacy: {allow_cloud: raw}}
"""
LOST = "I think that I lost my new card yesterday"
LOST_TOO = "I think I lost my new card yesterday"


def compiled(text, revision):
    return compile_policy(read_policy(text), revision=revision, created_at=1.0)


def opened(folder, policy=CACHING):
    (folder / "policy.yaml").write_text(policy, "utf-8")
    return edge.open(state=folder / "state", offline=True, threads=1, policy=folder / "policy.yaml")


class Server:
    """A pool's server in the same process, which always finds the same label."""

    def __init__(self, label):
        self.label = label
        self.asked = 0

    def handle(self, _):
        self.asked += 1
        content = {
            "model": "small-2",
            "choices": [{"message": {"content": self.label}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 30, "completion_tokens": 4},
        }
        return httpx.Response(200, stream=Body(json.dumps(content).encode()))

    def runtime(self, folder, policy=CACHING + POOL, *, offline=False):
        pack = lay(load_pack(find_pack("kiosk")), read_policy(policy))

        def pool(name):
            transport = httpx.MockTransport(self.handle)
            return Pool(name, pack.pools[name], env={}, transport=transport)

        return Runtime(pack, folder, offline=offline, threads=1, open_pool=pool)


class Body(httpx.SyncByteStream):
    def __init__(self, raw):
        self.raw = raw

    def __iter__(self):
        yield self.raw


def test_without_caching_there_is_no_cache(tmp_path):
    with edge.open(state=tmp_path, offline=True, threads=1) as runtime:
        assert [runtime.run("spam", HAM).route for _ in range(2)] == ["local", "local"]
        assert runtime.cache.forget() == 0
    assert not (tmp_path / "cache.db").exists()


def test_an_answer_is_given_again_with_all_that_was_known(tmp_path):
    with opened(tmp_path) as runtime:
        first = runtime.run("spam", HAM)
        again = runtime.run("spam", HAM)
        assert (first.route, again.route) == (Route.LOCAL, Route.CACHE)
        assert again.reasons == (Reason.CACHED,)
        same = ("value", "confidence", "interval", "certified", "model", "device", "task")
        assert [getattr(again, name) for name in same] == [getattr(first, name) for name in same]
        assert (again.cost_microusd, again.tokens_in, again.trace_id == first.trace_id) == (
            *(0, 0, False),
        )
        trace = runtime.traces.get(again.trace_id)
        assert (trace["route"], trace["detail"]["from"]) == ("cache", first.trace_id)
        call = runtime.run("action", JAZZ)
        assert runtime.run("action", JAZZ).value == call.value
        assert runtime.run("action", "play some jazz by john coltrane").route != "cache"
    with opened(tmp_path) as runtime:
        assert runtime.map("spam", [HAM, f"{HAM}!"])[0].route == Route.CACHE


def test_what_is_drawn_or_embedded_is_made_anew(tmp_path):
    with opened(tmp_path) as runtime:
        assert [runtime.run("draft", JAZZ).route for _ in range(2)] == ["local", "local"]


def test_a_stream_gives_a_kept_text_whole(tmp_path):
    policy = CACHING + "tasks: {draft: {sampling: {temperature: 0}}}"
    with opened(tmp_path, policy) as runtime:
        first = list(runtime.stream("draft", JAZZ))
        again = list(runtime.stream("draft", JAZZ))
        assert len(first) > 2
        assert [chunk.text for chunk in again] == [first[-1].result.value, ""]
        assert again[-1].result.route == Route.CACHE
        near = runtime.run("draft", "play some jazz by Miles Davis")
        assert (near.reasons, near.value) == ((Reason.SIMILAR,), first[-1].result.value)


def test_answers_end_with_their_time(tmp_path):
    with opened(tmp_path) as runtime:
        runtime.run("spam", HAM)
        made_earlier(tmp_path, 3_500)
        assert runtime.run("spam", HAM).route == Route.CACHE
        made_earlier(tmp_path, 100)
        assert runtime.run("spam", HAM).route == Route.LOCAL
        assert runtime.run("spam", HAM).route == Route.CACHE


def made_earlier(folder, seconds):
    with sqlite3.connect(folder / "state" / "cache.db") as connection:
        connection.execute("UPDATE answers SET made_at = made_at - ?", (seconds,))
    connection.close()


def test_a_policy_that_changes_the_answer_finds_none_and_one_that_does_not_finds_all(tmp_path):
    with edge.open(state=tmp_path, offline=True, threads=1) as runtime:
        runtime.activate(compiled(CACHING, 1), check=False)
        runtime.run("spam", HAM)
        runtime.activate(compiled(CACHING + "tools: {pay: {allow: false}}", 2), check=False)
        assert runtime.run("spam", HAM).route == Route.CACHE
        stricter = CACHING + "tasks: {spam: {routing: {keep_above: 0.71}}}"
        runtime.activate(compiled(stricter, 3), check=False)
        assert runtime.run("spam", HAM).route == Route.LOCAL
        runtime.activate(compiled("caching: {}", 4), check=False)
        assert runtime.run("spam", HAM).route == Route.LOCAL


def test_nothing_stopped_is_answered_from_the_cache(tmp_path):
    with opened(tmp_path) as runtime:
        runtime.run("spam", HAM)
        played = runtime.run("action", JAZZ)
        runtime.activate(None, stopped={"tasks": ["spam"], "tools": [played.value["intent"]]})
        assert runtime.run("spam", HAM).reasons == (Reason.STOPPED,)
        assert runtime.run("action", JAZZ).reasons[0] == Reason.STOPPED
        runtime.activate(None, stopped={"models": ["sms-spam-head"]})
        assert runtime.run("spam", HAM).value is None
        runtime.activate(None, stopped={})
        assert runtime.run("spam", HAM).route == Route.CACHE


def test_a_pools_answer_is_paid_for_once_and_helps_offline_and_similar_texts(tmp_path):
    server = Server("lost_or_stolen_card")
    with server.runtime(tmp_path) as runtime:
        first = runtime.run("support_intent", LOST)
        assert (first.route, first.cost_microusd > 0) == (Route.CLOUD, True)
        again = runtime.run("support_intent", LOST)
        assert (again.route, again.cost_microusd, again.device) == (Route.CACHE, 0, "cloud")
        assert (again.model, again.confidence, again.certified) == ("small-2", None, False)
    with server.runtime(tmp_path, offline=True) as runtime:
        assert runtime.run("support_intent", LOST).reasons == (Reason.CACHED,)
        near = runtime.run("support_intent", LOST_TOO)
        assert (near.route, near.value) == (Route.CACHE, "lost_or_stolen_card")
        assert near.reasons == (Reason.SIMILAR,)
        assert runtime.traces.get(near.trace_id)["detail"]["similarity"] >= 0.92
        assert runtime.run("support_intent", f"{LOST} at 10").route == Route.DEFERRED
    assert server.asked == 1


@pytest.mark.parametrize(("threshold", "route"), [(0.92, Route.CACHE), (1.0, Route.CLOUD)])
def test_the_threshold_is_kept_to(tmp_path, threshold, route):
    policy = CACHING.replace("0.92", str(threshold)) + POOL
    with Server("lost_or_stolen_card").runtime(tmp_path, policy) as runtime:
        runtime.run("support_intent", LOST)
        assert runtime.run("support_intent", LOST_TOO).route == route


def test_a_task_without_a_local_model_is_looked_up_before_anything_else(tmp_path):
    with Server("yes").runtime(tmp_path) as runtime:
        assert runtime.run("assistant_intent", LOST).route == Route.CLOUD
        assert runtime.run("assistant_intent", LOST_TOO).reasons == (Reason.SIMILAR,)


def test_a_corrected_answer_is_asked_for_again(tmp_path):
    server = Server("lost_or_stolen_card")
    with server.runtime(tmp_path) as runtime:
        runtime.run("support_intent", LOST)
        near = runtime.run("support_intent", LOST_TOO)
        assert near.route == Route.CACHE
        with pytest.raises(InputError):
            runtime.correct(near.trace_id, "no such label")
        assert not runtime.correct(near.trace_id, "card_arrival")
        assert runtime.run("support_intent", LOST_TOO).route == Route.CLOUD
        assert server.asked == 2


def test_a_word_on_a_kept_answer_is_a_label_on_the_first_one(tmp_path):
    with opened(tmp_path) as runtime:
        first = runtime.run("spam", HAM)
        again = runtime.run("spam", HAM)
        runtime.correct(again.trace_id, "spam" if again.value == "ham" else "ham")
        assert runtime.states.labels() == {first.trace_id: (False, "user")}
        assert runtime.run("spam", HAM).route == Route.LOCAL


def test_an_answer_that_an_audit_finds_wrong_is_forgotten(tmp_path):
    policy = CACHING + POOL.replace("keep_above: 1.0", "keep_above: 0.0, audit_rate: 1.0")
    with Server("card_arrival").runtime(tmp_path, policy) as runtime:
        first = runtime.run("support_intent", LOST)
        assert first.route == Route.LOCAL
        assert Reason.AUDITED in first.reasons
        assert runtime.run("support_intent", LOST).route == Route.CACHE
        assert runtime.drain().done == 1
        assert runtime.run("support_intent", LOST).route == Route.LOCAL


def test_no_text_of_an_input_is_in_the_file(tmp_path):
    with Server("lost_or_stolen_card").runtime(tmp_path) as runtime:
        runtime.run("support_intent", LOST)
        runtime.run("support_intent", LOST)
    with sqlite3.connect(tmp_path / "cache.db") as connection:
        (dump,) = connection.execute("SELECT group_concat(answer || hits) FROM answers").fetchone()
    connection.close()
    files = [path.read_bytes() for path in tmp_path.glob("cache.db*")]
    assert dump == '"lost_or_stolen_card"1'
    assert not [raw for raw in files if b"lost my" in raw]


def test_eight_threads_get_what_one_would(tmp_path):
    texts = [f"{HAM} {word}" for word in ("bob", "ann", "tim", "eve")]
    with opened(tmp_path) as runtime:
        wanted = {text: runtime.run("spam", text).value for text in texts[:2]}
        began = time.time()
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: runtime.run("spam", texts[n % 4]), range(160)))
        assert {each.value for each in found} == {*wanted.values()}
        assert sum(each.route == Route.CACHE for each in found) >= 160 - 2 * 8
        rows = runtime.traces.latest(200)
        assert len([row for row in rows if row["at"] >= began]) == 160
        assert runtime.cache.summary()[0]["answers"] == 4
        assert runtime.cache.forget("spam") == 4
