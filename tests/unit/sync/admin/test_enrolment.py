import hashlib
import re

import pytest
from sqlalchemy import select

from edge.errors import ConfigError, InputError
from edge_sync.hub import enrolment
from edge_sync.hub.refusals import Refused
from edge_sync.store.schema import metadata_files


@pytest.fixture
def code(hub):
    return enrolment.make_code(hub, group="lab", uses=2, expires_s=3_600, who="ann")


def redeem(hub, text):
    return hub.store.write(lambda c: enrolment.redeem(c, text, now=hub.clock()))


def test_a_code_is_a_secret_and_a_pin_of_the_first_root(hub, code, dump):
    assert re.fullmatch(r"[0-9a-hjkmnp-tv-z]{26}-[0-9a-f]{32}", code.text)
    root = select(metadata_files.c.body).where(metadata_files.c.role == "root")
    with hub.store.reading() as connection:
        body = bytes(connection.execute(root).scalar_one())
    assert code.text.endswith(hashlib.sha256(body).hexdigest()[:32])
    assert code.text[:26] not in str(dump())


def test_all_128_bits_are_in_the_code(hub):
    ends = [
        enrolment.make_code(
            hub, group="lab", uses=1, expires_s=60, who="ann", draw=lambda _bits, n=number: n
        ).text[:26]
        for number in (0, 1, 2**128 - 1)
    ]
    assert ends == ["0" * 26, "0" * 25 + "1", "7" + "z" * 25]


def test_a_code_is_for_as_many_devices_as_it_was_made_for(hub, code):
    assert [redeem(hub, code.text).uses_left for _ in range(2)] == [1, 0]
    with pytest.raises(Refused) as refused:
        redeem(hub, code.text)
    assert refused.value.code == "bad_code"
    assert enrolment.list_codes(hub) == []


def test_typing_does_not_matter(hub):
    made = enrolment.make_code(
        hub, group="lab", uses=1, expires_s=60, who="ann", draw=lambda _bits: 33
    )
    typed = f"  {made.text.replace('0', 'O', 3).replace('1', 'l').upper()} "
    assert redeem(hub, typed).group == "lab"


@pytest.mark.parametrize(
    "text", ["", "-", "x" * 200, "0" * 26, "0" * 26 + "-" + "0" * 20, "\ud800"]
)
def test_another_text_is_refused(hub, code, dump, text):
    before = dump()
    with pytest.raises(Refused) as refused:
        redeem(hub, text)
    assert refused.value.code == "bad_code"
    assert dump() == before


def test_another_hubs_pin_is_refused(hub, code):
    with pytest.raises(Refused, match="not known"):
        redeem(hub, code.text[:-1] + ("0" if code.text[-1] != "0" else "1"))


def test_an_expired_code_says_so_for_a_month(hub, code, clock):
    clock.at += 3_600
    with pytest.raises(Refused) as refused:
        redeem(hub, code.text)
    assert refused.value.code == "expired_code"
    assert enrolment.list_codes(hub) == []
    clock.at += 31 * 86_400
    enrolment.make_code(hub, group="lab", uses=1, expires_s=60, who="ann")
    with pytest.raises(Refused) as refused:
        redeem(hub, code.text)
    assert refused.value.code == "bad_code"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"uses": 0}, "0 devices"),
        ({"uses": 100_001}, "100001 devices"),
        ({"expires_s": 0}, "for 0 s"),
        ({"expires_s": float("nan")}, "for nan s"),
        ({"expires_s": 1e9}, "for 1e\\+09 s"),
        ({"group": "nowhere"}, "no group 'nowhere'; groups: kiosks, lab"),
    ],
)
def test_what_cannot_be_made(hub, dump, values, words):
    before = dump()
    with pytest.raises((InputError, ConfigError), match=words):
        enrolment.make_code(
            hub, who="ann", **{"group": "lab", "uses": 1, "expires_s": 60, **values}
        )
    assert dump() == before
