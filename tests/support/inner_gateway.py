"""The real gateway inside a test's process: its application in a loop of its own, its register at
hand. Requests reach it without a network, and can be made to fail or to be changed on the way."""

import asyncio
import secrets
import threading

import httpx

from edge_sync.gateway.config import Settings
from edge_sync.gateway.records import Ask
from edge_sync.gateway.register import Register
from edge_sync.gateway.server import App
from edge_sync.money.lease import Lease

SECRET = "a secret of the hub and its gateway"


class InnerGateway:
    """A gateway, from now until ``close``.

    Attributes:
        down: nothing answers.
        answer: what is answered in place of the gateway's own answer, by the last part of the path.
        asked: last parts of the paths that were asked for.

    """

    def __init__(self, folder, pool, *, keys, clock, secret=SECRET):
        self.pool, self.clock = pool, clock
        self.down = False
        self.answer = {}
        self.asked = []
        self._settings = Settings.model_validate(
            {
                "pool": pool,
                "hub": {"keys": keys},
                "upstreams": [
                    {"name": "u", "base_url": "http://127.0.0.1:9/v1", "model": "m",
                     "input_microusd_per_mtok": 1, "output_microusd_per_mtok": 1}
                ],
            }
        )  # fmt: skip
        self._secret = secret
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.open(folder / f"{pool}.db")

    def open(self, path):
        """Start on a register."""
        self.register = Register.open(path)
        env = {"EDGE_GATEWAY_SECRET": self._secret}
        self._app = App(self._settings, self.register, env, tell=lambda *_, **__: None)
        self._inbox = self._run(_make(asyncio.Queue))
        self._outbox = self._run(_make(asyncio.Queue))
        self._life = asyncio.run_coroutine_threadsafe(
            self._app({"type": "lifespan"}, self._inbox.get, self._outbox.put), self._loop
        )
        self._say("lifespan.startup")

    def shut(self):
        """End, as a process does."""
        self._say("lifespan.shutdown")
        self._life.result(10)
        self.register.close()

    def close(self):
        self.shut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def transport(self, _url=""):
        return _Carry(self)

    def carry(self, request):
        name = request.url.path.rsplit("/", 1)[-1]
        self.asked.append(name)
        if self.down:
            raise httpx.ConnectError("nobody is there", request=request)
        if name in self.answer:
            given = self.answer[name]
            found = given(self._through(request)) if callable(given) else given
            return found if isinstance(found, httpx.Response) else httpx.Response(200, json=found)
        return self._through(request)

    def hold(self, lease, amount, hold=None):
        """Hold an amount of a lease for a call, and return the hold's id."""
        given = Lease.parse(lease) if isinstance(lease, str) else lease
        hold = hold or secrets.token_hex(16)
        ask = Ask(given, "hub", hold, hold, amount, self.clock())
        self.register.write(lambda book: book.hold(ask))
        return hold

    def settle(self, hold, cost):
        self.register.write(lambda book: book.settle(hold, cost, now=self.clock()))

    def spend(self, lease, cost):
        self.settle(self.hold(lease, cost), cost)

    def leave_unclear(self, hold):
        self.register.write(lambda book: book.keep(hold))

    def totals(self):
        return self.register.write(lambda book: book.totals())

    def epoch(self):
        return self.register.write(lambda book: book.epoch("hub"))

    def revoked(self):
        return self.register.write(
            lambda book: {row[0] for row in book._run("SELECT device_id FROM revoked")}
        )

    def _through(self, request):
        transport = httpx.ASGITransport(app=self._app)
        return self._run(_whole(transport, request))

    def _say(self, kind):
        self._loop.call_soon_threadsafe(self._inbox.put_nowait, {"type": kind})
        told = self._run(self._outbox.get())
        assert told["type"] == f"{kind}.complete", told

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)


class _Carry(httpx.BaseTransport):
    def __init__(self, gateway):
        self._gateway = gateway

    def handle_request(self, request):
        request.read()
        answer = self._gateway.carry(request)
        # As from a network: not read yet.
        whole = httpx.ByteStream(answer.content)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=whole)


async def _make(kind):
    return kind()


async def _whole(transport, request):
    asked = httpx.Request(
        request.method, request.url, headers=request.headers, content=request.content
    )
    answer = await transport.handle_async_request(asked)
    return httpx.Response(
        answer.status_code, headers=answer.headers, content=await answer.aread(), request=request
    )
