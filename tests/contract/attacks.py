"""All attacks; the bench runs the same list."""

import attacks_assignment
import attacks_bytes
import attacks_tuf
from attack import ATTACKS, Attack

PARTS = (attacks_tuf, attacks_assignment, attacks_bytes)

__all__ = ["ATTACKS", "PARTS", "Attack"]
