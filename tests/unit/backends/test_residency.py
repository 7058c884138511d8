"""Models in memory: fakes, a fake clock, and threads where several callers matter."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from edge.backends.residency import Residency
from edge.errors import Busy, LoadError, ModelError

MB = 1_000_000


class Model:
    def __init__(self):
        self.closed = False

    def close(self):
        self.closed = True


class Clock:
    """Moves on by ``step`` with every look."""

    def __init__(self, step=0.0):
        self.now = 0.0
        self.step = step

    def __call__(self):
        self.now += self.step
        return self.now


class House:
    """A residency over fake models of 10 MB (or what ``sizes`` says), and what was loaded."""

    def __init__(self, budget_mb=None, *, clock=None, sizes=None, **options):
        self.clock = clock or Clock()
        self.sizes = sizes or {}
        self.loads = []
        self.models = []
        self.timers = []
        budget = None if budget_mb is None else budget_mb * MB
        self.residency = Residency(budget, self.clock, after=self.after, **options)

    def after(self, delay_s, work):
        timer = [self.clock.now + delay_s, work]
        self.timers.append(timer)
        return lambda: self.timers.remove(timer)

    def ring(self):
        """Let the time of the next timer come."""
        due, work = self.timers.pop(0)
        self.clock.now = max(self.clock.now, due)
        work()

    def load(self, name):
        self.loads.append(name)
        self.models.append(Model())
        return self.models[-1]

    def lease(self, name):
        size = self.sizes.get(name, 10) * MB
        return self.residency.lease(name, lambda: self.load(name), estimate=lambda: size)

    def use(self, *names):
        for name in names:
            self.clock.now += 1
            with self.lease(name) as model:
                assert not model.closed

    @property
    def here(self):
        return [resident.name for resident in self.residency.report()]


@pytest.mark.parametrize(
    ("budget_mb", "used", "loads", "here"),
    [
        (None, "abcd", "abcd", "abcd"),
        (20, "ab", "ab", "ab"),
        (20, "abc", "abc", "bc"),
        (20, "abac", "abc", "ac"),
        (20, "abcab", "abcab", "ab"),
        (20, "aaaa", "a", "a"),
        (10, "abab", "abab", "b"),
        (29, "abc", "abc", "bc"),
    ],
)
def test_the_least_recently_used_makes_room(budget_mb, used, loads, here):
    house = House(budget_mb)
    house.use(*used)
    assert ("".join(house.loads), "".join(house.here)) == (loads, here)
    assert sum(not model.closed for model in house.models) == len(here)


def test_as_many_leave_as_it_takes_and_no_more():
    house = House(40, sizes={"big": 25})
    house.use("a", "b", "c", "d", "big")
    assert house.here == ["big", "d"]
    house.use("d", "a")
    assert house.here == ["a", "d"]


def test_what_is_in_use_stays():
    house = House(20)
    with house.lease("a") as held:
        house.use("b", "c", "b")
        assert house.here == ["a", "b"]
    assert not held.closed
    house.use("c")
    assert held.closed
    assert house.here == ["b", "c"]


def test_another_version_is_another_model_beside_the_first():
    house = House(30)
    leases = [house.residency.lease("a", lambda: house.load("a"), version=v) for v in "xyx"]
    with leases[0] as old, leases[1] as new, leases[2] as again:
        assert old is again
        assert old is not new
    assert house.here == ["a", "a"]
    assert house.residency.unload("a")
    assert house.here == []


def test_what_is_retired_leaves_once_it_is_free_pinned_or_not():
    house = House(pinned=["a"])
    house.use("a", "b", "c")
    with house.lease("a") as held:
        house.residency.retire({("a", None), ("b", None), ("never", None)})
        assert house.here == ["a", "c"]
        assert not held.closed
    assert held.closed
    assert house.here == ["c"]
    house.use("b")  # by a call that began before
    assert house.here == ["c"]
    house.residency.retire(())
    house.use("a", "b")
    assert house.here == ["a", "b", "c"]


def test_pinned_ones_stay():
    house = House(20, pinned=["a"], keep_alive_s=5)
    house.use("a", "b", "c")
    assert house.here == ["a", "c"]
    while house.timers:
        house.ring()
    assert house.here == ["a"]
    (resident,) = house.residency.report()
    assert resident.pinned
    assert house.residency.unload("a")
    assert house.here == []


@pytest.mark.parametrize(
    ("sizes", "pinned", "said"),
    [
        ({"big": 21}, [], ["big", "21.0 MB", "20.0 MB", "memory_mb"]),
        ({"big": 15}, ["a"], ["big", "15.0 MB", "20.0 MB", "10.0 MB are pinned by a", "unpin"]),
    ],
)
def test_what_can_never_fit_is_an_error(sizes, pinned, said):
    house = House(20, sizes=sizes, pinned=pinned)
    house.use("a")
    with pytest.raises(LoadError) as caught, house.lease("big"):
        pass
    for words in said:
        assert words in str(caught.value)
    assert house.here == ["a"]
    house.use("a", "b")
    assert house.loads == ["a", "b"]


def test_waiting_for_what_is_in_use_ends():
    house = House(10, clock=Clock(step=1.0), wait_s=3)
    with house.lease("a"), pytest.raises(Busy, match="hold: a"), house.lease("b"):
        pass
    house.use("b")
    assert house.here == ["b"]


def test_a_failed_load_leaves_nothing_behind():
    house = House(10)

    def fail():
        raise LoadError("no")

    for _ in range(2):
        with pytest.raises(LoadError), house.residency.lease("a", fail, estimate=lambda: 10 * MB):
            pass
    assert house.here == []
    house.use("b", "a")
    assert house.here == ["a"]


def test_a_model_that_cannot_be_closed_is_gone_all_the_same():
    house = House(20)
    house.use("a", "b")

    def fail():
        raise RuntimeError("stuck")

    house.models[0].close = fail
    with pytest.raises(RuntimeError, match="stuck"):
        house.residency.close()
    assert house.models[1].closed
    assert house.here == []


def test_keep_alive_counts_from_the_end_of_the_last_use():
    house = House(keep_alive_s=10)
    with house.lease("a"):
        house.clock.now += 50
        house.residency.sweep()
        assert house.here == ["a"]
    house.clock.now += 6
    house.use("b")
    house.ring()
    assert house.here == ["b"]
    assert house.timers[0][0] == house.clock.now + 7
    house.ring()
    assert house.here == []
    assert house.timers == []


def test_for_ever_needs_no_timer():
    house = House()
    house.use("a")
    house.clock.now += 1e9
    house.residency.sweep()
    assert (house.here, house.timers) == (["a"], [])


def test_the_real_timer_unloads():
    residency = Residency(keep_alive_s=0.01)
    with residency.lease("a", Model) as model:
        pass
    late = time.monotonic() + 5
    while residency.report() and time.monotonic() < late:
        time.sleep(0.005)
    assert model.closed
    residency.close()


def test_the_report_says_what_is_here():
    house = House(30)
    house.use("b")
    with house.lease("a"), house.lease("a"):
        house.clock.now += 2
        rows = [(r.name, r.bytes_estimated, r.in_use, r.state) for r in house.residency.report()]
    assert rows == [("a", 10 * MB, 2, "ready"), ("b", 10 * MB, 0, "ready")]
    assert [r.idle_s for r in house.residency.report()] == [0, 2]


def test_unload_is_refused_while_in_use():
    house = House()
    with house.lease("a") as model:
        assert not house.residency.unload("a")
        assert not model.closed
    assert house.residency.unload("a")
    assert not house.residency.unload("a")
    assert model.closed


def test_close_frees_also_what_is_in_use():
    house = House(keep_alive_s=10)
    house.use("b")
    with house.lease("a") as model:
        house.residency.close()
        assert model.closed
    house.residency.close()
    assert (house.here, house.timers) == ([], [])
    with pytest.raises(ModelError, match="closed"), house.lease("a"):
        pass


def test_what_is_loaded_while_all_is_closed_is_freed():
    residency = Residency()
    model = Model()

    def load():
        residency.close()
        return model

    with pytest.raises(ModelError, match="closed"), residency.lease("a", load):
        pass
    assert model.closed
    assert residency.report() == ()


def test_many_first_callers_load_one_copy():
    house, started = House(), threading.Barrier(8)

    def load():
        time.sleep(0.02)
        return house.load("a")

    def call(_):
        started.wait()
        with house.residency.lease("a", load) as model:
            return model

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(call, range(8)))) == 1
    assert house.loads == ["a"]


def test_one_load_does_not_hold_up_another():
    residency, go_on = Residency(100), threading.Event()

    def slow():
        assert go_on.wait(5)
        return Model()

    def call():
        with residency.lease("slow", slow, estimate=lambda: 50) as model:
            return model

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(call)
        while not residency.report():
            time.sleep(0.001)
        with residency.lease("quick", Model, estimate=lambda: 50):
            assert not done.done()
        go_on.set()
        assert done.result(5)


def test_a_waiting_caller_gets_the_room_that_comes_free():
    house = House(10, clock=time.monotonic, wait_s=5)
    with ThreadPoolExecutor(1) as pool:
        with house.lease("a"):
            waiting = pool.submit(house.lease("b").__enter__)
            time.sleep(0.02)
            assert not waiting.done()
        assert not waiting.result(5).closed


def test_a_crowd_on_one_model_does_not_starve_another():
    house, over = House(10, clock=time.monotonic, wait_s=5), threading.Event()

    def crowd():
        while not over.is_set():
            with house.lease("a"):
                time.sleep(0.01)

    with ThreadPoolExecutor(3) as pool:
        busy = [pool.submit(crowd) for _ in range(3)]
        try:
            time.sleep(0.03)
            with house.lease("b") as model:
                assert not model.closed
        finally:
            over.set()
        for each in busy:
            each.result(5)


def test_under_threads_the_budget_holds_and_nothing_closed_is_used():
    sizes = {"a": 3, "b": 4, "c": 5, "d": 1}
    house = House(9, clock=time.monotonic, sizes=sizes, wait_s=20)
    most, lock, alive = [0], threading.Lock(), [0]

    class Counted(Model):
        def __init__(self, size):
            super().__init__()
            self.size = size
            with lock:
                alive[0] += size
                most[0] = max(most[0], alive[0])

        def close(self):
            super().close()
            with lock:
                alive[0] -= self.size

    def call(number):
        for step in range(60):
            name = "abcd"[(number * 7 + step * step) % 4]
            size = sizes[name]
            with house.residency.lease(
                name, lambda size=size: Counted(size), estimate=lambda size=size: size * MB
            ) as model:
                assert not model.closed

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(call, number) for number in range(6)]:
            done.result(30)
    assert 0 < most[0] <= 9
    assert all(resident.in_use == 0 for resident in house.residency.report())
    house.residency.close()
    assert alive[0] == 0


def test_a_stream_that_is_dropped_gives_its_model_back():
    house = House(10)

    def stream():
        with house.lease("a"):
            yield from range(3)

    steps = stream()
    next(steps)
    assert house.residency.report()[0].in_use == 1
    del steps
    assert house.residency.report()[0].in_use == 0
