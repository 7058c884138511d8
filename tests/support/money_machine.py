"""All that can happen to a world of money, as the rules of one state machine.

What is looked at after each step stands in ``world_checks``, what at the end in ``world_rest``.
"""

import shutil
from contextlib import suppress

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from money_world import FLEET, GROUP_CAP, MOST_DEVICES, POOLS, new_world
from world_checks import Witness
from world_device import SIZES
from world_net import Fault
from world_provider import Way
from world_rest import rest

from edge.errors import ConfigError, EdgeError, StoreError

NUMBERS = st.integers(0, 60)
TASKS = st.sampled_from([f"{pool}{size}" for pool in POOLS for size in SIZES])
SHARES = st.floats(0, 1)
DEATHS = st.sampled_from([None] * 12 + list(range(1, 13)))
"""At how many transactions of a device's files from now it is killed."""
FAULTS = st.sampled_from([Fault.NONE] * 5 + [each for each in Fault if each is not Fault.OLD])
HUB_FAULTS = st.sampled_from([Fault.NONE] * 5 + list(Fault))
"""An earlier reply of a gateway is another call's; connections to it are the pool's to protect."""
WAYS = st.sampled_from([Way.FINE] * 10 + list(Way))
LINKS = st.sampled_from(["hub", *POOLS, *(f"hub>{pool}" for pool in POOLS)])
PARTIES = st.sampled_from(["hub", *POOLS, "device0", "device1"])
YEAR = 366 * 86_400.0
JUMPS = st.sampled_from([0.0, 0.0, 5_000.0, -5_000.0, 9 * 86_400.0, 10 * YEAR, -10 * YEAR])
CHANGES = st.sampled_from([(FLEET, "total"), (GROUP_CAP, "hour")])
AMOUNTS = st.sampled_from([1, 30_007, 77_777, 163_457, 240_001])


