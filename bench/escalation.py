"""Is what the device keeps right, and is what it sends up worth it? Every bar of the escalation.

    python bench/escalation.py --tape build/tapes/NAME.npz

Stage one is ``bench/tape.py``: the shipped models answer once, and their answers are kept. It runs
by itself where no tape is given or found; so does the training of heads without a quarter of the
intents. Stage two decides over the tape with numpy alone, in two processes, and ends within a
minute. ``--quick`` takes fewer seeds, no query-only baseline, and the same bars.

Simulated clouds are right on 97 % of the tasks: independently, or with errors four times likelier
where the local answer is wrong. The swap from Q8 to Q4 is measured where the tape holds the same
rows at both; a tape without them has no such rows here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import tape as stage_one
from _common import ROOT, Row, main
from _escalation_decide import deciding
from _escalation_drift import drifting
from _escalation_heads import query_only, unseen_intents
from _escalation_promise import certificates, noisy, smooth
from _escalation_score import baselines, scored, worth_fusing
from _escalation_spend import spending
from _escalation_swap import swapped
from _escalation_tape import read_tape

TAPES = ROOT / "build" / "tapes"
UNSEEN_CHOICES = 3


def newest(folder: Path) -> Path | None:
    """Return the tape recorded last, quick ones left out."""
    found = [path for path in folder.glob("*.npz") if not path.name.startswith("quick-")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def recorded(given: str | None) -> Path:
    """Return the tape to decide over; record one where there is none."""
    if given is not None:
        return Path(given)
    found = newest(TAPES)
    if found is None:
        whole = argparse.Namespace(out=None, held_out=None, quick=False)
        list(stage_one.measure(whole))
        found = newest(TAPES)
    if found is None:
        raise SystemExit(f"bench/tape.py left no tape in {TAPES}; name one with --tape.")
    return found


def ordering(path: Path, *, quick: bool) -> list[Row]:
    """Return the rows of how answers are ordered and how sure they are."""
    streams, seeds = read_tape(path), 50 if quick else 200
    inputs = {} if quick else query_only(streams)
    return [
        *scored(streams, seeds=seeds),
        *unseen_intents(seeds=UNSEEN_CHOICES, make=not quick),
        *worth_fusing(streams),
        *baselines(streams, inputs, seeds=seeds),
        *smooth(streams, seeds=5 if quick else 20),
        *swapped(streams, seeds=10 if quick else 50),
    ]


def promising(path: Path, *, quick: bool) -> list[Row]:
    """Return the rows of certificates, money and drift."""
    streams = read_tape(path)
    return [
        *certificates(streams),
        *noisy(streams),
        *spending(streams, seeds=3 if quick else 20),
        *drifting(streams, runs=30 if quick else 100, calm_runs=200 if quick else 300),
    ]


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield every row."""
    path = recorded(arguments.tape)
    yield Row("tape", path.name, "")
    if not any(name.endswith("-fit") for name in read_tape(path)):
        # Nearly every row needs a prior; without one a run that misses nothing would mislead.
        yield Row(
            "prior", "none on this tape: run models/recipes/heads.py first", "", 1.0, met=False
        )
    with ProcessPoolExecutor(2) as pool:
        parts = [pool.submit(part, path, quick=arguments.quick) for part in (ordering, promising)]
        for part in parts:
            yield from part.result()
    # Alone on the machine, because it is timed.
    yield from deciding(read_tape(path), path)


if __name__ == "__main__":
    main("escalation", measure, options={"--tape": "a tape of bench/tape.py"})
