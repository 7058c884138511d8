"""The cache: what was kept comes back, for as long as it may, and within its bounds."""

import sqlite3
import stat
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import StoreError
from edge.store.cache import FILE, MAX_ANSWER_CHARS, Cache, Kept
from edge.store.nearest import Nearest

DAY = 86_400.0


def kept(text="a", *, key="k", **changes):
    facts = {
        "task": "spam",
        "value": "ham",
        "confidence": 0.9,
        "interval": (0.8, 0.95),
        "certified": True,
        "route": "local",
        "tier": "spam",
        "model": "head",
        "device": "cpu",
        "trace_id": f"trace of {text}",
        "policy": 3,
    }
    return Kept(key=key, input_sha256=text, **(facts | changes))


def unit(*numbers):
    vector = np.array(numbers, np.float32)
    return vector / np.linalg.norm(vector)


def same(cache, text="a", *, key="k", at=10.0, ttl=DAY):
    return cache.same(key, text, since=at - ttl, until=at)


def similar(cache, vector, *, key="k", marks=0, threshold=0.92, at=10.0, ttl=DAY):
    found = cache.similar(key, vector, marks=marks, threshold=threshold, since=at - ttl, until=at)
    return found and (found[0].input_sha256, found[1])


@pytest.fixture
def cache(tmp_path):
    opened = Cache(tmp_path)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "value", ["ham", {"intent": "Play", "n": [1, None]}, 0.5, True, "née", "\ud800"]
)
@pytest.mark.parametrize("interval", [None, (0.25, 0.75)])
def test_all_comes_back_but_the_vector(cache, value, interval):
    put = kept(value=value, interval=interval, confidence=None, vector=unit(1, 2), marks=7)
    assert cache.put(put, at=5.0, ttl_s=60)
    found = same(cache)
    assert found.seq == 1
    assert found == kept(value=value, interval=interval, confidence=None, seq=1, made_at=5.0)


def test_nothing_is_found_under_another_key_or_text(cache):
    cache.put(kept(), at=5.0, ttl_s=60)
    assert same(cache, key="other") is None
    assert same(cache, "b") is None
    assert same(cache).value == "ham"


@pytest.mark.parametrize(
    ("at", "there"), [(5.0, True), (14.9, True), (15.0, False), (99.0, False), (4.9, False)]
)
def test_an_answer_is_given_until_it_is_too_old_and_not_before_it_was_kept(cache, at, there):
    cache.put(kept(vector=unit(1, 0)), at=5.0, ttl_s=10)
    assert (same(cache, at=at, ttl=10) is not None) is there
    assert (similar(cache, unit(1, 0), at=at, ttl=10) is not None) is there


def test_a_later_answer_to_the_same_text_takes_the_place_of_an_earlier_one(cache):
    cache.put(kept(vector=unit(1, 0)), at=1.0, ttl_s=60)
    assert similar(cache, unit(1, 0)) == ("a", 1.0)
    cache.put(kept(value="spam", vector=unit(0, 1)), at=2.0, ttl_s=60)
    assert same(cache).value == "spam"
    assert similar(cache, unit(1, 0)) is None
    assert similar(cache, unit(0, 1)) == ("a", 1.0)
    assert cache.inspect()["rows"]["answers"] == 1


def test_the_nearest_counts_and_only_from_the_threshold_on(cache):
    for text, vector in {"a": unit(1, 0), "b": unit(1, 1), "c": unit(0, 1)}.items():
        cache.put(kept(text, vector=vector), at=1.0, ttl_s=60)
    assert similar(cache, unit(1, 0.9)) == ("b", 0.999)
    assert similar(cache, unit(1, 0.1)) == ("a", 0.995)
    assert similar(cache, unit(1, 0.1), threshold=0.995) == ("a", 0.995)
    assert similar(cache, unit(1, 0.1), threshold=0.996) is None
    assert similar(cache, unit(-1, -1), threshold=0.01) is None
    assert similar(cache, unit(3, 3), threshold=1.0) == ("b", 1.0)


