"""Policies: read, compiled to the same bytes, loaded again, laid over a pack; or refused."""

import json

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edge.errors import ConfigError
from edge.overlay import (
    FORMAT,
    Change,
    Policy,
    compile_policy,
    difference,
    json_schema,
    lay,
    load_document,
    read_policy,
)
from edge.pack import assembled, find_pack, load_pack
from edge.policy import rules
from edge.policy.document import MAX_BYTES
from edge.roster import all_tasks

ESSAY = """
TASK_BUDGETS:
  support_intent:
    max_model_calls: 3
    max_input_tokens: 200
    max_output_tokens: 32
    max_tool_ms: 1500
    p95_latency_slo_ms: 900
ROUTING:
  default_model: banking77-head
  escalate_if:
    - {condition: "confidence < 0.72", model: large}
    - {condition: "account_tier == 'enterprise' and sentiment == 'high_risk'", model: large}
CACHING:
  semantic_cache: {enabled: true, similarity_threshold: 0.92, ttl_seconds: 86400}
  exact_cache: {enabled: true, ttl_seconds: 3600}
pools:
  large:
    base_url: https://pool.example/v1
    model: large
    price: {input_usd_per_mtok: 1, output_usd_per_mtok: 4}
"""
POOL = {
    "base_url": "https://pool.example/v1",
    "model": "m",
    "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 4},
}
SHOP = {
    "name": "shop",
    "version": 1,
    "context": {"tier": "text"},
    "task_budgets": {"max_output_tokens": 64},
    "routing": {"keep_above": 0.6},
    "caching": {"exact_cache": {"enabled": True}},
    "pools": {"default": POOL},
    "models": {"own": {"folder": "/models/own"}},
    "prompts": {"p": {"version": 1, "template": "{text}"}},
    "tools": {"lookup": {"allow": True}},
    "tasks": {
        "mood": {"kind": "classify", "model": "mood-head", "routing": {"keep_above": 0.8}},
        "say": {
            "kind": "generate",
            "model": "own",
            "prompt": "p",
            "sampling": {"temperature": 0.4, "seed": 7},
            "grammar": {"regex": "a+"},
        },
    },
}
CONTEXT = {"tier": "text"}


@pytest.fixture(scope="module")
def kiosk():
    return load_pack(find_pack("kiosk"))


@pytest.fixture
def shop():
    return assembled(SHOP, "Pack shop.yaml")


def policy_of(sections):
    return read_policy(yaml.safe_dump(sections), what="Policy p.yaml")


def document_of(policy, **changes):
    given_ = {"revision": 1, "created_at": 1.5, "context": CONTEXT, **changes}
    return load_document(compile_policy(policy, **given_))


def laid(pack, sections):
    """Lay a policy over a pack, as text and as a document: both give the same."""
    policy = policy_of(sections)
    result = lay(pack, document_of(policy))
    assert plain(lay(pack, policy)) == plain(result)
    return result


def plain(pack):
    """Return a pack as JSON, its conditions as canonical text."""

    def texts(value):
        if isinstance(value, dict) and value.keys() == {"text", "tree"}:
            return value["text"]
        if isinstance(value, dict):
            return {key: texts(each) for key, each in value.items()}
        return [texts(each) for each in value] if isinstance(value, list) else value

    return texts(pack.model_dump(mode="json"))


def test_the_essay_acts_as_written(kiosk, tmp_path):
    policy = read_policy(ESSAY, what="essay.yaml")
    document = load_document(compile_policy(policy, revision=7, created_at=1.0))
    pack = lay(kiosk, document)
    budget = pack.tasks["support_intent"].budget
    assert (budget.max_model_calls, budget.max_input_tokens, budget.max_output_tokens) == (
        3,
        200,
        32,
    )
    assert (budget.max_tool_ms, budget.p95_latency_slo_ms) == (1500, 900)
    assert pack.tasks["spam"].budget == kiosk.tasks["spam"].budget
    for spec in pack.tasks.values():
        semantic, exact = spec.caching.semantic_cache, spec.caching.exact_cache
        assert (semantic.enabled, semantic.similarity_threshold) == (True, 0.92)
        assert (semantic.ttl_seconds, exact.enabled, exact.ttl_seconds) == (86_400, True, 3600)
    assert pack.caching == pack.tasks["spam"].caching
    for task in all_tasks(pack, tmp_path).values():
        first, second = task.rules
        assert {rule.pool for rule in task.rules} == {"large"}
        assert first.condition.holds({"confidence": 0.71})
        assert not first.condition.holds({"confidence": 0.72})
        assert second.condition.holds({"account_tier": "enterprise", "sentiment": "high_risk"})
        assert second.condition.holds({"account_tier": "enterprise"}) is None
        assert not second.condition.holds({"account_tier": "free", "sentiment": "high_risk"})


