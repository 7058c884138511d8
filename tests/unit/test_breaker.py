"""The circuit breaker, event by event on a fake clock."""

import threading

import pytest

from edge.cloud.breaker import Breaker
from edge.errors import CircuitOpen


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(3, 10.0, clock, name="gpu")


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ("", "closed"),
        ("f f", "closed"),
        ("f f f", "open"),
        ("f f s f f", "closed"),
        ("f f c f", "open"),
        ("c c c c", "closed"),
        ("f f f 9.9", "open"),
        ("f f f 10", "half-open"),
        ("f f f 10 s", "closed"),
        ("f f f 10 s f f", "closed"),
        ("f f f 10 f", "open"),
        ("f f f 10 f 10", "half-open"),
        ("f f f 10 c", "half-open"),
        ("f f f 10 c f", "open"),
    ],
)
def test_the_state_after_a_row_of_outcomes(breaker, clock, events, state):
    for event in events.split():
        if event in "fsc":
            breaker.before()
            {"f": breaker.failure, "s": breaker.success, "c": breaker.cancel}[event]()
        else:
            clock.now += float(event)
    assert breaker.state == state


def open_it(breaker):
    for _ in range(3):
        breaker.before()
        breaker.failure()


def test_an_open_circuit_names_the_pool_and_the_seconds_left(breaker, clock):
    open_it(breaker)
    clock.now += 4
    with pytest.raises(CircuitOpen, match=r"Pool gpu .* for 6 more seconds") as caught:
        breaker.before()
    assert caught.value.retryable
    assert not caught.value.maybe_billed


def test_half_open_lets_one_of_many_threads_try(breaker, clock):
    open_it(breaker)
    clock.now += 10
    gate, allowed, refused = threading.Barrier(8), [], []

    def ask():
        gate.wait()
        try:
            breaker.before()
        except CircuitOpen as error:
            refused.append(error.message)
        else:
            allowed.append(True)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(allowed), len(refused)) == (1, 7)
    assert all("while one call tries it" in words for words in refused)
    breaker.success()
    breaker.before()


def test_calls_begun_before_it_opened_still_count_when_they_end(breaker, clock):
    for _ in range(5):
        breaker.before()
    for _ in range(4):
        breaker.failure()
    clock.now += 5
    breaker.failure()
    clock.now += 5
    assert breaker.state == "open"
    breaker.success()
    assert breaker.state == "closed"
