"""The pool client over a scripted transport: fake clock, sleep and chance, no network."""

import json
import threading
import traceback

import httpx
import pytest

from edge.cloud.pool import MAX_BODY_BYTES, Message, Pool
from edge.errors import (
    CircuitOpen,
    CloudError,
    CloudRejected,
    CloudServerError,
    CloudTimeout,
    ConfigError,
    EdgeError,
    InputError,
    RateLimited,
)
from edge.task import PoolSpec

KEY = "sk-very-secret-4711"
PROMPT = "my pin is 0815"
ASKED = [Message("system", "Be brief."), Message("user", PROMPT)]
COMPLETION = {
    "id": "chat-1",
    "model": "small-2",
    "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 30, "completion_tokens": 4},
}
# At 1 and 10 dollars a million: 30 * 1 + 4 * 10, and bytes plus templates * 1 + 16 * 10.
COST, WORST = 70, (9 + 14 + 3 * 32) + 160
PAUSE_S = 0.25  # with chance 0.5


class Body(httpx.SyncByteStream):
    """A body that was not read yet, as a network's is; may run the clock or break off."""

    def __init__(self, *chunks, before=lambda: None, fails=None):
        self.chunks, self.before, self.fails = chunks, before, fails
        self.closed = False

    def __iter__(self):
        for chunk in self.chunks:
            self.before()
            yield chunk
        if self.fails:
            raise self.fails

    def close(self):
        self.closed = True


class World:
    """A clock, a sleep that moves it, and a server that answers from a script."""

    def __init__(self):
        self.now, self.slept, self.requests, self.script = 1000.0, [], [], []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def later(self, seconds):
        def move():
            self.now += seconds

        return move

    def handle(self, request):
        self.requests.append(request)
        step = self.script.pop(0) if self.script else answer()
        step = step() if callable(step) else step
        if isinstance(step, Exception):
            raise step
        return step

    def pool(self, env=None, **spec):
        fields = {
            "base_url": "https://pool.example/v1",
            "model": "small",
            "api_key_env": "POOL_KEY",
            "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 10},
            **spec,
        }
        return Pool(
            "gpu",
            PoolSpec.model_validate(fields),
            env={"POOL_KEY": KEY} if env is None else env,
            transport=httpx.MockTransport(self.handle),
            clock=self.clock,
            sleep=self.sleep,
            rng=lambda: 0.5,
            wall=lambda: 0.0,
        )


def answer(status=200, content=COMPLETION, headers=None, **body):
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return httpx.Response(status, headers=headers, stream=Body(raw, **body))


def ask(pool, **options):
    options = {"max_tokens": 16, "idempotency_key": "hold-1", **options}
    return pool.complete(ASKED, **options)


def failed(pool, **options):
    with pytest.raises(EdgeError) as caught:
        ask(pool, **options)
    tells_nothing(caught.value)
    return caught.value


def tells_nothing(error):
    """Neither the text of the error nor anything in its chain holds key, prompt or answer."""
    told = "".join(traceback.format_exception(error)) + repr(error.__dict__)
    for secret in (KEY, PROMPT, "yes sir"):
        assert secret not in told
    chain = [error]
    while chain:
        link = chain.pop()
        assert not isinstance(link, httpx.HTTPError | httpx.InvalidURL)
        chain += [near for near in (link.__cause__, link.__context__) if near is not None]


@pytest.fixture
def world():
    return World()


def test_an_answer_with_its_cost(world):
    world.script = [lambda: (world.later(0.5)(), answer())[1]]
    found = ask(world.pool())
    assert (found.text, found.finish, found.model) == ("yes", "stop", "small-2")
    assert (found.tokens_in, found.tokens_out, found.cost_microusd) == (30, 4, COST)
    assert (found.usage_reported, found.attempts, found.latency_ms) == (True, 1, 500.0)
    assert found.request_id == "chat-1"


