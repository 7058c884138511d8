"""The register beside a dictionary that keeps to the same rules, with restarts in between."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge_sync.gateway.book import Book
from edge_sync.gateway.refusals import Refused
from edge_sync.gateway.register import Register

from .conftest import NOW, admitted, ask, ident, lease

LEASES = st.sampled_from(["a", "b", "c"])
HOLDS = st.sampled_from(list(range(6)))
AMOUNT = 30
MEMORY = Path("/dev/shm")  # noqa: S108 - a file in memory where there is one


class Machine(RuleBasedStateMachine):
    @initialize()
    def open(self):
        folder = MEMORY if MEMORY.is_dir() else None
        self.folder = tempfile.TemporaryDirectory(dir=folder)
        self.path = Path(self.folder.name) / "gateway.db"
        self.register = admitted(self.path)
        self.holds, self.sealed, self.seen = {}, {}, set()
        self.epoch = 0

    def teardown(self):
        if hasattr(self, "register"):
            self.register.close()
            self.folder.cleanup()

    def run(self, work):
        try:
            return self.register.write(work), None
        except Refused as refused:
            return None, refused.code

    def used(self, name):
        return sum(
            each["actual"] if each["state"] == "settled" else each["most"]
            for each in self.holds.values()
            if each["lease"] == name and each["state"] != "released"
        )

    def expected(self, name, hold, most, request, epoch):
        """Return why a hold is refused by the rules as they are told; ``None`` where it is not."""
        before = self.holds.get(hold)
        if before is not None:
            if before["request"] != request:
                return "conflict"
            if before["state"] != "released":
                return {"held": "in_progress", "unclear": "unclear", "settled": "answered"}[
                    before["state"]
                ]
        if epoch < self.epoch:
            return "fenced"
        if name in self.sealed:
            return "sealed"
        return "exhausted" if self.used(name) + most > AMOUNT else None

    @rule(name=LEASES, hold=HOLDS, most=st.integers(0, 20), request=st.sampled_from("xy"),
          newer=st.integers(0, 1))  # fmt: skip
    def hold(self, name, hold, most, request, newer):
        epoch = max(0, self.epoch + newer - 1) if newer else 1
        given = lease(name, amount_microusd=AMOUNT, epoch=epoch)
        asked = ask(hold, most, of=given, request=request)
        wanted = self.expected(name, hold, most, request, epoch)
        _, code = self.run(lambda book: book.hold(asked))
        assert code == wanted
        if code is None:
            self.epoch = max(self.epoch, epoch)
            self.seen.add(name)
            self.holds[hold] = {"lease": name, "most": most, "request": request, "state": "held"}

    @rule(hold=HOLDS, reported=st.none() | st.integers(-3, 30))
    def settle(self, hold, reported):
        _, code = self.run(lambda book: book.settle(ident(hold), reported, now=NOW))
        each = self.holds.get(hold)
        if each is None:
            assert code == "not_found"
            return
        bad = reported is None or reported < 0
        actual = each["most"] if bad else min(reported, each["most"])
        if each["state"] in {"held", "unclear"}:
            assert code is None
            each.update(state="settled", actual=actual)
        else:
            same = each["state"] == "settled" and each["actual"] == actual
            assert code == (None if same else "conflict")

    @rule(hold=HOLDS)
    def release(self, hold):
        _, code = self.run(lambda book: book.release(ident(hold), now=NOW))
        each = self.holds.get(hold)
        if each is None:
            assert code == "not_found"
        elif each["state"] in {"held", "released"}:
            assert code is None
            each["state"] = "released"
        else:
            assert code == "conflict"

    @rule(hold=HOLDS)
    def keep(self, hold):
        self.run(lambda book: book.keep(ident(hold)))
        if self.holds.get(hold, {}).get("state") == "held":
            self.holds[hold]["state"] = "unclear"

    @rule(name=LEASES)
    def seal(self, name):
        found, _ = self.run(lambda book: book.seal(ident(name), now=NOW))
        still_open = any(
            each["lease"] == name and each["state"] in {"held", "unclear"}
            for each in self.holds.values()
        )
        assert found.final == (not still_open)
        assert found.used_microusd == self.used(name)
        # What a seal said cannot grow, and once it is final it cannot change.
        last, was_final = self.sealed.get(name, (AMOUNT, False))
        assert found.used_microusd <= last
        assert not was_final or found.used_microusd == last
        self.sealed[name] = (found.used_microusd, found.final)
        self.seen.add(name)

    @rule(epoch=st.integers(0, 4))
    def fence(self, epoch):
        found, _ = self.run(lambda book: book.fence("hub", epoch))
        self.epoch = max(self.epoch, epoch)
        assert found == self.epoch

    @rule()
    def restart(self):
        self.register.close()
        self.register = Register.open(self.path)
        for each in self.holds.values():
            if each["state"] == "held":
                each["state"] = "unclear"

    @invariant()
    def it_adds_up(self):
        if not hasattr(self, "register"):
            return
        self.register.write(Book.check)
        found = self.register.write(lambda book: book.standings(after="", limit=99))
        assert {each.lease_id: each.used_microusd for each in found} == {
            ident(name): self.used(name) for name in self.seen
        }
        assert all(each.used_microusd <= AMOUNT for each in found)


TestRegister = Machine.TestCase
TestRegister.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