class Machine(RuleBasedStateMachine):
    """What can happen; the parts are the world's."""

    @initialize()
    def begin(self):
        self.world = new_world()
        self.witness = Witness(self.world)
        self.all_sync()

    def teardown(self):
        if not hasattr(self, "world"):
            return
        try:
            found = rest(self.world, self.witness) if self.good else []
            assert not found, found
        finally:
            self.world.close()
            shutil.rmtree(self.world.folder)

    good = True

    @invariant()
    def all_holds(self):
        if hasattr(self, "world"):
            found = self.witness.look()
            self.good = self.good and not found
            assert not found, found

    def ask(self, number, task, way, share, fault, dies):
        at = number % len(self.world.devices)
        self.world.network.plan[task[:-2]] = fault
        self.world.devices[at].steps_left = dies
        self.world.ask(at, task, way, share)

    def ask_much(self, number, task, shares):
        at = number % len(self.world.devices)
        for share in shares:
            self.world.ask(at, task, Way.FINE, share)

    def sync(self, number, fault, dies):
        device = self.world.devices[number % len(self.world.devices)]
        self.world.network.plan["hub"] = fault
        device.steps_left = dies
        device.sync()

    def all_sync(self):
        for device in self.world.devices:
            device.sync()

    # What happens all the time has several names, or it would be as rare as the rest.
    _call = rule(number=NUMBERS, task=TASKS, way=WAYS, share=SHARES, fault=FAULTS, dies=DEATHS)
    _calls = rule(number=NUMBERS, task=TASKS, shares=st.lists(SHARES, min_size=2, max_size=5))
    _report = rule(number=NUMBERS, fault=HUB_FAULTS, dies=DEATHS)
    ask_1, ask_2, ask_3 = _call(ask), _call(ask), _call(ask)
    ask_much_1, ask_much_2, ask_much_3 = _calls(ask_much), _calls(ask_much), _calls(ask_much)
    sync_1, sync_2, sync_3 = _report(sync), _report(sync), _report(sync)
    all_sync_1, all_sync_2, all_sync_3 = rule()(all_sync), rule()(all_sync), rule()(all_sync)

    @rule(number=NUMBERS, fault=FAULTS)
    def clear(self, number, fault):
        self.world.network.plan[POOLS[number % 2]] = fault
        self.world.devices[number % len(self.world.devices)].clear()

    @rule(link=LINKS, fault=FAULTS)
    def hub_steps(self, link, fault):
        self.world.network.plan[link] = fault
        self.world.hub.step()

    @rule()
    def bill_is_looked_at(self):
        with suppress(EdgeError):
            self.world.hub.reconcile(self.world.provider.billed)

    @rule(number=st.integers(0, 500))
    def something_comes_late(self, number):
        self.world.network.again(number)

    @rule(link=LINKS)
    def link_is_cut(self, link):
        self.world.network.cut ^= {link}

    @rule(seconds=st.sampled_from([1.0, 100.0, 1_000.0, 4_000.0, 86_400.0]))
    def time_passes(self, seconds):
        self.world.loop.pass_(seconds)

    @rule(party=PARTIES, seconds=JUMPS)
    def clock_jumps(self, party, seconds):
        self.world.jump(party, seconds)

    @rule(number=NUMBERS)
    def device_dies(self, number):
        self.world.devices[number % len(self.world.devices)].kill()

    @rule(number=NUMBERS)
    def disk_is_copied(self, number):
        self.world.copy_disk(number % len(self.world.devices))

    @precondition(lambda self: self.world.copies)
    @rule(number=NUMBERS)
    def disk_is_set_back(self, number):
        self.world.set_back(number)
        self.witness.devices_forget(self.world.copies[number % len(self.world.copies)][0])

    @precondition(lambda self: self.world.copies and len(self.world.devices) < MOST_DEVICES)
    @rule(number=NUMBERS)
    def disk_is_cloned(self, number):
        self.world.clone(number)

    @rule(number=NUMBERS)
    def device_is_wiped(self, number):
        at = number % len(self.world.devices)
        self.world.wipe(at)
        self.witness.devices_forget(at)

    @rule(number=NUMBERS)
    def device_is_revoked(self, number):
        device = self.world.devices[number % len(self.world.devices)]
        if device.id:
            with suppress(EdgeError):
                self.world.hub.revoke(device.id)

    @rule(pool=st.sampled_from(POOLS))
    def gateway_restarts(self, pool):
        self.world.gateways[pool].back()

    @rule(pool=st.sampled_from(POOLS), full=st.booleans())
    def gateway_disk_fills(self, pool, full):
        self.world.gateways[pool].fill(full=full)

    @rule()
    def hub_restarts(self):
        self.world.hub.again()

    @rule(deaf=st.booleans())
    def keys_folder_fills(self, deaf):
        self.world.hub.deaf_disk(deaf=deaf)

    @rule()
    def hub_is_backed_up(self):
        self.world.hub.back_up()

    @precondition(lambda self: self.world.hub.backups)
    @rule(number=NUMBERS, running=st.booleans())
    def hub_is_restored(self, number, running):
        self.world.hub.restore(number, running=running)

    @precondition(lambda self: self.world.hub.backups)
    @rule(number=NUMBERS)
    def hub_is_set_back(self, number):
        self.world.hub.set_back(number)

    @rule(which=CHANGES, amount=AMOUNTS)
    def cap_changes(self, which, amount):
        with suppress(StoreError):  # the database was set back, and the hub has not seen it yet
            self.world.hub.set_cap(*which, amount)
            self.witness.recapped()

    @rule(which=CHANGES)
    def cap_goes(self, which):
        with suppress(StoreError, ConfigError):
            self.world.hub.remove_cap(*which)
            self.witness.recapped()

    @rule(number=NUMBERS, dies=st.none() | st.integers(1, 20))
    def policy_is_published(self, number, dies):
        self.world.hub.publish()
        device = self.world.devices[number % len(self.world.devices)]
        device.steps_left = dies
        device.sync()

    @rule(number=NUMBERS, amount=st.sampled_from([1, 4_000, 40_000]))
    def provider_gives_back(self, number, amount):
        rows = [(pool, row) for pool, gateway in self.world.gateways.items()
                for row in gateway.look("SELECT hold_id FROM holds ORDER BY hold_id")]  # fmt: skip
        if not rows:
            return
        pool, (hold_id,) = rows[number % len(rows)]
        if self.world.gateways[pool].alive:
            self.world.gateways[pool].admin(
                "adjust", adjustment_id=f"given-{number:04}", hold_id=hold_id,
                amount_microusd=amount, reason="test",
            )  # fmt: skip