def test_a_device_parses_no_condition(kiosk, tmp_path, monkeypatch):
    data = compile_policy(read_policy(ESSAY), revision=1, created_at=1.0)

    def refuse(*_, **__):
        raise AssertionError("parsed")

    monkeypatch.setattr(rules, "parse", refuse)
    pack = lay(kiosk, load_document(data))
    assert all(len(task.rules) == 2 for task in all_tasks(pack, tmp_path).values())


BUDGET, ROUTING, SAY = "tasks.mood.budget", "tasks.mood.routing", "tasks.say"


@pytest.mark.parametrize(
    ("sections", "place", "value"),
    [
        # What the pack says stays where the policy is silent.
        ({}, f"{ROUTING}.keep_above", 0.8),
        ({}, f"{SAY}.routing.keep_above", 0.6),
        ({}, f"{BUDGET}.max_output_tokens", 64),
        # A section for all tasks goes over what the pack says of one.
        ({"routing": {"keep_above": 0.9}}, f"{ROUTING}.keep_above", 0.9),
        ({"routing": {"keep_above": 0.9}}, f"{SAY}.routing.keep_above", 0.9),
        ({"routing": {"below": "defer"}}, f"{ROUTING}.keep_above", 0.8),
        ({"task_budgets": {"max_model_calls": 1}}, f"{BUDGET}.max_output_tokens", 64),
        ({"task_budgets": {"max_output_tokens": 9}}, f"{BUDGET}.max_output_tokens", 9),
        ({"privacy": {"allow_cloud": "raw"}}, f"{SAY}.privacy.allow_cloud", "raw"),
        # The policy's own word on a task goes over its section.
        (
            {"routing": {"keep_above": 0.9}, "tasks": {"mood": {"routing": {"keep_above": 0.1}}}},
            f"{ROUTING}.keep_above",
            0.1,
        ),
        (
            {"task_budgets": {"max_tool_ms": 5, "mood": {"max_tool_ms": 6}}},
            f"{BUDGET}.max_tool_ms",
            6,
        ),
        (
            {"task_budgets": {"max_tool_ms": 5, "mood": {"max_tool_ms": 6}}},
            f"{SAY}.budget.max_tool_ms",
            5,
        ),
        (
            {
                "task_budgets": {"mood": {"max_tool_ms": 6}},
                "tasks": {"mood": {"budget": {"max_tool_ms": 7}}},
            },
            f"{BUDGET}.max_tool_ms",
            7,
        ),
        # Caches merge to the last key; a task may have its own.
        (
            {"caching": {"exact_cache": {"ttl_seconds": 5}}},
            f"{SAY}.caching.exact_cache",
            {"enabled": True, "ttl_seconds": 5},
        ),
        (
            {"tasks": {"say": {"caching": {"semantic_cache": {"enabled": True}}}}},
            f"{SAY}.caching.semantic_cache",
            {"enabled": True, "ttl_seconds": 86_400, "similarity_threshold": 0.92},
        ),
        (
            {"tasks": {"say": {"caching": {"semantic_cache": {"enabled": True}}}}},
            "tasks.mood.caching.semantic_cache.enabled",
            False,
        ),
        # A task that the policy adds starts from the defaults of both.
        (
            {"tasks": {"new": {"kind": "classify"}}, "routing": {"below": "defer"}},
            "tasks.new.routing.keep_above",
            0.6,
        ),
        (
            {"tasks": {"new": {"kind": "classify"}}, "routing": {"below": "defer"}},
            "tasks.new.routing.below",
            "defer",
        ),
        # Mappings merge, everything else replaces.
        ({"tasks": {"say": {"sampling": {"temperature": 0}}}}, f"{SAY}.sampling.seed", 7),
        ({"tasks": {"say": {"sampling": {"temperature": 0}}}}, f"{SAY}.sampling.temperature", 0),
        (
            {"tasks": {"say": {"grammar": {"choices": ["a", "b"]}}}},
            f"{SAY}.grammar",
            {"regex": None, "lark": None, "choices": ["a", "b"]},
        ),
        ({"prompts": {"p": {"version": 2}}}, "prompts.p.template", "{text}"),
        ({"pools": {"default": {"model": "n"}}}, "pools.default.model", "n"),
        ({"pools": {"other": POOL}, "routing": {"pool": "other"}}, f"{ROUTING}.pool", "other"),
        ({"models": {"own": {"digest": "a" * 64}}}, "models.own.digest", "a" * 64),
        ({"models": {"own": {"digest": "a" * 64}}}, "models.own.folder", None),
        ({"tools": {"lookup": {"allow": False}}}, "tools.lookup.allow", False),
        ({"tools": {"send": {"allow": False}}}, "tools.lookup.allow", True),
        ({"context": {"mood": "number"}}, "context", {"tier": "text", "mood": "number"}),
        ({"budget": {"cap_usd": 2.5}}, "budget.cap_usd", "2.5"),
        ({"calibration": {"mood": "/c.json"}}, "calibration.mood", "/c.json"),
        ({"tasks": {"mood": {"model": None}}}, "tasks.mood.model", None),
        # An empty section says nothing.
        ({"routing": None}, f"{ROUTING}.keep_above", 0.8),
        ({"ROUTING": {"keep_above": 0.9}}, f"{ROUTING}.keep_above", 0.9),
    ],
)
def test_what_counts(shop, sections, place, value):
    found = plain(laid(shop, sections))
    for key in place.split("."):
        found = found[key]
    assert found == value


