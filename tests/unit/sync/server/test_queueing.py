import asyncio

import pytest

from edge.errors import StoreError
from edge_sync.hub.budget import outside
from edge_sync.hub.refusals import Refused
from edge_sync.server import queueing
from edge_sync.server.queueing import Bridge, Grants, Places
from edge_sync.store.database import Store


def test_so_many_are_worked_on_at_once_in_order(monkeypatch):
    monkeypatch.setattr(queueing, "PARALLEL", 3)
    inside, most, order = [0], [0], []

    async def work(places, number):
        async with places.turn(10):
            order.append(number)
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            await asyncio.sleep(0)
            inside[0] -= 1

    async def run():
        places = Places(lambda: None)
        await asyncio.gather(*(work(places, number) for number in range(20)))

    asyncio.run(run())
    assert most[0] == 3
    assert order == list(range(20))


@pytest.mark.parametrize(("number", "size"), [(4, 1), (2, 50)])
def test_beyond_the_bound_they_are_sent_away_with_a_time(monkeypatch, number, size):
    monkeypatch.setattr(queueing, "MAX_WAITING", number)
    monkeypatch.setattr(queueing, "MAX_WAITING_BYTES", 100)
    shed = []

    async def run():
        places = Places(lambda: shed.append(1), draw=lambda least, most: least)
        go = asyncio.Event()

        async def hold():
            async with places.turn(size):
                await go.wait()

        held = [asyncio.create_task(hold()) for _ in range(number)]
        await asyncio.sleep(0)
        with pytest.raises(Refused) as caught:
            async with places.turn(size):
                pass
        go.set()
        await asyncio.gather(*held)
        async with places.turn(size):  # there is room again
            pass
        return caught.value

    refused = asyncio.run(run())
    assert (refused.code, refused.retry_after_s) == ("too_many", 5)
    assert shed == [1]


def test_writes_are_awaited_and_failures_come_back(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'hub.db'}")
    sizes = []

    def handler(_connection, items):
        sizes.append(len(items))
        return [ValueError(item) if item == 3 else item * 2 for item in items]

    async def run():
        bridge = Bridge(store)
        works = [bridge.write(handler, item) for item in range(10)]
        return await asyncio.gather(*works, return_exceptions=True)

    results = asyncio.run(run())
    assert [one for one in results if isinstance(one, int)] == [0, 2, 4, 8, 10, 12, 14, 16, 18]
    assert isinstance(results[3], ValueError)
    assert sum(sizes) == 10
    store.close()

    async def late():
        await Bridge(store).write(handler, 1)

    with pytest.raises(StoreError, match="closed"):
        asyncio.run(late())


def test_a_request_that_was_given_up_is_passed_over(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'hub.db'}")

    async def run():
        bridge = Bridge(store)
        lost = asyncio.create_task(bridge.write(lambda _c, items: items, 1))
        await asyncio.sleep(0)
        lost.cancel()
        return await bridge.write(lambda _c, items: items, 2)

    assert asyncio.run(run()) == 2
    store.close()


def test_grants_are_noted_once_for_many_that_wait(tmp_path, monkeypatch):
    written = []
    write = outside.raise_granted

    def counted(keys, granted):
        written.append(granted)
        write(keys, granted)

    monkeypatch.setattr(outside, "raise_granted", counted)

    async def run():
        grants = Grants(tmp_path)
        await asyncio.gather(*(grants.note(7) for _ in range(20)))
        await grants.note(5)
        await grants.note(0)
        assert outside.read(tmp_path).granted == 7
        await grants.note(8)

    asyncio.run(run())
    assert written == [7, 8]
    assert outside.read(tmp_path).granted == 8


def test_grants_that_cannot_be_noted_are_tried_again(tmp_path):
    lock = tmp_path / "money.lock"
    lock.mkdir()

    async def run():
        grants = Grants(tmp_path)
        with pytest.raises(StoreError, match="locked"):
            await grants.note(7)
        lock.rmdir()
        await grants.note(7)

    asyncio.run(run())
    assert outside.read(tmp_path).granted == 7