def test_the_request_carries_key_idempotency_and_nothing_of_the_environment(world, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:1")
    ask(world.pool(base_url="https://pool.example/v1/"), temperature=0.5)
    (request,) = world.requests
    assert (request.method, str(request.url)) == (
        "POST",
        "https://pool.example/v1/chat/completions",
    )
    headers = {name: value for name, value in request.headers.items() if name != "content-length"}
    assert headers == {
        "host": "pool.example",
        "connection": "keep-alive",
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "idempotency-key": "hold-1",
        "user-agent": "edge-runtime",
        "authorization": f"Bearer {KEY}",
    }
    assert json.loads(request.content)["messages"][1]["content"] == PROMPT


def test_a_pool_without_a_key_sends_none(world):
    ask(world.pool(api_key_env=None, env={}))
    assert "authorization" not in world.requests[0].headers


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 3}, {"prompt_tokens": -1}])
def test_without_usage_the_worst_case_is_charged(world, usage):
    world.script = [answer(content={**COMPLETION, "usage": usage})]
    pool = world.pool()
    found = ask(pool)
    assert found.cost_microusd == WORST == pool.worst_case_microusd(ASKED, max_tokens=16)
    assert not found.usage_reported


def test_the_worst_case_covers_the_schema(world):
    pool, schema = world.pool(), {"type": "object"}
    plain = pool.worst_case_microusd(ASKED, max_tokens=16)
    world.script = [answer(content={**COMPLETION, "usage": None})]
    found = ask(pool, response_schema=schema)
    assert found.cost_microusd > plain
    assert found.cost_microusd == pool.worst_case_microusd(
        ASKED, max_tokens=16, response_schema=schema
    )


def test_names_fall_back_where_the_server_gives_none(world):
    bare = {"choices": COMPLETION["choices"]}
    world.script = [answer(content=bare), answer(headers={"x-request-id": "req\x01-7"})]
    pool = world.pool()
    first, second = ask(pool), ask(pool)
    assert (first.model, first.request_id) == ("small", "")
    assert second.request_id == "req-7"


def busy(seconds):
    return {"retry-after": str(seconds)}