def test_the_pack_itself_is_not_changed(shop):
    before = plain(shop)
    laid(shop, {"routing": {"keep_above": 0.9}, "tasks": {"new": {"kind": "classify"}}})
    assert plain(shop) == before


def test_an_empty_policy_changes_nothing(shop, kiosk):
    for pack in (shop, kiosk):
        assert plain(lay(pack, policy_of({}))) == plain(pack)


def test_one_policy_after_the_other(shop):
    once = laid(shop, {"routing": {"keep_above": 0.9}})
    assert laid(once, {"routing": {"below": "abstain"}}).tasks["mood"].routing.keep_above == 0.9
    assert plain(laid(once, {"routing": {"keep_above": 0.9}})) == plain(once)


@pytest.mark.parametrize(
    ("own", "packs", "policys", "model"),
    [
        ({}, None, None, None),
        ({}, "a", None, "a"),
        ({}, None, "b", "b"),
        ({}, "a", "b", "b"),
        ({"model": "c"}, "a", "b", "c"),
        ({"model": "a"}, "a", "b", "a"),
        ({"model": None}, "a", "b", None),
    ],
)
def test_the_default_model_is_for_tasks_that_name_none(own, packs, policys, model):
    pack = assembled(
        {
            "name": "p",
            "version": 1,
            "routing": {"default_model": packs},
            "tasks": {"t": {"kind": "classify", **own}},
        },
        "P",
    )
    policy = {"routing": {"default_model": policys}} if policys else {}
    result = laid(laid(pack, {}), policy)
    assert result.tasks["t"].model == model
    assert result.routing.default_model == (policys or packs)


def test_a_default_model_is_held_to_what_its_task_needs():
    sections = {"name": "p", "version": 1, "tasks": {"t": {"kind": "generate"}}}
    pack = assembled(sections, "P")
    with pytest.raises(ConfigError, match=r"tasks\.t: a task of kind generate .* needs a prompt"):
        lay(pack, policy_of({"routing": {"default_model": "m"}}))


