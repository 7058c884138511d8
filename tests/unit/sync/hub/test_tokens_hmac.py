import pytest

from edge_sync.hub.refusals import NOTED, WINDOW_S, Noted
from edge_sync.hub.tokens_hmac import LIFETIME_S, make_token, read_token

SECRET = b"s" * 32
ID = "0123456789abcdef0123456789abcdef"


def test_a_token_names_its_device_and_end():
    assert read_token(SECRET, make_token(SECRET, ID, now=1_000.7)) == (ID, 1_000 + LIFETIME_S)


@pytest.mark.parametrize("at", [0, 31, 32, 33, 40, 41, 42, 60, -1])
def test_a_changed_token_is_none(at):
    token = make_token(SECRET, ID, now=1_000.0)
    other = "1" if token[at] != "1" else "2"
    assert read_token(SECRET, token[:at] + other + (token[at:][1:])) is None


@pytest.mark.parametrize("text", ["", ".", "..", "a", "ü.1.2", f"{ID}.zz.00", "\0" * 9])
def test_what_is_no_token_is_none(text):
    assert read_token(SECRET, text) is None


def test_another_hub_does_not_take_it():
    assert read_token(b"t" * 32, make_token(SECRET, ID, now=0.0)) is None


def test_a_flood_of_refusals_is_told_of_in_few_entries():
    noted = Noted()
    told = [noted.admit("bad", now=at / 100) for at in range(1_000)]
    assert [more for more in told if more is not None] == [{}] * NOTED
    assert noted.admit("other", now=1.0) == {}
    assert noted.admit("bad", now=WINDOW_S + 1) == {"left_out_before": 1_000 - NOTED}
    assert noted.admit("bad", now=WINDOW_S + 2) == {}