# name -> (script, options of the call, error or None, maybe billed, requests, pauses)
ATTEMPTS = {
    "429, then an answer": ([answer(429), answer()], {}, None, None, 2, [PAUSE_S]),
    "429 with a pause that fits": (
        [answer(429, headers=busy(7)), answer()], {}, None, None, 2, [7 + PAUSE_S],
    ),
    "429 with a pause beyond the deadline": (
        [answer(429, headers=busy(20))], {}, RateLimited, False, 1, [],
    ),
    "429 with a pause that ends at the deadline": (
        [answer(429, headers=busy(7))], {"deadline_s": 7 + PAUSE_S}, RateLimited, False, 1, [],
    ),
    "429 twice": ([answer(429), answer(429)], {}, RateLimited, False, 2, [PAUSE_S]),
    "429, then 500": ([answer(429), answer(500)], {}, CloudServerError, True, 2, [PAUSE_S]),
    "503 that says when to come back": (
        [answer(503, headers=busy(1)), answer()], {}, None, None, 2, [1 + PAUSE_S],
    ),
    "503 that does not": ([answer(503)], {}, CloudServerError, True, 1, []),
    "500": ([answer(500)], {}, CloudServerError, True, 1, []),
    "no connection, then an answer": (
        [httpx.ConnectError("refused"), answer()], {}, None, None, 2, [PAUSE_S],
    ),
    "no connection twice": (
        [httpx.ConnectError("refused")] * 2, {}, CloudServerError, False, 2, [PAUSE_S],
    ),
    "no connection in time": ([httpx.ConnectTimeout("")], {}, CloudTimeout, False, 1, []),
    "no answer in time": ([httpx.ReadTimeout("")], {}, CloudTimeout, True, 1, []),
    "a request not taken in time": ([httpx.WriteTimeout("")], {}, CloudTimeout, True, 1, []),
    "broken off": ([httpx.ReadError(PROMPT)], {}, CloudServerError, True, 1, []),
    "no HTTP": ([httpx.RemoteProtocolError(PROMPT)], {}, CloudServerError, True, 1, []),
    "an error of the system": ([OSError(PROMPT)], {}, CloudServerError, True, 1, []),
    "400": ([answer(400)], {}, CloudRejected, False, 1, []),
    "401": ([answer(401, {"error": {"code": "invalid_api_key", "message": KEY}})], {},
            CloudRejected, False, 1, []),
    "a redirect": (
        [answer(307, headers={"location": "https://evil.example/v1"})], {},
        CloudRejected, False, 1, [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempts(world, name):
    script, options, error, maybe_billed, requests, pauses = ATTEMPTS[name]
    world.script = [again(step) for step in script]
    pool = world.pool()
    if error is None:
        found = ask(pool, **options)
        assert (found.text, found.cost_microusd, found.attempts) == ("yes", COST, requests)
    else:
        found = failed(pool, **options)
        assert (type(found), found.maybe_billed) == (error, maybe_billed)
        assert "gpu" in found.message
    assert (len(world.requests), world.slept) == (requests, pauses)
    assert len({request.headers["idempotency-key"] for request in world.requests}) == 1
    assert len({request.content for request in world.requests}) == 1
    assert {request.url.host for request in world.requests} == {"pool.example"}


def again(step):
    """Return a fresh copy: a response can be used once."""
    if isinstance(step, Exception):
        return step
    return httpx.Response(step.status_code, headers=step.headers, stream=step.stream)


@pytest.mark.parametrize("first", [answer(429), httpx.ConnectError("refused")])
def test_a_pool_without_retries_asks_once(world, first):
    world.script = [first]
    assert not failed(world.pool(retries=0)).maybe_billed
    assert (len(world.requests), world.slept) == (1, [])


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (lambda: answer(content=b"yes sir"), "no chat completion"),
        (lambda: answer(content=b'{"choices": [{"message": {"conte'), "no chat completion"),
        (lambda: answer(content={"error": {"message": "yes sir"}}), "no chat completion"),
        (lambda: answer(content={"choices": []}), "no chat completion"),
        (lambda: answer(content=b""), "no chat completion"),
        (lambda: answer(headers={"content-encoding": "gzip"}), "compressed or above 4 MiB"),
        (lambda: answer(headers={"content-encoding": "zstd"}), "compressed or above 4 MiB"),
        (lambda: answer(content=b" " * (MAX_BODY_BYTES + 1)), "compressed or above 4 MiB"),
        (lambda: answer(fails=httpx.ReadError("yes sir")), "broke off before a whole answer"),
        (lambda: answer(201), "answered 201"),
    ],
)
def test_a_200_that_is_no_completion_may_have_been_billed(world, response, words):
    made = response()
    stream = made.stream
    world.script = [made]
    error = failed(world.pool())
    assert type(error) is CloudServerError
    assert error.maybe_billed
    assert words in error.message
    assert len(world.requests) == 1
    assert stream.closed


def test_the_longest_answer_is_still_read(world):
    raw = json.dumps(COMPLETION).encode()
    world.script = [answer(content=raw + b" " * (MAX_BODY_BYTES - len(raw)))]
    assert ask(world.pool()).text == "yes"


def test_an_endless_body_is_left_at_the_limit(world):
    taken = []
    piece = b" " * 2**20
    world.script = [
        httpx.Response(200, stream=Body(*[piece] * 100, before=lambda: taken.append(1)))
    ]
    assert failed(world.pool()).maybe_billed
    assert len(taken) == 5


@pytest.mark.parametrize("content", [b"not json", b"", b" " * (MAX_BODY_BYTES + 1)])
def test_the_body_of_a_refusal_does_not_matter(world, content):
    world.script = [answer(429, content=content, fails=httpx.ReadError("")), answer()]
    assert ask(world.pool()).attempts == 2


@pytest.mark.parametrize(
    ("deadline_s", "requests", "sent"),
    [(0, 0, False), (-1, 0, False), (float("nan"), 0, False), (0.5, 1, True)],
)
def test_a_deadline_that_passes(world, deadline_s, requests, sent):
    world.script = [answer(before=world.later(1))]
    reached = []
    error = failed(world.pool(), deadline_s=deadline_s, on_send=lambda: reached.append(1))
    assert (type(error), error.maybe_billed) == (CloudTimeout, sent)
    assert (len(world.requests), len(reached)) == (requests, requests)


def test_a_deadline_that_passes_while_the_ledger_writes(world):
    error = failed(world.pool(), deadline_s=5, on_send=world.later(6))
    assert (type(error), error.maybe_billed, world.requests) == (CloudTimeout, False, [])


def test_the_pools_own_timeout_is_the_deadline(world):
    world.script = [answer(before=world.later(3))]
    assert type(failed(world.pool(timeout_s=3))) is CloudTimeout
    world.script = [answer(before=world.later(2.9))]
    assert ask(world.pool(timeout_s=3)).text == "yes"


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({}, "POOL_KEY, which is not set"),
        ({"POOL_KEY": ""}, "POOL_KEY, which is not set"),
        ({"POOL_KEY": " \n"}, "POOL_KEY, which is not set"),
        ({"POOL_KEY": KEY + "\r\nX-Evil: 1"}, "POOL_KEY, which holds characters no key has"),
        ({"POOL_KEY": KEY + "é"}, "POOL_KEY, which holds characters no key has"),
    ],
)
def test_a_missing_or_broken_key_sends_nothing(world, env, words):
    error = failed(world.pool(env=env))
    assert type(error) is ConfigError
    assert words in error.message
    assert world.requests == []


