"""Small states and labels: one at a time, never half, and nothing lost over a restart."""

import threading

import pytest

from edge.errors import StoreError
from edge.store.states import States


@pytest.fixture
def states(tmp_path):
    opened = States.open(tmp_path)
    yield opened
    opened.close()


def test_a_state_outlives_the_process(states, tmp_path):
    assert states.read("watch/spam") is None
    states.change("watch/spam", lambda before: {"was": before, "rung": 1})
    states.close()
    again = States.open(tmp_path)
    assert again.read("watch/spam") == {"was": None, "rung": 1}
    again.forget("watch/spam")
    assert again.read("watch/spam") is None
    again.close()


def test_a_failing_step_changes_nothing(states):
    states.change("price", lambda _: {"spent": 1})
    with pytest.raises(ZeroDivisionError):
        states.change("price", lambda _: {"spent": 1 // 0})
    with pytest.raises(ValueError, match="JSON"):
        states.change("price", lambda _: {"spent": float("nan")})
    assert states.read("price") == {"spent": 1}


def test_steps_of_several_threads_and_files_follow_each_other(states, tmp_path):
    other = States.open(tmp_path)

    def count(opened):
        for _ in range(50):
            opened.change("n", lambda before: {"n": (before or {"n": 0})["n"] + 1})

    threads = [threading.Thread(target=count, args=(each,)) for each in (states, states, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert states.read("n") == {"n": 150}


def test_a_later_label_replaces_an_earlier_one_of_its_source_and_audits_count_more(states):
    assert states.label("a", task="spam", right=True, source="audit", at=1.0)
    assert states.label("a", task="spam", right=False, source="user", at=3.0)
    assert not states.label("a", task="spam", right=False, source="user", at=4.0)
    assert states.label("b", task="spam", right=False, source="user", at=2.0)
    assert states.label("b", task="spam", right=True, source="user", at=5.0)
    states.label("c", task="intent", right=False, source="user", at=4.0)
    assert states.labels("spam") == {"a": (True, "audit"), "b": (True, "user")}
    assert set(states.labels()) == {"a", "b", "c"}


def test_a_damaged_state_is_named(states):
    states.change("price", lambda _: {})
    with states._db.reading() as connection:
        connection.execute("UPDATE states SET body = '[1'")
    with pytest.raises(StoreError, match="price"):
        states.read("price")


def test_corrections_come_in_order_and_a_new_word_again(states):
    states.label("a", task="spam", right=False, source="user", at=1.0)
    states.label("b", task="spam", right=True, source="user", at=2.0)
    states.label("c", task="spam", right=False, source="audit", at=3.0)
    states.label("d", task="intent", right=False, source="user", at=4.0)
    found = states.corrections_after(0, 9)
    assert [(row["trace_id"], row["task"], row["at"]) for row in found] == [
        ("a", "spam", 1.0),
        ("d", "intent", 4.0),
    ]
    assert [row["trace_id"] for row in states.corrections_after(0, 1)] == ["a"]
    last = found[-1]["seq"]
    assert states.corrections_after(last, 9) == []
    states.label("a", task="spam", right=False, source="user", at=5.0)
    assert [row["trace_id"] for row in states.corrections_after(last, 9)] == ["a"]
