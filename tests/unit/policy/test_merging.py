"""How sections are laid over each other, and what a change says."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ConfigError
from edge.policy.merging import Change, at_tasks, differences, lowered, merged
from edge.policy.plain import MAX_LEVELS, MAX_VALUES, check_plain


@pytest.mark.parametrize(
    ("under", "over", "whole"),
    [
        ({}, {}, {}),
        ({"a": 1}, {}, {"a": 1}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
        ({"a": {"x": 1}}, {"a": 5}, {"a": 5}),
        ({"a": 5}, {"a": {"x": 1}}, {"a": {"x": 1}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": [{"x": 1}]}, {"a": [{"y": 1}]}, {"a": [{"y": 1}]}),
        # Half of one and half of another make no sense.
        (
            {"models": {"m": {"folder": "/a"}, "n": {"folder": "/b"}}},
            {"models": {"m": {"digest": "d"}}},
            {"models": {"m": {"digest": "d"}, "n": {"folder": "/b"}}},
        ),
        (
            {"tasks": {"t": {"output_schema": {"type": "object", "required": ["a"]}}}},
            {"tasks": {"t": {"output_schema": {"type": "array"}}}},
            {"tasks": {"t": {"output_schema": {"type": "array"}}}},
        ),
        (
            {"tasks": {"t": {"grammar": {"regex": "a"}, "stop": ["x"]}}},
            {"tasks": {"t": {"grammar": {"choices": ["b", "c"]}}}},
            {"tasks": {"t": {"grammar": {"choices": ["b", "c"]}, "stop": ["x"]}}},
        ),
        (
            {"pools": {"p": {"price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}}}},
            {"pools": {"p": {"price": {"output_usd_per_mtok": 3}}}},
            {"pools": {"p": {"price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 3}}}},
        ),
    ],
)
def test_mappings_merge_and_all_else_replaces(under, over, whole):
    before = copy.deepcopy((under, over))
    assert merged(under, over) == whole
    assert (under, over) == before


leaf = st.one_of(st.none(), st.booleans(), st.integers(0, 3), st.lists(st.integers(0, 2)))
sections = st.recursive(
    st.dictionaries(st.sampled_from("abc"), leaf, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner | leaf, max_size=3),
    max_leaves=12,
)


@given(sections, sections)
def test_what_is_laid_over_is_there_and_once_is_enough(under, over):
    whole = merged(under, over)
    assert merged(whole, over) == whole
    assert merged({}, over) == over
    assert whole.keys() == under.keys() | over.keys()


@given(sections, sections)
def test_differences_say_nothing_of_the_same_and_something_of_others(old, new):
    found = list(differences(old, new))
    assert bool(found) == (json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True))
    assert [each.path for each in found] == sorted({each.path for each in found}, key=_parts)
    assert not list(differences(new, new))


def _parts(path):
    return path.split(".")


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, [("a", 1, 2)]),
        ({}, {"a": {"b": {"c": 1}}}, [("a.b.c", None, 1)]),
        ({"a": {"b": 1}}, {}, [("a.b", 1, None)]),
        ({"a": {"b": 1}}, {"a": 3}, [("a", {"b": 1}, 3)]),
        ({"a": {}}, {}, [("a", {}, None)]),
        ({}, {"a": None}, [("a", None, None)]),
        ({}, {"a": {}}, [("a", None, {})]),
        ({"a": True}, {"a": 1}, [("a", True, 1)]),
        ({"b": 1, "a": [1]}, {"b": 2, "a": [1, 2]}, [("a", [1], [1, 2]), ("b", 1, 2)]),
    ],
)
def test_differences(old, new, changes):
    assert list(differences(old, new)) == [Change(*each) for each in changes]


def test_budgets_by_name_become_the_tasks_own():
    given_ = {
        "task_budgets": {"max_model_calls": 1, "t": {"max_model_calls": 3, "max_tool_ms": 9}},
        "tasks": {"t": {"budget": {"max_tool_ms": 5}}},
    }
    assert at_tasks(given_) == {
        "task_budgets": {"max_model_calls": 1},
        "tasks": {"t": {"budget": {"max_model_calls": 3, "max_tool_ms": 5}}},
    }
    assert at_tasks({"tasks": {}}) == {"tasks": {}}


def test_sections_are_known_in_upper_case():
    assert lowered({"ROUTING": 1, "Tasks": 2}, "P") == {"routing": 1, "tasks": 2}
    with pytest.raises(ConfigError, match="P has a section in upper and in lower case"):
        lowered({"ROUTING": 1, "routing": 2}, "P")


def cyclic():
    value = {"a": []}
    value["a"].append(value)
    return value


def deep():
    value = 1
    for _ in range(MAX_LEVELS + 1):
        value = [value]
    return value


def bomb():
    value = [1] * 10
    for _ in range(8):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": {"b": {1, 2}}}, "a.b: it is of the type set"),
        ({"a": b"x"}, "a: it is of the type bytes"),
        ({"a": float("inf")}, "a: the number is not finite"),
        ({"a": 2**64}, "a: the number is too large"),
        ({"a": {7: 1}}, "a: the key '7' is no text"),
        ({"a": "\ud800"}, "a: it holds half of a character"),
        ({"\ud800": 1}, "top level: it holds half"),
        (cyclic(), "a.0: it holds itself through an alias"),
        (deep(), f"nested deeper than {MAX_LEVELS}"),
        (bomb(), f"more than {MAX_VALUES:,} values"),
    ],
)
def test_what_is_not_plain_is_named(value, words):
    with pytest.raises(ConfigError, match=words) as caught:
        check_plain(value, "P")
    assert caught.value.message.startswith("P is wrong at ")
    assert len(str(caught.value)) < 300


def test_the_same_value_twice_is_no_cycle():
    shared = {"x": [1, "é", None, True, 1.5]}
    check_plain({"a": shared, "b": [shared, shared]}, "P")