ALIAS = "tasks: &t {a: {kind: classify, output_schema: *t}}"
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour: red", "at colour: unknown section"),
        ("memory: {budget_mb: 5}", "at memory: unknown section"),
        ("name: shop", "at name: unknown section"),
        ("- 1", "must hold sections"),
        ("", "must hold sections"),
        ("tasks: [", "not a YAML"),
        ("routing: {}\nROUTING: {}", "upper and in lower"),
        ("routing: {keep_above: 1, keep_above: 2}", "stands twice"),
        ("routing: 5", "at routing: it must hold keys and values, not int"),
        ("routing: {keep_abov: 1}", "at routing.keep_abov: unknown key"),
        ("routing: {keep_above: high}", "at routing.keep_above: "),
        ("routing: {keep_above: 3}", "at routing.keep_above: "),
        ("routing: {default_model: 5}", "at routing.default_model: "),
        ("routing: {escalate_if: [{condition: 5}]}", "escalate_if.0.condition: must be text in"),
        ("routing: {escalate_if: [{model: x}]}", "escalate_if.0.condition: "),
        ("routing: {escalate_if: {condition: x}}", "at routing.escalate_if: "),
        ("routing: {escalate_if: [{condition: {text: vip}}]}", "condition: a condition must be te"),
        ("task_budgets: {max_modl_calls: 3}", "at task_budgets.max_modl_calls: unknown key"),
        ("task_budgets: {max_tool_ms: 0}", "at task_budgets.max_tool_ms: "),
        ("task_budgets: {t: {max_model_calls: many}}", "at task_budgets.t.max_model_calls: "),
        ("task_budgets: {t: {max: 1}}", "at task_budgets.t.max: unknown key"),
        ("task_budgets: [1]", "at task_budgets: it must hold"),
        ("caching: {semantic_cache: {similarity_threshold: 1.1}}", "semantic_cache.similarity_th"),
        ("caching: {semantic_cache: {ttl_seconds: 0}}", "caching.semantic_cache.ttl_seconds: "),
        ("caching: {exact_cache: {similarity_threshold: 1}}", "similarity_threshold: unknown key"),
        ("caching: {cache: {}}", "at caching.cache: unknown key"),
        ("tools: {pay: {allow: perhaps}}", "at tools.pay.allow: "),
        ("tools: {pay: no}", "at tools.pay: "),
        ("models: {m: {}}", "at models.m: needs exactly one of folder and digest"),
        ("models: {m: {folder: /m, digest: %s}}" % ("a" * 64), "exactly one"),
        ("models: {m: {digest: abc}}", "at models.m.digest: "),
        ("models: {m: {folder: models/m}}", "models.m.folder: models/m is no absolute path"),
        ("models: {../m: {digest: %s}}" % ("a" * 64), "at models: '../m' cannot be the name"),
        ("models: {'m:x': {folder: /m}}", "at models: 'm:x' cannot be the name of a model"),
        ("calibration: {t: c.json}", "calibration.t: c.json is no absolute path"),
        ("tasks: {t: {output_schema: schema.json}}", "at tasks.t.output_schema: "),
        ("tasks: {t: {kinds: 3}}", "at tasks.t.kinds: unknown key"),
        ("tasks: {t: {routing: {default_model: m}}}", "at tasks.t.routing.default_model: unkno"),
        ("tasks: {t: }", "at tasks.t: "),
        ("tasks: [t]", "at tasks: "),
        ("pools: {p: {base_url: 'ftp://x'}}", "at pools.p.base_url: "),
        ("pools: {p: {price: {input_usd_per_mtok: -1}}}", "price.input_usd_per_mtok: "),
        ("prompts: {p: {system: x}}", "at prompts.p.system: unknown key"),
        ("budget: {cap_usd: -1}", "at budget.cap_usd: "),
        ("budget: {period: year}", "at budget.period: "),
        ("context: {a: list}", "at context.a: "),
        ("context: {1: text}", "at context: the key '1' is no text"),
        ("tasks: {t: {cloud_prompt: 2026-11-24}}", "cloud_prompt: it is of the type date"),
        ("tasks: {t: {output_schema: {a: .nan}}}", "output_schema.a: the number is not finite"),
        ("tasks: !include tasks.yaml", "could not determine a constructor .*!include"),
        ("<<: !include tasks.yaml", "not a YAML"),
        (ALIAS, "it holds itself through an alias"),
        ("tasks: &t {<<: *t}", "nested too deep, or an alias holds itself"),
        (LAUGHS, "more than 100,000 values"),
        ("x: " + "[" * 2000, "nested too deep, or"),
        ("description: " + "x" * 10_000_000, "larger than 1,000,000 bytes"),
        (b"\xff\xfe", "not a YAML"),
        ("routing: {pool: \ud800}", "not valid Unicode"),
        ('routing: {pool: "\\ud800"}', "half of a character"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_what_is_wrong_is_named(text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        read_policy(text, what="Policy night.yaml")
    assert caught.value.message.startswith("Policy night.yaml")
    assert caught.value.hint
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"tasks": {"gone": {"model": "m"}}},
            r"task 'gone', which is unknown\. Tasks here: mood, ",
        ),
        ({"task_budgets": {"gone": {"max_tool_ms": 1}}}, "task 'gone', which is unknown"),
        ({"routing": {"pool": "gone"}}, r"names at routing\.pool the pool 'gone', which is unk"),
        ({"tasks": {"mood": {"routing": {"pool": "gone"}}}}, r"tasks\.mood\.routing\.pool the poo"),
        (
            {"routing": {"escalate_if": [{"condition": "confidence < 1", "model": "gone"}]}},
            "escalates to the unknown pool 'gone'",
        ),
        ({"tasks": {"mood": {"routing": {"then": "gone"}}}}, "goes on with 'gone'"),
        ({"tasks": {"say": {"prompt": "gone"}}}, "names the unknown prompt 'gone'"),
        ({"tasks": {"mood": {"grammar": {"regex": "a"}}}}, r"tasks\.mood: only a task of kind gen"),
        ({"calibration": {"gone": "/c.json"}}, "calibration names the unknown task 'gone'"),
        ({"budget": {"period": "day"}}, r"budget\.cap_usd: "),
        ({"pools": {"new": {"model": "m"}}}, r"pools\.new\.base_url: "),
        ({"prompts": {"p": {"template": "hello"}}}, r"prompts\.p\.template: must hold"),
        ({"context": {"tier": "number"}}, r"context\.tier as number, but the pack as text"),
        ({"context": {"confidence": "text"}}, "declares confidence, which every condition knows"),
    ],
)
def test_what_does_not_fit_the_pack_is_named(shop, sections, words):
    with pytest.raises(ConfigError, match=words) as caught:
        lay(shop, policy_of(sections))
    assert caught.value.hint


