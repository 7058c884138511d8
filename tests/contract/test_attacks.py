import pytest
from attacks import ATTACKS, Attack

from edge.errors import EdgeError


@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
def test_an_attack_is_refused_and_changes_nothing(case: Attack) -> None:
    device, bundle = case.run()
    before = device.state
    with pytest.raises(case.error) as refused:
        device.take(bundle)
    assert type(refused.value) is case.error
    assert device.state == before
    assert refused.value.message
    assert refused.value.hint


def test_names_are_single() -> None:
    names = [case.name for case in ATTACKS]
    assert len(names) == len(set(names))
    assert all(issubclass(case.error, EdgeError) for case in ATTACKS)
