"""A call outlives its replica, or says that it did not."""

import asyncio

from edge_sync.pool.again import ATTEMPTS, Caller, ReplicaLost
from edge_sync.pool.asked import Asked, End, Failed, Message, Text

ASKED = Asked((Message("user", "hello"),), max_tokens=9, seed=1, stream=True)
DIES = object()


def answers(*lives):
    """Return what is told when replicas in turn give these events, and how many died."""
    turns, died = iter(lives), []

    async def ask(_asked):
        for event in next(turns):
            if event is DIES:
                raise ReplicaLost
            yield [event]

    async def told():
        return [each async for each in Caller(ask, lambda: died.append(1)).answer(ASKED)]

    return asyncio.run(told()), len(died)


def texts(*words):
    return [Text(word) for word in words]


END = End("stop", 5, 3)


def test_an_answer_is_passed_on_as_it_comes():
    assert answers([*texts("a", "b"), END]) == ([*texts("a", "b"), END], 0)


def test_a_replica_that_dies_before_its_first_word_is_not_noticed():
    assert answers([DIES], [DIES], [Text("a"), END]) == ([Text("a"), END], 2)


def test_a_stream_goes_on_where_it_was_cut_however_it_is_cut_anew():
    first, again = [*texts("on", "ce u"), DIES], [*texts("o", "nce", " upon", " a"), END]
    assert answers(first, again) == ([*texts("on", "ce u", "pon", " a"), END], 1)
    assert answers([*texts("one", " two"), DIES], [Text("one two"), END]) == (
        [*texts("one", " two"), END],
        1,
    )


def test_a_replica_that_dies_while_it_catches_up_tells_nothing_twice():
    lives = [*texts("a", "b"), DIES], [Text("a"), DIES], [*texts("ab", "c"), END]
    assert answers(*lives) == ([*texts("a", "b", "c"), END], 2)


def test_an_answer_that_comes_out_otherwise_fails_and_is_not_patched():
    for again in ([Text("b"), END], [*texts("a", "x"), END], [Text("a"), END], [END]):
        told, died = answers([*texts("a", "b"), DIES], again)
        assert told[:-1] == texts("a", "b")
        assert (told[-1].code, died) == ("differs", 1)


def test_a_call_that_kills_whoever_computes_it_ends():
    told, died = answers(*[[DIES]] * ATTEMPTS)
    assert (told[0].status, died) == (503, ATTEMPTS)


def test_a_refusal_is_passed_on_also_where_something_was_told():
    refused = Failed(429, "too_many", "full")
    assert answers([refused]) == ([refused], 0)
    assert answers([Text("a"), DIES], [refused]) == ([Text("a"), refused], 1)