@pytest.mark.parametrize("place", ["routing", "tasks.mood.routing"])
@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("confidense < 0.72", "confidense is not a name .*Did you mean confidence"),
        ("colour == 'red'", "colour is not a name that it may use"),
        ("confidence < 'a'", "confidence is a number and 'a' is text"),
        ("tier < 'a'", "text has no order"),
        ("confidence <", "it ends where"),
        ("__import__('os')", "cannot be called|is not a name"),
        ("(" * 40 + "true" + ")" * 40, "nested deeper"),
        ("true or " * 1000 + "true", "characters when written out"),
    ],
)
def test_a_wrong_condition_is_refused_before_it_is_signed(shop, place, condition, words):
    routing = {"escalate_if": [{"condition": "true"}, {"condition": condition}]}
    sections = (
        {"routing": routing} if place == "routing" else {"tasks": {"mood": {"routing": routing}}}
    )
    policy = policy_of(sections)
    where = (
        rf"(?s)The condition at {place}\.escalate_if\.1\.condition of Policy p\.yaml .*({words})"
    )
    with pytest.raises(ConfigError, match=where):
        compile_policy(policy, revision=1, created_at=1.0, context=CONTEXT)
    with pytest.raises(ConfigError, match=f"(?s)condition of rule 2 of task mood .*({words})"):
        lay(shop, policy)


def test_conditions_may_use_what_policy_or_shipped_pack_declares(kiosk):
    text = "routing: {escalate_if: [{condition: \"sentiment == 'bad' and age > 6\"}]}\n"
    with pytest.raises(ConfigError, match="age is not a name"):
        compile_policy(read_policy(text), revision=1, created_at=1.0)
    policy = read_policy(text + "context: {age: number}")
    document = load_document(compile_policy(policy, revision=1, created_at=1.0))
    assert lay(kiosk, document).context["age"] == "number"
    with pytest.raises(ConfigError, match="sentiment is not a name"):
        compile_policy(policy, revision=1, created_at=1.0, context={})