def test_other_marks_are_never_similar(cache):
    cache.put(kept("ten", vector=unit(1, 0), marks=10), at=1.0, ttl_s=60)
    cache.put(kept("hundred", vector=unit(1, 0.1), marks=100), at=1.0, ttl_s=60)
    assert similar(cache, unit(1, 0), marks=10) == ("ten", 1.0)
    assert similar(cache, unit(1, 0), marks=100) == ("hundred", 0.995)
    assert similar(cache, unit(1, 0), marks=1) is None


def test_an_answer_without_a_vector_is_only_for_the_same_text(cache):
    cache.put(kept(), at=1.0, ttl_s=60)
    assert not cache.has_vectors("k")
    assert similar(cache, unit(1, 0), threshold=0.01) is None
    cache.put(kept("b", vector=unit(1, 0)), at=1.0, ttl_s=60)
    assert cache.has_vectors("k")
    assert not cache.has_vectors("other")


def test_what_another_process_keeps_and_forgets_is_seen(cache, tmp_path):
    other = Cache(tmp_path)
    assert not cache.has_vectors("k")
    other.put(kept("a", vector=unit(1, 0)), at=1.0, ttl_s=60)
    other.put(kept("b", vector=unit(1, 0.3)), at=1.0, ttl_s=60)
    assert similar(cache, unit(1, 0)) == ("a", 1.0)
    assert other.forget_trace("trace of a") == 1
    assert similar(cache, unit(1, 0)) == ("b", 0.958)
    other.forget()
    other.put(kept("c", vector=unit(0, 1)), at=1.0, ttl_s=60)
    assert similar(cache, unit(1, 0)) is None
    assert similar(cache, unit(0, 1)) == ("c", 1.0)
    other.close()


def test_forgetting_a_task_an_answer_or_all(cache):
    assert cache.forget() == 0
    cache.put(kept("a"), at=1.0, ttl_s=60)
    cache.put(kept("b", task="home"), at=1.0, ttl_s=60)
    cache.put(kept("c", task="home"), at=1.0, ttl_s=60)
    assert cache.of_trace("trace of b").task == "home"
    assert cache.forget_trace("trace of b") == 1
    assert cache.of_trace("trace of b") is None
    assert cache.forget("home") == 1
    assert same(cache).value == "ham"
    assert cache.forget() == 1
    assert same(cache) is None


def test_asking_for_a_trace_or_forgetting_makes_no_file(cache, tmp_path):
    assert (cache.of_trace("x"), cache.forget("spam"), cache.forget_trace("x")) == (None, 0, 0)
    assert not (tmp_path / FILE).exists()


def test_the_least_recently_used_leave_beyond_the_rows(tmp_path):
    cache = Cache(tmp_path, max_rows=3)
    for at, text in enumerate("abcde"):
        cache.put(kept(text), at=float(at), ttl_s=DAY)
    cache.used(same(cache, "a").seq, at=9.0)
    assert cache.prune(9.0) == 2
    assert [text for text in "abcde" if same(cache, text)] == ["a", "d", "e"]
    assert cache.summary()[0]["hits"] == 1
    cache.close()


def test_the_least_recently_used_leave_beyond_the_bytes(tmp_path):
    cache = Cache(tmp_path, max_bytes=25_000)
    for at, text in enumerate("abcd"):
        cache.put(kept(text, value="x" * 10_000), at=float(at), ttl_s=DAY)
    cache.prune(9.0)
    assert [text for text in "abcd" if same(cache, text)] == ["c", "d"]
    assert cache.summary()[0]["bytes"] <= 25_000
    cache.close()


