"""The lookup: what is kept, what is found again, and what must not be."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edge.admit import admit
from edge.confidence.calibration import Calibration
from edge.confidence.key import CalibrationKey
from edge.considering import Considered
from edge.errors import GenerationError, InputError
from edge.keeping import habit_of
from edge.local import LocalTask
from edge.lookup import NOT_LOOKED, Lookup
from edge.route import Action, Decision, Terms
from edge.store.cache import FILE, Cache
from edge.store.traces import Traces
from edge.task import PoolSpec, Prompt, TaskSpec
from edge.types import Reason, Result, Route, SamplingParams, Verdict

EXACT = {"exact_cache": {"enabled": True, "ttl_seconds": 60}}
SIMILAR = {"semantic_cache": {"enabled": True, "ttl_seconds": 30}}
HEAD = {"kind": "classify", "model": "head"}
DECODER = {"kind": "classify", "model": "decoder", "prompt": "p", "labels": ["ham", "spam"]}
CALL = {"kind": "extract", "model": "decoder", "prompt": "p", "output_schema": {}}
DRAFT = {"kind": "generate", "model": "decoder", "prompt": "p"}
POOL = {"base_url": "http://pool", "model": "big"}
PRICE = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1}


class FakeEncoder:
    """A vector for each text it was told of; counts what it was asked."""

    info = SimpleNamespace(context=8)

    def __init__(self, vectors):
        self.vectors = vectors
        self.asked = 0

    def count_tokens(self, text):
        return len(text.split())

    def embed(self, texts):
        self.asked += 1
        if texts[0] == "it fails":
            raise GenerationError("It failed.")
        found = np.array([self.vectors[text] for text in texts], np.float32)
        return found / np.linalg.norm(found)


class FakeModels:
    """Knows versions, labels and calibrations, and lends the encoder."""

    def __init__(self, encoder, version="1"):
        manifest = SimpleNamespace(encoder=None)
        store = SimpleNamespace(manifest=lambda _: manifest, version=lambda name: (name, version))
        self.loader = SimpleNamespace(store=store)
        self.calibrations = SimpleNamespace(of=lambda *_: None)
        self._encoder = encoder

    def encoder(self, _):
        return nullcontext(self._encoder)

    def labels(self, task):
        return task.spec.labels


class World:
    """A lookup with all that is around it; ``under`` is the same place under another policy."""

    def __init__(self, folder, caching, spec=None, **options):
        self.folder = folder
        self.now = 1_000.0
        self.threshold = None
        self.encoder = FakeEncoder({"a": (1, 0), "near a": (1, 0.3), "far": (0, 1)})
        self.cache = Cache(folder)
        self.traces = Traces.open(folder)
        self.under(caching, spec, **options)

    def under(self, caching, spec=None, *, pool=POOL, version="1", prompt="{text}", **options):
        wanted = TaskSpec.model_validate({**(spec or HEAD), "caching": caching})
        template = Prompt(version=1, template=prompt) if wanted.prompt else None
        tasks = {name: LocalTask(name, wanted, template, ()) for name in ("spam", "other")}
        tasks |= options.pop("beside", {})
        self.tasks = tasks
        self.models = FakeModels(self.encoder, version)
        self.lookup = Lookup(
            self.cache,
            tasks,
            self.models,
            oversight=SimpleNamespace(terms=lambda *_: Terms(threshold=self.threshold)),
            traces=self.traces,
            pools={"default": PoolSpec.model_validate({**pool, "price": PRICE})},
            runs=options.pop("runs", lambda _: True),
            clock=lambda: self.now,
            **options,
        )
        return self

    def fit(self, calibration):
        self.models.calibrations.of = lambda *_: calibration

    def call(self, text, task="spam", **context):
        return replace(admit(self.tasks, task, text), context=context)

    def ask(self, text, task="spam", **context):
        """Return the result found before anything runs, and where a head's does not stand."""
        call = self.call(text, task, **context)
        looked = self.lookup.find(call)
        return (looked if looked.result else self.lookup.instead(call, looked)).result

    def keep(self, text, *, task="spam", context=None, tier="spam", **changes):
        """Answer a text and keep the answer where it may be kept; return its trace."""
        call = self.call(text, task, **(context or {}))
        looked = self.lookup.find(call)
        result = answer(call, **changes)
        row = {"trace_id": call.trace_id, "at": 1.0, "task": task, "route": result.route.value}
        detail = {"tier": tier, "answer_sha256": "x"} if result.route is Route.LOCAL else {}
        self.traces.append(row | {"detail": detail})
        self.lookup.remember(call, looked, found(tier), result)
        return call.trace_id

    def close(self):
        self.cache.close()
        self.traces.close()


