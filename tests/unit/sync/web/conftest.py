"""Hubs: one without devices for each test, and one with a fleet that tests only look at."""

import pytest
from fleet_sample import add_money, fill, make_sample


@pytest.fixture
def sample(tmp_path):
    made = make_sample(tmp_path / "hub")
    yield made
    made.hub.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    made = make_sample(tmp_path_factory.mktemp("filled") / "hub")
    fill(made)
    add_money(made.hub)
    yield made
    made.hub.close()
