"""The fleet's money as it is written, under faults of every kind, with its invariants after each.

Hub, gateways and devices are the real ones over real SQLite; the network, the clocks and the
provider are the world's (``tests/support/money_world.py``). What is looked at after each step
stands in ``world_checks``, what at the end in ``world_rest``. Policies under waves and stops (I17)
have their own tests beside the rollouts; here only that a device never holds the etag of a policy
that is not in force. ``EDGE_FAULTS_EXAMPLES`` sets how many runs there are, and draws them anew.
"""

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from money_machine import Machine

EXAMPLES = os.environ.get("EDGE_FAULTS_EXAMPLES", "")


@pytest.mark.timeout(0)
def test_money_is_exact_whatever_happens():
    chosen = settings(
        max_examples=int(EXAMPLES or 25),
        stateful_step_count=40,
        deadline=None,
        derandomize=not EXAMPLES,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Machine, settings=chosen)
