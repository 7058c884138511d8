"""Trees of conditions as JSON: the same condition comes back, and nothing else gets in."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import ConfigError
from edge.policy.conditions import MAX_DEPTH, MAX_LENGTH, evaluate, parse
from edge.policy.rules import Rule, names_of, read_rules
from edge.policy.sections import RuleCondition
from edge.policy.tree import And, Comparison, Constant, Literal, Membership, Name, Not, Or
from edge.policy.written import MAX_LEVELS, read_tree, write_tree

NAMES = {"confidence": "number", "margin": "number", "tier": "text", "mood": "text", "vip": "flag"}
NUMBER = {"name": "confidence", "type": "number"}
TEXT = {"name": "tier", "type": "text"}
FLAG = {"name": "vip", "type": "flag"}
BELOW = {"compare": "<", "left": NUMBER, "right": {"value": 0.72}}


def carried(condition, names=NAMES):
    """Return a condition that went through JSON text."""
    return read_tree(json.loads(json.dumps(write_tree(condition))), names)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("confidence < 0.72", BELOW),
        ("vip", FLAG),
        ("true", {"constant": True}),
        ("not vip", {"not": FLAG}),
        ("vip or confidence < 0.72", {"or": [FLAG, BELOW]}),
        ("vip and vip and vip", {"and": [FLAG, FLAG, FLAG]}),
        ("tier not in ['a', 'b']", {"in": ["a", "b"], **TEXT, "negated": True}),
        ("tier == none", {"compare": "==", "left": TEXT, "right": {"value": None}}),
        ("vip == false", {"compare": "==", "left": FLAG, "right": {"value": False}}),
    ],
)
def test_what_a_condition_is_written_as(text, tree):
    assert write_tree(parse(text, NAMES)) == tree
    assert read_tree(tree, NAMES) == read_tree(tree) == parse(text, NAMES)


def test_a_whole_number_in_json_is_a_number():
    assert read_tree({**BELOW, "right": {"value": 1}}, NAMES) == parse("confidence < 1", NAMES)


def test_the_deepest_text_has_a_tree_that_is_read():
    text = "vip or vip and (" * MAX_DEPTH + "vip or vip and vip" + ")" * MAX_DEPTH
    assert carried(parse(text, NAMES)) == parse(text, NAMES)
    assert carried(parse("not " * MAX_DEPTH + "vip", NAMES))


def test_the_longest_list_is_read():
    text = "confidence in [" + ", ".join(["1"] * 600) + "]"
    assert len(text) < MAX_LENGTH
    assert carried(parse(text, NAMES)) == parse(text, NAMES)


def nested(levels):
    tree = FLAG
    for _ in range(levels):
        tree = {"not": tree}
    return tree


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (None, "nothing and not an object"),
        ("vip", "of the type str and not an object"),
        ([FLAG], "of the type list"),
        ({}, "keys none"),
        ({"not": FLAG, "or": []}, "keys not, or, which together mean nothing"),
        ({"call": "x"}, "keys call"),
        ({**BELOW, "more": 1}, "keys compare, left, more, right"),
        ({"and": [FLAG]}, "list of two parts"),
        ({"or": FLAG}, "list of two parts"),
        ({"constant": 1}, "a flag is of the type int"),
        (NUMBER, "confidence alone must be a flag"),
        ({"name": "secret", "type": "flag"}, "secret is not a name that it may use"),
        ({"name": "tier", "type": "flag"}, "tier is declared as text and not as flag"),
        ({"name": "a.b", "type": "flag"}, "'a.b' cannot be a name"),
        ({"name": "and", "type": "flag"}, "'and' cannot be a name"),
        ({"name": 7, "type": "flag"}, "'7' cannot be a name"),
        ({"name": "vip", "type": "list"}, "cannot be of the type 'list'"),
        ({"name": "vip", "type": ["flag"]}, "cannot be of the type"),
        ({**BELOW, "compare": "<>"}, "'<>' is no comparison"),
        ({**BELOW, "compare": ["<"]}, "is no comparison"),
        ({**BELOW, "left": 3}, "an operand is of the type int"),
        ({**BELOW, "left": {"value": 1, "type": "number"}}, "an operand is a value, or a name"),
        ({**BELOW, "left": {"value": 0.1}}, "two fixed values"),
        ({**BELOW, "right": {"value": "0.72"}}, "confidence is a number and '0.72' is a text"),
        ({**BELOW, "right": {"value": None}}, "< needs numbers"),
        ({**BELOW, "right": {"value": [1]}}, "a value is of the type list"),
        ({**BELOW, "right": {"value": float("nan")}}, "not finite"),
        ({**BELOW, "right": {"value": 10**400}}, "not finite"),
        ({"compare": "<", "left": TEXT, "right": {"value": "a"}}, "< needs numbers"),
        ({"in": [], **TEXT, "negated": False}, "list of one value"),
        ({"in": [1], **TEXT, "negated": False}, "values of another type"),
        ({"in": [None], **TEXT, "negated": False}, "values of another type"),
        ({"in": ["a"], **TEXT, "negated": 0}, "a flag is of the type int"),
        (nested(MAX_LEVELS), "nested too deep"),
        ({"or": [FLAG] * MAX_LENGTH}, "too long"),
        ({"in": ["a"] * MAX_LENGTH, **TEXT, "negated": False}, "too long"),
        ({"in": ["a" * MAX_LENGTH], **TEXT, "negated": False}, "2,000 characters"),
    ],
)
def test_what_is_no_tree_is_named(tree, words):
    with pytest.raises(ConfigError, match=words) as caught:
        read_tree(tree, NAMES, what="Rule 1")
    assert caught.value.message.startswith("Rule 1 is no tree of a condition: ")
    assert "Publish" in caught.value.hint
    assert len(str(caught.value)) < 400


def of_type(kind):
    literal = {
        "number": st.floats(allow_nan=False, allow_infinity=False),
        "text": st.text(max_size=8),
        "flag": st.booleans(),
    }[kind].map(Literal)
    name = st.sampled_from([n for n, t in NAMES.items() if t == kind]).map(lambda n: Name(n, kind))
    signs = ["==", "!=", "<", "<=", ">", ">="] if kind == "number" else ["==", "!="]
    members = st.lists(literal, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        st.builds(Comparison, name, st.sampled_from(signs), st.one_of(name, literal)),
        st.builds(Comparison, literal, st.sampled_from(signs), name),
        st.builds(Comparison, name, st.sampled_from(["==", "!="]), st.just(Literal(None))),
        st.builds(Membership, name, members, negated=st.booleans()),
    )


def groups(part):
    parts = st.lists(part, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, part), st.builds(And, parts), st.builds(Or, parts))


leaves = st.one_of(
    *map(of_type, ("number", "text", "flag")),
    st.just(Name("vip", "flag")),
    st.builds(Constant, st.booleans()),
)
trees = st.recursive(leaves, groups, max_leaves=8)


@settings(deadline=None, max_examples=300)
@given(trees)
def test_the_same_condition_comes_back(tree):
    assert carried(tree) == tree
    assert carried(tree, None) == tree


some = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0, "", "a", True, False]))


@settings(deadline=None, max_examples=300)
@given(trees, st.fixed_dictionaries(dict.fromkeys(NAMES, some)))
def test_the_tree_decides_as_the_parsed_text_does(tree, values):
    text = str(tree)
    assert evaluate(carried(tree), values) == evaluate(parse(text, NAMES), values)


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=5), st.integers()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["and", "or", "not", "compare", "left", "right", "in", "name"])
            | st.sampled_from(["type", "negated", "value", "constant"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=300)
@given(plain)
def test_any_value_is_a_condition_or_refused(value):
    try:
        condition = read_tree(value, NAMES)
    except ConfigError:
        return
    assert parse(str(condition), NAMES) == condition


@settings(deadline=None, max_examples=300)
@given(trees, st.data())
def test_a_tree_with_one_part_exchanged_is_sound_or_refused(tree, data):
    written = write_tree(tree)
    at, places = written, []
    while isinstance(at, dict | list) and at:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        places.append((at, key))
        at = at[key]
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = data.draw(plain)
    try:
        condition = read_tree(written, NAMES)
    except ConfigError:
        return
    assert parse(str(condition), NAMES) == condition


def test_rules_take_trees_without_parsing():
    # This text is none that a parser would take, so only the tree can have been read.
    unreadable = RuleCondition.model_construct(text="???", tree=BELOW)
    context = {name: kind for name, kind in NAMES.items() if name not in {"confidence", "margin"}}
    found = read_rules("t", [(unreadable, "large"), ("vip", None)], context=context)
    names = names_of(context)
    assert found == (Rule(parse("confidence < 0.72", names), "large"), Rule(parse("vip", names)))


def test_rules_hold_a_tree_to_what_the_pack_declares():
    rule = RuleCondition(text="tier == 'a'", tree=write_tree(parse("tier == 'a'", NAMES)))
    assert read_rules("t", [(rule, None)], context={"tier": "text"})
    for context, words in (({}, "tier is not a name"), ({"tier": "number"}, "declared as number")):
        with pytest.raises(ConfigError, match=f"The condition of rule 1 of task t .*{words}"):
            read_rules("t", [(rule, None)], context=context)
