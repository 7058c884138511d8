"""The native loop on a real model: same text as the loop in Python, for many callers at once."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge._native.engine import Request, batch_layout
from edge.backends.generate import Generation, generate, stream
from edge.backends.llama.decoder import LlamaDecoder
from edge.backends.llama.engine import mismatch
from edge.backends.llama.library import llama_library
from edge.backends.scheduler import Ticket
from edge.errors import Busy, GenerationError, InputError, ModelError
from edge.sampling import Sampler
from edge.types import SamplingParams

MODEL = Path(__file__).resolve().parents[2] / "models" / "actions-q8_0" / "actions-q8_0.gguf"
TEXTS = (
    "add clem burke to my playlist pre-party",
    "book a table for four at the cave in boston",
    "will it be chilly in weldon on friday",
    "play some jazz by miles davis",
    "rate this book five out of six stars",
)
WARM = SamplingParams(temperature=1.2, top_p=0.95, seed=3, repetition_penalty=1.1)


def opened(**options):
    options = {"context": 512, "threads": 1, "max_sequences": 4, **options}
    return LlamaDecoder.open(MODEL, name="actions", digest="d" * 64, **options)


@pytest.fixture(scope="module")
def decoder():
    made = opened()
    yield made
    made.close()


@pytest.fixture
def slow(decoder, monkeypatch):
    """The same decoder through the loop in Python."""
    return SimpleNamespace(
        **{
            name: getattr(decoder, name)
            for name in ("info", "end_tokens", "tokenize", "piece", "sequence")
        },
        scheduler=None,
    )


def prompt(decoder, text, mode="answer"):
    return decoder.tokenize(f"<utt> {text}<again> {text}<{mode}>", parse_special=True)


@pytest.mark.parametrize(
    "params", [SamplingParams(), WARM, SamplingParams(temperature=3.0, seed=1)]
)
@pytest.mark.parametrize("stop", [(), (" in",), ('": "', "t"), ("e t", "zzz")])
def test_it_writes_what_the_loop_in_python_writes(decoder, slow, params, stop):
    for text in TEXTS[:3]:
        tokens = prompt(decoder, text)
        ours = generate(decoder, tokens, params=params, max_tokens=40, stop=stop)
        theirs = generate(slow, tokens, params=params, max_tokens=40, stop=stop)
        assert (ours.text, ours.tokens, ours.finish) == (theirs.text, theirs.tokens, theirs.finish)
        assert ours.usage == theirs.usage
        assert [s.token for s in ours.stats] == [s.token for s in theirs.stats]
        assert np.allclose(ours.stats, theirs.stats, atol=1e-5)


def test_pieces_joined_are_the_text_and_hold_no_broken_character(decoder):
    wild = SamplingParams(temperature=50.0, seed=11)  # any byte may come
    steps = list(stream(decoder, prompt(decoder, TEXTS[0]), params=wild, max_tokens=120))
    *pieces, done = steps
    assert "".join(pieces) == done.text
    whole = b"".join(decoder.piece(token) for token in done.tokens)
    assert done.text == whole.decode(errors="replace") or done.text in whole.decode(
        errors="replace"
    )


def test_many_callers_at_once_get_what_each_gets_alone(decoder):
    alone = {t: generate(decoder, prompt(decoder, t), params=WARM, max_tokens=30) for t in TEXTS}
    found = []

    def call(text):
        found.append((text, generate(decoder, prompt(decoder, text), params=WARM, max_tokens=30)))

    threads = [threading.Thread(target=call, args=(text,)) for text in TEXTS * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    # Sums in another order may flip a draw at a border; almost all must agree.
    same = sum(alone[text].tokens == done.tokens for text, done in found)
    assert same >= 18
    assert all(alone[text].text[:12] == done.text[:12] for text, done in found)


def test_a_long_prompt_is_read_in_chunks_while_others_go_on(decoder):
    engine = decoder.scheduler._engine
    endless = SamplingParams(logit_bias=tuple((t, -np.inf) for t in decoder.end_tokens))
    long = Request(Sampler(endless, decoder.info.vocab_size), [5] * 400, 2)
    quick = Request(Sampler(endless, decoder.info.vocab_size), [5, 6], 3)
    with decoder._handles.context_lock:
        try:
            engine.admit(quick, 0, 0)
            engine.run(quick, 1)
            engine.admit(long, 1, 0)
            engine.run(quick, 1)
            assert (quick.generated, long.kept) == (2, 128)
            engine.run(quick, 1)
            assert (quick.finish, long.kept) == ("length", 256)
            while not long.finish:
                engine.run(long, 8)
        finally:
            for request in engine.active:
                request.cancel()
            ended = {request for request, _ in engine.reap()}
        assert ended == {quick, long}


def test_a_full_queue_answers_busy_with_a_time(decoder):
    scheduler = decoder.scheduler
    holders = [decoder.sequence() for _ in range(4)]
    tickets = [
        Ticket(Request(Sampler(SamplingParams(), decoder.info.vocab_size), [5], 1))
        for _ in range(64)
    ]
    try:
        for ticket in tickets:
            scheduler._enqueue(ticket)
        with pytest.raises(Busy, match="64 requests wait") as caught:
            generate(decoder, [5], params=SamplingParams(), max_tokens=1)
        assert caught.value.retry_after_s > 0
        assert "Try again in" in caught.value.hint
    finally:
        for ticket in tickets:
            scheduler._leave(ticket)
        for holder in holders:
            holder.close()
    assert generate(decoder, [5], params=SamplingParams(), max_tokens=1).tokens


def test_no_sequence_within_the_wait_is_busy():
    with opened_for(max_sequences=1, wait_s=0.1) as decoder:
        holder = decoder.sequence()
        with pytest.raises(Busy, match="taken"):
            generate(decoder, [5], params=SamplingParams(), max_tokens=1)
        holder.close()
        assert generate(decoder, [5], params=SamplingParams(), max_tokens=1).tokens


def test_cancel_takes_effect_before_the_next_step(decoder):
    asked = []

    def cancel():
        asked.append(1)
        return len(asked) == 3

    done = generate(
        decoder,
        prompt(decoder, TEXTS[0]),
        params=SamplingParams(),
        max_tokens=30,
        cancel=cancel,
    )
    assert done.finish == "cancelled"
    assert len(done.tokens) == 2


def test_cancel_takes_effect_while_a_request_waits_for_a_sequence():
    with opened_for(max_sequences=1) as decoder:
        holder, asked = decoder.sequence(), []

        def cancel():
            asked.append(1)
            return len(asked) == 3

        done = generate(decoder, [5], params=SamplingParams(), max_tokens=9, cancel=cancel)
        holder.close()
        assert (done.finish, done.tokens, done.text) == ("cancelled", (), "")
        assert generate(decoder, [5], params=SamplingParams(), max_tokens=1).tokens


def test_cancel_takes_effect_behind_a_request_that_goes_on():
    endless = SamplingParams(logit_bias=tuple((token, -np.inf) for token in (0, 1, 2)))
    with opened_for(max_sequences=1) as decoder:
        begun, left, results = threading.Event(), threading.Event(), []

        def goes_on():
            begun.set()
            return left.is_set()

        def first():
            results.append(generate(decoder, [5], params=endless, max_tokens=400, cancel=goes_on))

        thread = threading.Thread(target=first)
        thread.start()
        assert begun.wait(30)
        behind = generate(decoder, [5], params=SamplingParams(), max_tokens=9, cancel=lambda: True)
        left.set()
        thread.join()
        assert (behind.finish, behind.tokens) == ("cancelled", ())
        assert results[0].tokens


def test_an_exception_of_cancel_reaches_the_caller_that_waits():
    with opened_for(max_sequences=1) as decoder:
        holder = decoder.sequence()
        with pytest.raises(ZeroDivisionError):
            generate(decoder, [5], params=SamplingParams(), max_tokens=9, cancel=lambda: 1 // 0 > 0)
        holder.close()
        assert generate(decoder, [5], params=SamplingParams(), max_tokens=1).tokens


def test_an_abandoned_stream_gives_its_sequence_back(decoder):
    for _ in range(9):
        steps = stream(
            decoder, prompt(decoder, TEXTS[3], "draft"), params=SamplingParams(), max_tokens=30
        )
        assert isinstance(next(steps), str)
        steps.close()
    assert decoder.scheduler._engine.active == ()
    holders = [decoder.sequence() for _ in range(4)]
    for holder in holders:
        holder.close()


def test_an_exception_of_one_callback_reaches_that_caller_alone(decoder):
    def bad(tokens):
        if len(tokens) == 2:
            raise KeyError("mine")

    results = []

    def other():
        tokens = prompt(decoder, TEXTS[1])
        results.append(generate(decoder, tokens, params=SamplingParams(), max_tokens=30))

    threads = [threading.Thread(target=other) for _ in range(3)]
    for thread in threads:
        thread.start()
    with pytest.raises(KeyError, match="mine"):
        generate(
            decoder,
            prompt(decoder, TEXTS[0]),
            params=SamplingParams(),
            max_tokens=30,
            allowed=bad,
        )
    for thread in threads:
        thread.join()
    assert len({r.text for r in results}) == 1


def test_a_mask_holds_in_every_step(decoder):
    words = (decoder.info.vocab_size + 31) // 32
    only = np.zeros(words, dtype=np.uint32)
    only[300 // 32] |= np.uint32(1 << (300 % 32))
    done = generate(
        decoder,
        prompt(decoder, TEXTS[0]),
        params=SamplingParams(),
        max_tokens=5,
        allowed=lambda _tokens: only,
    )
    assert done.tokens == (300,) * 5
    assert all(0 <= stats.allowed_mass < 1 for stats in done.stats)
    with pytest.raises(GenerationError, match="allowed"):
        generate(
            decoder,
            [5],
            params=SamplingParams(),
            max_tokens=2,
            allowed=lambda _tokens: np.zeros(words, dtype=np.uint32),
        )
    with pytest.raises(InputError, match="mask"):
        generate(
            decoder,
            [5],
            params=SamplingParams(),
            max_tokens=2,
            allowed=lambda _tokens: np.zeros(1, dtype=np.uint32),
        )


class opened_for:  # noqa: N801 - reads as a function
    def __init__(self, **options):
        self.decoder = opened(**options)

    def __enter__(self):
        return self.decoder

    def __exit__(self, *_):
        self.decoder.close()


def beginnings(decoder):
    words = decoder.tokenize(" the quick brown fox in the park and the other one" * 6)
    return words[:60], [decoder.tokenize(text) for text in (" play", " book a table", " rate")]


def test_a_shared_beginning_changes_no_text(tmp_path):
    with opened_for(snapshots=tmp_path) as decoder:
        start, endings = beginnings(decoder)
        plain = [
            generate(decoder, start + e, params=SamplingParams(), max_tokens=20).tokens
            for e in endings
        ]
        for _ in range(2):
            kept = [
                generate(
                    decoder, start + e, params=SamplingParams(), max_tokens=20, shared=len(start)
                ).tokens
                for e in endings
            ]
            assert kept == plain
        assert len(list(tmp_path.glob("*.kv"))) == 1
    with opened_for(snapshots=tmp_path) as decoder:
        restored = generate(
            decoder, start + endings[0], params=SamplingParams(), max_tokens=20, shared=len(start)
        )
        assert restored.tokens == plain[0]
        assert decoder.scheduler._shared._kept


def test_a_snapshot_never_overwrites_what_is_still_to_be_copied(tmp_path):
    starts = [[at + 20, *range(300, 340)] for at in range(3)]
    ends = [[5], [6], [7]]

    def ticket(decoder, at):
        sampler = Sampler(SamplingParams(), decoder.info.vocab_size)
        request = Request(sampler, starts[at] + ends[at], 8)
        return Ticket(request, prefix=tuple(starts[at]))

    def alone(decoder, at):
        return generate(decoder, starts[at] + ends[at], params=SamplingParams(), max_tokens=8)

    def read(decoder, at):
        list(decoder.scheduler.stream(ticket(decoder, at)))

    with opened_for(snapshots=tmp_path) as decoder:
        plain = [alone(decoder, at).tokens for at in range(3)]
        for at in (2, 0, 1):  # the last two stay in memory, the first only on disk
            read(decoder, at)
        tickets = [ticket(decoder, at) for at in range(3)]
        for one in tickets:
            decoder.scheduler._enqueue(one)
        for one in tickets:
            decoder.scheduler._advance(one)
        while any(one.request.finish is None for one in tickets):
            for one in tickets:
                decoder.scheduler._advance(one)
        assert [one.request.tokens for one in tickets] == plain


@pytest.mark.parametrize(
    "harm",
    [
        lambda raw: raw[:-10],
        lambda raw: raw[:-10] + bytes(10),
        lambda raw: b"{}\n" + raw,
        lambda raw: raw.replace(b'"context": 512', b'"context": 513'),
        lambda _raw: b"",
        lambda raw: raw.partition(b"\n")[0] + b"\n",
    ],
)
def test_a_damaged_or_foreign_snapshot_is_a_miss(tmp_path, harm):
    with opened_for(snapshots=tmp_path) as decoder:
        start, endings = beginnings(decoder)
        tokens = start + endings[0]
        good = generate(
            decoder, tokens, params=SamplingParams(), max_tokens=20, shared=len(start)
        ).tokens
    (path,) = tmp_path.glob("*.kv")
    path.write_bytes(harm(path.read_bytes()))
    with opened_for(snapshots=tmp_path) as decoder:
        again = generate(decoder, tokens, params=SamplingParams(), max_tokens=20, shared=len(start))
        assert again.tokens == good
    assert len(list(tmp_path.glob("*.kv"))) == 1


def test_snapshots_keep_under_their_cap(tmp_path):
    with opened_for(snapshots=tmp_path) as decoder:
        snapshots = decoder.scheduler._shared._prefixes
        start, endings = beginnings(decoder)
        generate(decoder, start + endings[0], params=SamplingParams(), max_tokens=2, shared=60)
        (first,) = tmp_path.glob("*.kv")
        snapshots._cap_bytes = int(first.stat().st_size * 2.5)
        for at in range(4):
            generate(
                decoder,
                [at + 20, *start, 5],
                params=SamplingParams(),
                max_tokens=2,
                shared=len(start),
            )
        assert len(list(tmp_path.glob("*.kv"))) == 2
        assert not first.exists()


def in_fork(work):
    """Return what ``work`` says in a forked process, by its exit code."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except ModelError as error:
            os._exit(0 if "forked" in str(error) and "spawn" in str(error) else 3)
        os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_fork_is_told_what_to_do_instead(decoder):
    use = lambda: generate(decoder, [5], params=SamplingParams(), max_tokens=1)  # noqa: E731
    assert in_fork(use) == 0
    assert in_fork(opened) == 0


