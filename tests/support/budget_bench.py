"""The simulated fleet of bench/, for tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))

from _budget_fleet import ALL, Faults, Fleet
from _budget_moves import FAULTS, LEAST, USUAL, small_world, walk
from _budget_rest import rest
from _budget_wire import Ask, Billed, Bug
from _budget_world import World

__all__ = [
    "ALL", "FAULTS", "LEAST", "USUAL", "Ask", "Billed", "Bug", "Faults", "Fleet", "World", "rest",
    "small_world", "walk",
]  # fmt: skip