def test_the_bounds_hold_without_being_asked_for(tmp_path):
    cache = Cache(tmp_path, max_rows=50)
    for number in range(900):
        vector = unit(1, number)
        cache.put(kept(str(number), vector=vector), at=float(number), ttl_s=DAY)
        assert similar(cache, vector, threshold=0.5, at=float(number)) is not None
    assert cache.inspect()["rows"]["answers"] <= 50 + 256
    assert sum(map(len, cache._nearest.values())) <= 2 * 50 + 256
    cache.close()


def test_what_has_expired_or_comes_from_the_future_leaves(cache):
    cache.put(kept("old"), at=1.0, ttl_s=5)
    cache.put(kept("good"), at=1.0, ttl_s=60)
    cache.put(kept("future"), at=99.0, ttl_s=60)
    assert cache.prune(20.0) == 2
    assert same(cache, "good", at=20.0) is not None


def test_a_very_long_answer_is_not_kept(cache):
    assert not cache.put(kept(value="x" * MAX_ANSWER_CHARS), at=1.0, ttl_s=60)
    assert same(cache) is None


def test_the_file_holds_no_text_of_an_input(cache, tmp_path):
    cache.put(kept("0a" * 32, vector=unit(1, 2)), at=1.0, ttl_s=60)
    with sqlite3.connect(tmp_path / FILE) as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(answers)")]
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    connection.close()
    assert not {"text", "input"} & {*names}
    assert mode == "wal"
    if sys.platform != "win32":
        assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_a_foreign_file_is_an_error_and_stays_as_it_is(tmp_path):
    (tmp_path / FILE).write_bytes(b"mine" * 300)
    cache = Cache(tmp_path)
    with pytest.raises(StoreError, match="not a database"):
        same(cache)
    assert (tmp_path / FILE).read_bytes() == b"mine" * 300
    cache.close()


def test_after_closing_it_says_so(tmp_path):
    for used in (False, True):
        cache = Cache(tmp_path)
        if used:
            cache.put(kept(), at=1.0, ttl_s=60)
        cache.close()
        cache.close()
        with pytest.raises(StoreError, match="the runtime is closed"):
            same(cache)


def test_eight_threads_share_it(cache):
    def work(number):
        for turn in range(40):
            text = f"{number} {turn}"
            vector = unit(1 + turn, 1 + number)
            cache.put(kept(text, value=text, vector=vector), at=1.0, ttl_s=60)
            assert same(cache, text).value == text
            assert similar(cache, vector, threshold=0.9)[1] >= 0.99
            cache.used(same(cache, text).seq, at=2.0)
            if turn % 10 == 9:
                assert cache.forget_trace(f"trace of {text}") == 1
                assert same(cache, text) is None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert cache.inspect()["rows"]["answers"] == 8 * 36


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(-5, 5), min_size=3, max_size=3).filter(any),
            st.integers(0, 1),
            st.integers(0, 9),
        ),
        max_size=90,
    ),
    st.lists(st.integers(-5, 5), min_size=3, max_size=3).filter(any),
    st.sets(st.integers(1, 90)),
)
def test_the_index_finds_what_comparing_each_finds(rows, asked, dropped):
    nearest = Nearest()
    entries = [
        (seq, marks, float(at), unit(*vector)) for seq, (vector, marks, at) in enumerate(rows, 1)
    ]
    for start in range(0, len(entries), 7):
        *facts, vectors = zip(*entries[start : start + 7], strict=True)
        nearest.add(*facts, np.array(vectors))
    for seq in dropped:
        nearest.drop(seq)
    cosines = [
        round(float(vector @ unit(*asked)), 3)
        for seq, marks, made_at, vector in entries
        if marks == 1 and 2 < made_at <= 7 and seq not in dropped
    ]
    found = nearest.best(unit(*asked), marks=1, since=2.0, until=7.0)
    assert (found is None) is (not cosines)
    assert len(nearest) == len(rows) == nearest.latest
    if found is not None:
        assert found[1] == pytest.approx(max(cosines), abs=0.0011)