def test_a_key_is_read_at_each_call_and_trimmed(world):
    env = {"POOL_KEY": "one"}
    pool = world.pool(env=env)
    ask(pool)
    env["POOL_KEY"] = " two\n"
    ask(pool)
    assert [r.headers["authorization"] for r in world.requests] == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"idempotency_key": ""},
        {"idempotency_key": "a\nb"},
        {"idempotency_key": "é"},
        {"max_tokens": 0},
        {"temperature": float("nan")},
        {"response_schema": {"enum": {PROMPT}}},
    ],
)
def test_arguments_that_cannot_be_sent(world, wrong):
    reached = []
    error = failed(world.pool(), on_send=lambda: reached.append(1), **wrong)
    assert type(error) is InputError
    assert (world.requests, reached) == ([], [])


@pytest.mark.parametrize(
    "base_url",
    [
        *("http:///v1", "http://:80/v1", "http://h:0/v1", "http://h:80800/v1"),
        *("http://h:99999999/v1", "http://xn--a/v1", "http://xn--/v1"),
    ],
)
def test_a_base_url_that_is_no_address(world, base_url):
    with pytest.raises(ConfigError, match="base_url of pool gpu"):
        world.pool(base_url=base_url)


def test_on_send_comes_once_before_anything_leaves(world):
    world.script = [answer(429), answer()]
    seen = []
    ask(world.pool(), on_send=lambda: seen.append(len(world.requests)))
    assert (seen, len(world.requests)) == ([0], 2)


def test_nothing_leaves_where_on_send_fails(world):
    def refuse():
        raise KeyError

    pool = world.pool(breaker_failures=1)
    with pytest.raises(KeyError):
        ask(pool, on_send=refuse)
    assert (world.requests, pool.breaker.state) == ([], "closed")
    assert ask(pool).text == "yes"


@pytest.mark.parametrize(
    ("step", "state"),
    [
        (answer(500), "open"),
        (answer(429), "open"),
        (httpx.ReadTimeout(""), "open"),
        (answer(content=b""), "open"),
        (answer(400), "closed"),
        (answer(307), "closed"),
        (answer(), "closed"),
    ],
)
def test_what_counts_as_a_failure_of_the_pool(world, step, state):
    pool = world.pool(breaker_failures=1, retries=0)
    world.script = [again(step)]
    try:
        ask(pool)
    except CloudError as error:
        tells_nothing(error)
    assert pool.breaker.state == state


def test_the_breaker_opens_and_lets_one_call_try(world):
    pool = world.pool(breaker_failures=2, breaker_cooldown_s=30)
    world.script = [answer(500), answer(500), answer(500)]
    for _ in range(2):
        assert type(failed(pool)) is CloudServerError
    reached = []
    error = failed(pool, on_send=lambda: reached.append(1))
    assert (type(error), error.maybe_billed, reached) == (CircuitOpen, False, [])
    world.now += 30
    assert type(failed(pool)) is CloudServerError
    assert type(failed(pool)) is CircuitOpen
    world.now += 30
    assert ask(pool).text == "yes"
    assert ask(pool).text == "yes"
    assert len(world.requests) == 5


def test_a_closed_pool_sends_nothing(world):
    pool = world.pool()
    ask(pool)
    pool.close()
    pool.close()
    error = failed(pool)
    assert (type(error), error.maybe_billed) == (CloudError, False)
    assert "gpu was closed" in error.message
    assert len(world.requests) == 1


@pytest.mark.parametrize(
    ("step", "maybe_billed"),
    [(httpx.ReadError("shut"), True), (answer(429), False), (httpx.ConnectError(""), False)],
)
def test_closing_while_a_call_is_under_way(world, step, maybe_billed):
    pool = world.pool(breaker_failures=1)
    world.script = [lambda: (pool.close(), again(step))[1]]
    error = failed(pool)
    assert (type(error), error.maybe_billed) == (CloudError, maybe_billed)
    assert pool.breaker.state == "closed"
    assert len(world.requests) == 1


def test_many_threads_share_a_pool(world):
    pool, found = world.pool(), []
    threads = [threading.Thread(target=lambda: found.append(ask(pool).text)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["yes"] * 16