def answer(call, **changes):
    facts = {
        "value": "ham",
        "confidence": 0.9,
        "certified": False,
        "route": Route.LOCAL,
        "provisional": False,
        "model": "head",
        "device": "cpu",
        "cost_microusd": 500,
        "latency_ms": 1.0,
        "tokens_in": 3,
        "tokens_out": 1,
        "trace_id": call.trace_id,
        "reasons": (Reason.CONFIDENT,),
        "task": call.name,
        "interval": (0.8, 0.95),
    }
    return Result(**(facts | changes))


def found(tier):
    verdict = Verdict(valid=True, confidence=0.9)
    return Considered(None, verdict, Decision(Action.KEEP, ()), tier=tier)


CLOUD = {"route": Route.CLOUD, "confidence": None, "interval": None, "device": "cloud"}


@pytest.fixture
def world(tmp_path):
    made = []

    def make(caching, spec=None, **options):
        made.append(World(tmp_path, caching, spec, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_without_caching_nothing_is_looked_for_kept_or_made(world, tmp_path):
    here = world({})
    assert here.lookup.find(here.call("a")) is NOT_LOOKED
    here.keep("a")
    assert here.ask("a") is None
    assert not (tmp_path / FILE).exists()


def test_the_same_text_gets_all_that_was_known_at_no_cost(world):
    here = world(EXACT, revision=4)
    origin = here.keep("a", certified=True)
    again = here.ask("a")
    assert (again.value, again.confidence, again.interval) == ("ham", 0.9, (0.8, 0.95))
    assert (again.certified, again.route, again.provisional) == (True, Route.CACHE, False)
    assert (again.model, again.device, again.cost_microusd) == ("head", "cpu", 0)
    assert (again.tokens_in, again.tokens_out, again.reasons) == (0, 0, (Reason.CACHED,))
    assert here.ask("A") is None
    trace = here.traces.get(again.trace_id)
    assert (trace["route"], trace["policy"], trace["text"]) == ("cache", 4, None)
    assert trace["reasons"] == ["cached"]
    assert trace["detail"] == {"from": origin, "policy": 4, "tier": "spam"}


def test_a_similar_text_gets_the_answer_but_no_confidence(world):
    here = world(SIMILAR, DECODER)
    origin = here.keep("a", certified=True)
    again = here.ask("near a")
    assert (again.value, again.route, again.reasons) == ("ham", Route.CACHE, (Reason.SIMILAR,))
    assert (again.confidence, again.interval, again.certified) == (None, None, False)
    detail = here.traces.get(again.trace_id)["detail"]
    assert (detail["from"], detail["similarity"]) == (origin, 0.958)
    assert here.ask("far") is None


def test_the_same_text_is_told_from_a_similar_one(world):
    here = world({**EXACT, **SIMILAR}, DECODER)
    here.keep("a")
    assert here.ask("a").reasons == (Reason.CACHED,)
    assert here.ask("near a").reasons == (Reason.SIMILAR,)
    here.now += 31
    assert here.ask("near a") is None
    assert here.ask("a").reasons == (Reason.CACHED,)
    here.now += 30
    assert here.ask("a") is None


def test_each_cache_acts_by_its_own_switch(world):
    here = world(EXACT, DECODER)
    here.keep("a")
    assert here.encoder.asked == 0
    assert here.ask("near a") is None
    here.under(SIMILAR, DECODER)
    here.keep("a")
    assert here.ask("a").reasons == (Reason.SIMILAR,)


@pytest.mark.parametrize(("threshold", "hit"), [(0.9, True), (0.958, True), (0.959, False)])
def test_the_threshold_in_force_counts(world, threshold, hit):
    here = world(SIMILAR, DECODER)
    here.keep("a")
    cache = {**SIMILAR["semantic_cache"], "similarity_threshold": threshold}
    here.under({"semantic_cache": cache}, DECODER)
    assert (here.ask("near a") is not None) is hit


def test_the_time_in_force_counts(world):
    here = world(EXACT)
    here.keep("a")
    here.now += 20
    assert here.ask("a") is not None
    here.under({"exact_cache": {"enabled": True, "ttl_seconds": 10}})
    assert here.ask("a") is None
    here.now -= 1_000  # the clock is set back: how old the answer is nobody knows
    assert here.ask("a") is None


def test_marked_words_must_be_shared(world):
    here = world(SIMILAR, DECODER)
    here.encoder.vectors |= {"send 10": (1, 0), "send 100": (1, 0), "send now 10": (1, 0.1)}
    here.keep("send 10")
    assert here.ask("send 100") is None
    assert here.ask("send now 10").reasons == (Reason.SIMILAR,)


OTHERS = [
    {"pool": {**POOL, "model": "bigger"}},
    {"version": "2"},
    {"prompt": "{text}?"},
    {"spec": {**DECODER, "routing": {"keep_above": 0.8}}},
    {"spec": {**DECODER, "labels": ["ham", "junk"]}},
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_what_decides_an_answer_is_in_its_key(world, other):
    here = world({**EXACT, **SIMILAR}, DECODER)
    here.keep("a")
    spec = other.get("spec", DECODER)
    rest = {name: value for name, value in other.items() if name != "spec"}
    here.under({**EXACT, **SIMILAR}, spec, **rest)
    assert here.ask("a") is None
    assert here.ask("near a") is None
    here.under({**EXACT, **SIMILAR}, {**DECODER, "description": "x", "samples": ["y"]})
    assert here.ask("a") is not None
    assert here.ask("near a") is not None


def test_task_and_context_are_in_the_key(world):
    here = world(EXACT)
    here.keep("a", context={"tier": "gold"})
    assert here.ask("a") is None
    assert here.ask("a", tier="basic") is None
    assert here.ask("a", "other", tier="gold") is None
    assert here.ask("a", tier="gold") is not None


def test_the_next_tier_is_in_the_key(world):
    spec = {**HEAD, "routing": {"then": "next"}}
    following = TaskSpec.model_validate({**HEAD, "model": "second"})
    here = world(EXACT, spec, beside={"next": LocalTask("next", following)})
    here.keep("a", tier="next")
    assert here.ask("a") is not None
    strict = TaskSpec.model_validate({**HEAD, "model": "second", "routing": {"keep_above": 0.9}})
    here.under(EXACT, spec, beside={"next": LocalTask("next", strict)})
    assert here.ask("a") is None


def test_a_new_calibration_finds_none_of_the_old_answers(world):
    here = world(EXACT)
    fitted = Calibration(CalibrationKey("d", "spam"), ("margin",), (0,), (1,), (1,), 0.0, 9, 0.1)
    here.keep("a")
    here.fit(fitted)
    assert here.ask("a") is None
    here.keep("a")
    assert here.ask("a") is not None
    here.fit(replace(fitted, bias=0.5))
    assert here.ask("a") is None
    here.fit(replace(fitted))
    assert here.ask("a") is not None
    assert here.ask("a", "other") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"value": None},
        {"provisional": True},
        {"reasons": (Reason.CONFIDENT, Reason.INPUT_TRUNCATED)},
        {"route": Route.DEFERRED},
        {"route": Route.ABSTAINED},
    ],
    ids=str,
)
def test_what_is_not_final_is_not_kept(world, changes):
    here = world(EXACT)
    here.keep("a", **changes)
    assert here.ask("a") is None


