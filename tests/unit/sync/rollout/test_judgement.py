from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sync.rollout.evidence import Evidence, Tally
from edge_sync.rollout.judgement import Advance, Halt, Wait, judge
from edge_sync.rollout.terms import Terms

TERMS = Terms()
USUAL = (0.0,) * 10 + (700.0, 200.0, 60.0, 40.0) + (0.0,) * 18
SLOW = (0.0, 0.0, *(count * 5 for count in USUAL[:-2]))


def tally(tasks: float = 5_000.0, **more: Any) -> Tally:
    scale = tasks / sum(USUAL)
    latency = tuple(count * scale for count in USUAL)
    whole = {"errors": 0.01, "escalated": 0.15, "corrections": 0.01, **more}
    shares = {name: value * tasks for name, value in whole.items() if name != "latency"}
    return Tally(tasks=tasks, latency=more.get("latency", latency), **shares)


def well(**changes: Any) -> Evidence:
    whole = Evidence(
        wave=0,
        last=False,
        elapsed_s=5 * 3600.0,
        looked_s=4.8 * 3600.0,
        devices=30,
        living=28,
        expected=24,
        activated=26,
        refused=0,
        healthy=26,
        failed=0,
        lost=0,
        reached=27,
        silent=3,
        control_reached=250,
        control_silent=30,
        new=tally(),
        known=tally(),
        usual=tally(),
        control=tally(),
        control_usual=tally(),
    )
    return replace(whole, **changes)


def worse(**more: Any) -> dict[str, Tally]:
    return {"new": tally(**more), "known": tally(**more)}


def test_a_wave_that_is_well_advances():
    found = judge(well(), TERMS)
    assert isinstance(found, Advance)
    assert "26 devices" in found.reason
    assert found.figures["usual"]["error_share"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (worse(errors=0.1), "Errors rose to 10.0%"),
        (worse(escalated=0.3), "Escalations rose to 30.0%"),
        (worse(corrections=0.1), "Corrections rose"),
        (worse(latency=SLOW), "Slow tasks rose"),
        ({"refused": 3, "activated": 20}, "3 of 23 devices refused"),
        ({"silent": 20, "looked_s": 0.0}, "20 of 27 devices fell silent"),
        ({"silent": 27, "looked_s": 0.0, "control_reached": 0, "control_silent": 0}, "fell silent"),
    ],
)
def test_a_bad_wave_halts_with_its_reason(changes, reason):
    found = judge(well(**changes), TERMS)
    assert isinstance(found, Halt)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"elapsed_s": 3600.0}, "out for 60 minutes of 4 hours"),
        ({"activated": 10}, "10 of 24 expected"),
        ({"healthy": 0, "activated": 0, "expected": 0}, "0 of 0 expected"),
        ({"healthy": 12}, "12 of 22 devices have had it"),
        ({"healthy": 22, "lost": 4}, "4 of 26 devices have not been heard of"),
        ({"new": Tally(), "known": Tally()}, "not yet shown"),
        (worse(tasks=40.0), "not yet shown"),
        (worse(escalated=0.22), "not yet shown"),
    ],
)
def test_without_positive_evidence_a_wave_waits_and_halts_at_the_deadline(changes, reason):
    found = judge(well(**changes), TERMS)
    assert isinstance(found, Wait)
    assert reason in found.reason
    late = judge(well(**{**changes, "elapsed_s": TERMS.deadline_s + 1, "looked_s": 1.2e6}), TERMS)
    assert isinstance(late, Halt) or "out for" in reason


def test_a_wave_after_a_good_one_spares_one_device():
    small = {"devices": 12, "living": 12, "healthy": 11, "lost": 1, "expected": 8}
    assert isinstance(judge(well(**small), TERMS), Wait)
    assert isinstance(judge(well(wave=1, **small), TERMS), Advance)


def test_what_rises_everywhere_is_no_fault_of_the_policy():
    changes = {**worse(escalated=0.24), "control": tally(escalated=0.24)}
    assert isinstance(judge(well(**changes), TERMS), Advance)


def test_what_falls_everywhere_but_here_is():
    changes = {**worse(escalated=0.15), "control": tally(escalated=0.05)}
    assert isinstance(judge(well(**changes), TERMS), Halt)


def test_without_a_past_errors_are_judged_by_the_floor():
    new = {"usual": Tally(), "control_usual": Tally()}
    assert isinstance(judge(well(**new), TERMS), Advance)
    assert isinstance(judge(well(**new, **worse(errors=0.1)), TERMS), Halt)


def test_silence_is_tested_once_in_a_span():
    loud = {"silent": 20, "elapsed_s": 5 * 3600.0}
    assert isinstance(judge(well(**loud, looked_s=4.99 * 3600.0), TERMS), Advance)
    assert isinstance(judge(well(**loud, looked_s=2 * 3600.0), TERMS), Halt)


def test_slower_is_not_bad_below_the_slo():
    changes = worse(latency=SLOW)
    assert isinstance(judge(well(**changes), Terms(slo_ms=400.0)), Advance)


COUNTS = st.integers(0, 60)
SHARES = st.floats(0, 1)


@given(
    healthy=COUNTS, lost=COUNTS, expected=COUNTS, activated=COUNTS, refused=COUNTS,
    tasks=st.integers(0, 20_000), errors=SHARES, escalated=SHARES, elapsed=st.floats(0, 2e6),
)  # fmt: skip
def test_no_wave_advances_without_positive_evidence(
    healthy, lost, expected, activated, refused, tasks, errors, escalated, elapsed
):
    new = tally(max(tasks, 1), errors=errors, escalated=escalated) if tasks else Tally()
    found = judge(
        well(
            healthy=healthy, lost=lost, expected=expected, activated=activated, refused=refused,
            new=new, known=new, elapsed_s=elapsed, looked_s=elapsed * 0.99,
        ),
        TERMS,
    )  # fmt: skip
    assert found.reason
    if isinstance(found, Advance):
        assert elapsed >= TERMS.soak_s
        assert healthy >= 1
        assert healthy + lost >= 22
        assert activated >= TERMS.activated_share * expected
        assert tasks >= TERMS.least_tasks
        assert errors < 0.05
        assert escalated < 0.225
    if isinstance(found, Wait):
        assert elapsed < TERMS.deadline_s