def test_a_device_whose_pack_declares_otherwise_refuses(shop):
    policy = policy_of({"routing": {"escalate_if": [{"condition": "tier == 'a'"}]}})
    pack = assembled({**SHOP, "context": {"tier": "number"}}, "P")
    with pytest.raises(ConfigError, match="tier is declared as number and not as text"):
        lay(pack, document_of(policy))
    pack = assembled({**SHOP, "context": {}}, "P")
    with pytest.raises(ConfigError, match="tier is not a name that it may use"):
        lay(pack, document_of(policy))


def test_the_same_policy_has_the_same_bytes():
    one = read_policy("routing: {keep_above: 0.9, below: defer}\nTOOLS: {b: {}, a: {}}")
    two = read_policy("tools: {a: {}, b: {}}\nROUTING:\n  below: defer\n  keep_above: 0.90\n")
    data = compile_policy(one, revision=3, created_at=1)
    assert data == compile_policy(two, revision=3, created_at=1.0)
    assert data == (
        b'{"created_at":1.0,"format":"edge-policy-1","restores":null,"revision":3,"sections":'
        b'{"routing":{"below":"defer","keep_above":0.9},"tools":{"a":{},"b":{}}}}'
    )
    assert data != compile_policy(one, revision=4, created_at=1)


def test_a_document_says_what_it_is():
    policy = read_policy(ESSAY, what="essay.yaml")
    data = compile_policy(policy, revision=7, created_at=12.5, restores=5)
    document = load_document(data)
    assert (document.revision, document.created_at, document.restores) == (7, 12.5, 5)
    assert len(document.sha256) == 64
    assert document.policy == policy
    assert compile_policy(document.policy, revision=7, created_at=12.5, restores=5) == data
    rule = document.sections["routing"]["escalate_if"][0]
    assert rule["condition"]["text"] == "confidence < 0.72"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"revision": 0}, "at revision: "),
        ({"revision": True}, "at revision: "),
        ({"revision": 2**60}, "at revision: "),
        ({"revision": 1.0}, "at revision: "),
        ({"created_at": float("nan")}, "at created_at: "),
        ({"created_at": -1.0}, "at created_at: "),
        ({"created_at": "now"}, "at created_at: "),
        ({"restores": 0}, "at restores: "),
    ],
)
def test_numbers_that_cannot_be_are_not_compiled(change, words):
    numbers = {"revision": 1, "created_at": 1.0, **change}
    with pytest.raises(ConfigError, match=f"The policy is wrong {words}"):
        compile_policy(Policy({}), **numbers)


def test_a_document_has_a_largest_size():
    policy = Policy({"tasks": {"t": {"description": "x" * MAX_BYTES}}}, "Policy p.yaml")
    with pytest.raises(ConfigError, match=f"p.yaml has .* bytes as a document.*{MAX_BYTES:,}"):
        compile_policy(policy, revision=1, created_at=1.0)
    with pytest.raises(ConfigError, match="larger than"):
        load_document(b" " * (MAX_BYTES + 1))


def written(body):
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


GOOD = {"format": FORMAT, "revision": 1, "created_at": 1.0, "restores": None, "sections": {}}
TREE = {"compare": "<", "left": {"name": "confidence", "type": "number"}, "right": {"value": 0.5}}


def with_condition(condition):
    return {**GOOD, "sections": {"routing": {"escalate_if": [{"condition": condition}]}}}


