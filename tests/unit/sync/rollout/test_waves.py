import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ConfigError
from edge_sync.rollout.waves import (
    Wave,
    blind_spot,
    choose_id,
    from_json,
    parse_waves,
    place,
    to_json,
    wave_of,
)

IDS = [f"{number:032x}" for number in range(400)]
PLANS = st.sampled_from(["5,25,100", "100", "lab,10,100", "1,2,3,50,100", "lab+desk,100"])


@pytest.mark.parametrize(
    ("text", "waves"),
    [
        ("5,25,100", (Wave(5.0), Wave(25.0), Wave(100.0))),
        (" 0.5% , 100 ", (Wave(0.5), Wave(100.0))),
        ("lab+desk,25,100", (Wave(groups=("lab", "desk")), Wave(25.0), Wave(100.0))),
    ],
)
def test_waves_are_read(text, waves):
    assert parse_waves(text) == waves
    assert from_json(to_json(waves)) == waves


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no percentage"),
        ("5,5,100", "do not rise"),
        ("25,5,100", "do not rise"),
        ("0,100", "do not rise"),
        ("5,25", "never reach"),
        ("5,100,lab", "never reach"),
        ("5,150", "never reach"),
        ("lab", "never reach"),
        ("lab,lab,100", "twice"),
        ("-5,100", "no percentage"),
        (",".join(["1"] * 30), "more than"),
    ],
)
def test_other_waves_are_refused(text, reason):
    with pytest.raises(ConfigError, match=reason):
        parse_waves(text)


@pytest.mark.parametrize("body", [[{}], [{"percent": "x"}], [{"percent": 5}], [None], []])
def test_other_json_is_refused(body):
    with pytest.raises(ConfigError):
        from_json(body)


@given(PLANS, st.integers(1, 10**6), st.integers(0, 399), st.sampled_from(["lab", "desk", "x"]))
def test_a_device_has_one_first_wave_and_stays_in(plan, rollout, number, group):
    waves = parse_waves(plan)
    first = wave_of(waves, rollout=rollout, device_id=IDS[number], group=group)
    again = wave_of(waves, rollout=rollout, device_id=IDS[number], group=group)
    assert first == again
    assert 0 <= first < len(waves)
    if group in waves[0].groups:
        assert first == 0
    # A plan that only begins like it has the device at the same place, or reaches it later.
    shorter = (*waves[:-1], Wave(100.0)) if len(waves) > 1 else waves
    assert wave_of(shorter, rollout=rollout, device_id=IDS[number], group=group) == first


@given(st.integers(1, 10**6))
def test_a_larger_share_holds_the_smaller(rollout):
    small = {name for name in IDS if 100 * place(rollout, name) < 5}
    large = {name for name in IDS if 100 * place(rollout, name) < 25}
    assert small <= large


@given(st.integers(0, 10**6), st.sampled_from([20, 60, 400]))
def test_the_first_wave_is_as_large_as_it_was_asked_to_be(after, size):
    waves = parse_waves("5,25,100")
    fleet = [(name, "all", number % 3 > 0) for number, name in enumerate(IDS[:size])]
    chosen = choose_id(after, waves, fleet)
    inside = [on for name, _, on in fleet if wave_of(waves, rollout=chosen, device_id=name, group="all") == 0]  # fmt: skip  # noqa: E501
    assert chosen > after
    assert any(inside)
    assert abs(len(inside) - size * 0.05) <= max(0.5, 0.1 * size * 0.05)


def test_an_id_is_found_for_no_devices_and_for_groups():
    assert choose_id(7, parse_waves("5,100"), []) == 8
    assert choose_id(7, parse_waves("lab,100"), [("a", "lab", True)]) == 8


def test_what_a_wave_cannot_show():
    assert blind_spot(3) == pytest.approx(0.632, abs=0.001)
    assert blind_spot(22) < 0.13
    assert blind_spot(0) == 1.0