@pytest.mark.parametrize(
    ("spec", "exact", "similar"),
    [
        (HEAD, True, True),
        (DECODER, True, True),
        (DRAFT, True, True),
        (CALL, True, False),
        ({**DRAFT, "sampling": SamplingParams(temperature=0.4)}, False, False),
        ({**CALL, "sampling": SamplingParams(temperature=0.4)}, False, False),
        ({"kind": "embed", "model": "encoder"}, False, False),
        ({**HEAD, "routing": {"risk": 0.1}}, True, False),
    ],
    ids=str,
)
def test_which_tasks_are_cached(spec, exact, similar):
    both = TaskSpec.model_validate({**spec, "caching": {**EXACT, **SIMILAR}})
    habit = habit_of(both)
    assert (bool(habit and habit.exact_s), bool(habit and habit.similar)) == (exact, similar)
    only = habit_of(TaskSpec.model_validate({**spec, "caching": SIMILAR}))
    assert (only is not None) is similar
    assert habit_of(TaskSpec.model_validate(spec)) is None
    assert habit is None or habit.head_first is (spec.get("model") == "head")
    blind = habit_of(both, may_embed=False)
    assert (blind is not None) is exact
    assert blind is None or blind.similar is None


def test_a_head_is_asked_first_and_its_answers_are_for_the_same_text_only(world):
    here = world({**EXACT, **SIMILAR})
    here.keep("a")
    assert here.encoder.asked == 0
    assert here.ask("near a") is None
    here.keep("a", **CLOUD)
    assert here.lookup.find(here.call("near a")).result is None
    again = here.ask("near a")
    assert (again.value, again.device, again.reasons) == ("ham", "cloud", (Reason.SIMILAR,))


