"""Whether a fleet's budget holds: simulated device-days under random faults, with a cap that binds.

The rules of ``edge_sync.money`` decide; hub, gateways, devices, network and clocks are simulated,
and a provider that knows nothing counts what it bills. Fleets of 40 devices live through two
months. Beside it, smaller, designs that count elsewhere: a synced counter, leases that expire, and
rights that are closed by the device.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from _budget_designs import DAYS as TOY_DAYS
from _budget_designs import TIGHTNESS, Toy
from _budget_fleet import ALL, DAYS, DEVICES, Faults, Fleet, Outcome
from _common import Row, at_least, at_most, main

SEED = 20261124
FULL_DAYS, QUICK_DAYS = 1_000_000, 7 * DEVICES * DAYS
TABLE_SEEDS, QUICK_TABLE_SEEDS = 5, 1
TABLE = {
    "no fault": Faults(),
    "late messages": Faults(lost=0.05, late=0.1, doubled=0.1),
    "clocks": Faults(clocks=0.1),
    "rolled-back disks": Faults(rollbacks=0.02),
    "cloned disks": Faults(clones=0.01),
    "wiped disks": Faults(wipes=0.02),
    "hub restored": Faults(restores=0.1),
    "all": replace(ALL, rollbacks=0.02, clones=0.01, wipes=0.02, restores=0.1, clocks=0.1,
                   cap_changes=0.0),
}  # fmt: skip
DESIGNS = {
    "A synced counter": "A",
    "B leases that expire": "B",
    "C closed by the device": "C",
}


def fleets(device_days: int, most_s: float) -> list[Outcome]:
    """Return fleets, seeds from ``SEED`` on, until there are so many device-days or time is up."""
    count = math.ceil(device_days / (DEVICES * DAYS))
    end = time.monotonic() + most_s
    found = []
    for at in range(count):
        if time.monotonic() > end:
            break
        found.append(Fleet(SEED + at, ALL).run())
    return found


def fleet_rows(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """Yield what all fleets together came to."""
    n = len(outcomes)
    yield Row("simulated device-days", sum(each.device_days for each in outcomes), "")
    yield Row("fleets, and their seeds", f"{n}, {SEED} to {SEED + n - 1}", "")
    yield at_most("overspend", sum(each.overspend for each in outcomes), 0, "micro-dollars")
    wrong = sum(each.wrong_rows for each in outcomes)
    yield at_most("rows lost or counted twice", wrong, 0)
    yield Row("rows", sum(each.rows for each in outcomes), "")
    early = sum(each.refunds_before_seal for each in outcomes)
    yield at_most("refunds before the seal", early, 0)
    broken = [problem for each in outcomes for problem in each.broken]
    yield at_most("invariants that did not hold", len(broken), 0)
    for problem in sorted(set(broken))[:5]:
        yield Row("  such as", problem, "")
    used, cap = (sum(getattr(each, name) for each in outcomes) for name in ("used", "cap"))
    yield at_least("share of the cap used", 100 * used / cap, 95, "%")
    fairness = np.array([each.fairness for each in outcomes])
    yield at_least("fairness (Jain), mean", float(fairness.mean()), 0.9)
    yield Row("fairness (Jain), least", round(float(fairness.min()), 4), "")


def table_rows(seeds: int) -> Iterator[Row]:
    """Yield the most that each design overspends, and its mean use, under one kind of fault."""
    for fault, faults in TABLE.items():
        for name, design in DESIGNS.items():
            runs = [Toy(design, SEED + at, faults).run() for at in range(seeds)]
            yield Row(f"{name}: {fault}", _told(runs), "%")
        runs = []
        for at in range(seeds):
            found = Fleet(SEED + at, faults, days=TOY_DAYS, tightness=TIGHTNESS).run()
            runs.append((found.overspend / found.cap, found.used / found.cap))
        yield Row(f"D redeemed at the gateway: {fault}", _told(runs), "%")


def _told(runs: Sequence[tuple[float, float]]) -> str:
    over, used = np.array(runs).T
    return f"{100 * over.max():.1f} over, {100 * used.mean():.1f} used"


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield every row."""
    days = int(arguments.days or (QUICK_DAYS if arguments.quick else FULL_DAYS))
    most_s = float(arguments.seconds or (25.0 if arguments.quick else math.inf))
    yield from fleet_rows(fleets(days, most_s))
    yield from table_rows(QUICK_TABLE_SEEDS if arguments.quick else TABLE_SEEDS)


if __name__ == "__main__":
    main(
        "budget_sim",
        measure,
        options={
            "--days": f"simulated device-days, {FULL_DAYS} where it is not said",
            "--seconds": "begin no further fleet after so many seconds",
        },
    )
