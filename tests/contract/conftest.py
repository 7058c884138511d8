"""Lets the tests of this folder, and the bench, share the simulator by its plain name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