def test_looking_and_keeping_make_one_vector(world):
    here = world(SIMILAR, DECODER)
    here.keep("a")
    assert here.encoder.asked == 1
    here.keep("far")
    assert here.encoder.asked == 2


@pytest.mark.parametrize("text", ["a b c d e f g h i", "it fails"])
def test_a_text_without_a_whole_vector_is_only_the_same_as_itself(world, text):
    here = world({**EXACT, **SIMILAR}, DECODER)
    here.keep(text)
    assert here.ask(text).reasons == (Reason.CACHED,)
    here.under(SIMILAR, DECODER)
    assert here.ask(text) is None


def test_nothing_stopped_is_given(world):
    here = world(EXACT)
    here.keep("a")
    here.keep("far", **CLOUD)
    assert here.under(EXACT, stopped=["spam"]).ask("a") is None
    here.under(EXACT, runs=lambda name: name != "spam")
    assert here.ask("a") is None
    assert here.ask("far").device == "cloud"


def test_a_call_to_a_denied_tool_is_not_given(world):
    here = world(EXACT, CALL)
    here.keep("a", value={"intent": "Pay"})
    assert here.ask("a").value == {"intent": "Pay"}
    assert here.under(EXACT, CALL, tools={"Pay": Reason.STOPPED}).ask("a") is None


@pytest.mark.parametrize(("threshold", "hit"), [(None, True), (0.9, True), (0.95, False)])
def test_an_answer_below_the_threshold_of_now_is_not_given(world, threshold, hit):
    here = world(EXACT)
    here.keep("a", certified=True)
    here.keep("far", **CLOUD)
    here.threshold = threshold
    assert (here.ask("a") is not None) is hit
    assert here.ask("far") is not None


def test_a_cache_that_cannot_be_used_costs_no_answer(world, tmp_path):
    (tmp_path / FILE).write_bytes(b"mine" * 300)
    here = world({**EXACT, **SIMILAR}, DECODER)
    here.keep("a")
    assert here.ask("a") is None
    assert (tmp_path / FILE).read_bytes() == b"mine" * 300


def test_a_corrected_answer_is_forgotten_wherever_it_was_seen(world):
    here = world(EXACT, DECODER)
    origin = here.keep("a")
    again = here.ask("a").trace_id
    assert here.lookup.corrected(again, "ham") == origin
    assert here.ask("a") is not None
    assert here.lookup.corrected(again, "spam") == origin
    assert here.ask("a") is None
    origin = here.keep("a")
    assert here.lookup.corrected(origin, "spam") == origin
    assert here.ask("a") is None


def test_a_word_on_the_clouds_answer_or_on_a_likeness_is_none_on_the_device(world):
    here = world({**EXACT, **SIMILAR}, DECODER)
    origin = here.keep("a", **CLOUD)
    assert here.lookup.corrected(here.ask("a").trace_id, "ham") is None
    assert here.lookup.corrected(here.ask("near a").trace_id, "spam") is None
    assert here.ask("a") is None
    origin = here.keep("a", **CLOUD)
    assert here.lookup.corrected(origin, "spam") is None
    assert here.ask("a") is None
    assert here.lookup.corrected(origin, "spam") == origin  # as without a cache
    assert here.lookup.corrected("unknown", "spam") == "unknown"


def test_a_word_that_is_no_label_forgets_nothing(world):
    here = world(EXACT, DECODER)
    origin = here.keep("a")
    with pytest.raises(InputError, match="not one of the labels"):
        here.lookup.corrected(origin, "no label")
    assert here.ask("a") is not None
