"""What must be shared before two texts may count as nearly the same."""

import pytest

from edge.alike import marked_words, marks

DIFFERENT = [
    ("transfer 10 dollars", "transfer 100 dollars"),
    ("transfer ten dollars", "transfer a hundred dollars"),
    ("transfer one dollar", "transfer two dollars"),
    ("turn the light on", "turn the light off"),
    ("I did get my card", "I didn't get my card"),
    ("I did get my card", "I didn\u2019t get my card"),
    ("my card works", "my card never works"),
    ("volume up", "volume down"),
    ("add milk to the list", "remove milk from the list"),
    ("wake me at 7 am", "wake me at 7 pm"),
    ("send 5 from 7", "send 7 from 5"),
    ("it is 5 degrees", "it is -5 degrees"),
    ("pay $10", "pay €10"),
    ("pay 10", "pay 10%"),
    ("version 1.2", "version 12"),
    ("zahle 10 euro", "zahle 20 euro"),
    ("pay ٣ riyals", "pay ٤ riyals"),
]
ALIKE = [
    ("transfer 10 dollars", "please transfer 10 dollars now"),
    ("I don't have it", "I do NOT have it"),
    ("where is my card?", "Where's the card of mine"),
    ("turn on the light", "switch the lamp on"),
    ("a well-known song", "a known song"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_they_differ(one, other):
    assert marked_words(one) != marked_words(other)
    assert marks(one) != marks(other)


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_they_may_be_alike(one, other):
    assert marks(one) == marks(other)


def test_it_says_what_it_sees():
    assert marked_words("Don't send 20% of -3.5 to 12 people, pm") == (
        *("not", "20", "%", "-", "3", "5", "12", "pm"),
    )


def test_marks_are_32_bits():
    found = {marks(str(number)) for number in range(1_000)}
    assert len(found) == 1_000
    assert all(0 <= each < 2**32 for each in found)