def test_a_paused_stream_loses_no_text(decoder):
    whole = generate(
        decoder, prompt(decoder, TEXTS[3], "draft"), params=SamplingParams(), max_tokens=30
    )
    paused = stream(
        decoder, prompt(decoder, TEXTS[3], "draft"), params=SamplingParams(), max_tokens=30
    )
    first = next(paused)
    generate(decoder, prompt(decoder, TEXTS[0]), params=SamplingParams(), max_tokens=30)
    *pieces, done = paused
    assert first + "".join(pieces) == done.text == whole.text


def test_a_closed_model_is_named():
    decoder = opened()
    decoder.close()
    with pytest.raises(ModelError, match="closed"):
        generate(decoder, [5], params=SamplingParams(), max_tokens=1)


def test_the_layout_is_compared_with_the_loaded_library():
    lib = llama_library()
    assert mismatch(lib) is None
    size, offsets = batch_layout()
    fields = [SimpleNamespace(offset=offset) for offset in offsets]
    names = [name for name, _ in lib.llama_batch._fields_]
    assert len(names) == len(fields)

    class Longer(lib.llama_batch):
        _fields_ = [("more", lib.llama_batch)]  # noqa: RUF012

    other = SimpleNamespace(llama_batch=Longer)
    assert str(size) in mismatch(other)


@pytest.mark.parametrize(("prompt_tokens", "room", "words"), [([], 1, "prompt"), ([5], 0, "room")])
def test_a_request_needs_a_prompt_and_room(decoder, prompt_tokens, room, words):
    with pytest.raises(InputError, match=words):
        Request(Sampler(SamplingParams(), decoder.info.vocab_size), prompt_tokens, room)


def test_a_generation_without_statistics(decoder):
    tokens = prompt(decoder, TEXTS[0])
    with_them = generate(decoder, tokens, params=WARM, max_tokens=20)
    without = generate(decoder, tokens, params=WARM, max_tokens=20, statistics=False)
    assert isinstance(without, Generation)
    assert without.tokens == with_them.tokens
    assert without.stats == ()