def test_the_smallest_document_and_a_rule():
    assert load_document(written(GOOD)).sections == {}
    rule = {"text": "confidence < 0.5", "tree": TREE}
    assert load_document(written(with_condition(rule))).sections["routing"]["escalate_if"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "holds no object"),
        (b"NaN", "holds no object"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "nested deeper"),
        (b'{"a":NaN}', "a: the number is not finite"),
        (b'{"a":"\\ud800"}', "a: it holds half of a character"),
        (written(GOOD) + b"\n", "canonical"),
        (json.dumps(GOOD, sort_keys=True).encode(), "canonical"),
        (written(GOOD).replace(b'"revision":1', b'"revision":2,"revision":1'), "canonical"),
        (written(GOOD).replace(b"1.0", b"1.00"), "canonical"),
        (written({**GOOD, "sections": {"tools": {"é": {}}}}), "canonical"),
        (written({**GOOD, "format": "edge-policy-2"}), "at format: "),
        (written({**GOOD, "more": 1}), "at more: unknown key"),
        (written({k: v for k, v in GOOD.items() if k != "restores"}), "at restores: "),
        (written({**GOOD, "revision": "1"}), "at revision: "),
        (written({**GOOD, "revision": True}), "at revision: "),
        (written({**GOOD, "sections": []}), "at sections: "),
        (written({**GOOD, "sections": {"colour": {}}}), "at colour: unknown section"),
        (written({**GOOD, "sections": {"ROUTING": {}}}), "at ROUTING: unknown section"),
        (written({**GOOD, "sections": {"routing": None}}), "an empty section"),
        (written({**GOOD, "sections": {"routing": {"keep": 1}}}), "routing.keep: unknown key"),
        (written(with_condition("confidence < 0.5")), "has no tree"),
        (written(with_condition({"text": "confidence < 0.5"})), "has no tree"),
        (written(with_condition({"text": "true", "tree": TREE})), "say different things"),
        (written(with_condition({"text": "x", "tree": {"eval": "x"}})), "no tree of a condition"),
        (written(with_condition({"text": "x", "tree": TREE, "z": 1})), "unknown key"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_was_not_compiled_is_refused(data, words):
    with pytest.raises(ConfigError, match=words) as caught:
        load_document(data)
    assert caught.value.message.startswith("The policy document ")
    assert caught.value.hint
    assert len(str(caught.value)) < 500


ESSAY_BYTES = compile_policy(read_policy(ESSAY), revision=3, created_at=1.0)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(ESSAY_BYTES) - 1), st.binary(max_size=4), st.integers(0, 4))
@example(at=0, put=b"", cut=0)
def test_a_changed_document_is_refused_or_means_what_it_says(at, put, cut):
    """A device looks at signed bytes alone; beneath that nothing may fail otherwise."""
    data = ESSAY_BYTES[:at] + put + ESSAY_BYTES[at + cut :]
    try:
        document = load_document(data)
    except ConfigError:
        return
    again = compile_policy(
        document.policy,
        revision=document.revision,
        created_at=document.created_at,
        restores=document.restores,
        context={**CONTEXT, **_declared(document.sections)},
    )
    assert json.loads(again) == json.loads(data)


def _declared(sections):
    """Return the names that the trees use, by type."""
    if isinstance(sections, list):
        return {name: kind for each in sections for name, kind in _declared(each).items()}
    if not isinstance(sections, dict):
        return {}
    if sections.keys() == {"name", "type"}:
        known = sections["name"] in rules.SIGNALS
        return {} if known else {sections["name"]: sections["type"]}
    return {n: k for each in sections.values() for n, k in _declared(each).items()}


def test_the_difference_to_the_version_before():
    old = policy_of({"routing": {"keep_above": 0.7, "below": "defer"}, "tools": {"a": {}}})
    new = policy_of({"ROUTING": {"keep_above": 0.8, "below": "defer"}, "privacy": {}})
    assert difference(old, new) == [
        Change("privacy", None, {}),
        Change("routing.keep_above", 0.7, 0.8),
        Change("tools.a", {}, None),
    ]
    assert difference(None, old) == [
        Change("routing.below", None, "defer"),
        Change("routing.keep_above", None, 0.7),
        Change("tools.a", None, {}),
    ]
    assert difference(new, new) == []


def test_the_published_schema_takes_what_the_reader_takes():
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    judge = Draft202012Validator(schema)
    for text in (ESSAY, "{}", "routing: {keep_above: 0.5}", "tasks: {t: {model: null}}"):
        judge.validate(yaml.safe_load(text))
        read_policy(text)
    for text in (
        "colour: red",
        "ROUTING: {keep_abov: 1}",
        "task_budgets: {t: {max: 1}}",
        "task_budgets: {max_tool_ms: soon}",
        "routing: {escalate_if: [{condition: 5}]}",
        "caching: {exact_cache: {ttl_seconds: 0}}",
        "tasks: {t: {kind: guess}}",
    ):
        assert not judge.is_valid(yaml.safe_load(text)), text
        with pytest.raises(ConfigError):
            read_policy(text)
