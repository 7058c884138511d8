"""Conditions: read once into a tree, or refused with a place and a remedy; three-valued."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import ConfigError
from edge.policy.conditions import Outcome, evaluate, holds, parse
from edge.policy.tree import And, Comparison, Constant, Literal, Membership, Name, Not, Or

NAMES = {
    "confidence": "number",
    "similarity": "number",
    "account_tier": "text",
    "sentiment": "text",
    "is_vip": "flag",
}
VALUES = {
    "confidence": 0.6,
    "similarity": 0.9,
    "account_tier": "enterprise",
    "sentiment": "calm",
    "is_vip": True,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("confidence < 0.72", True),
        ("confidence >= .72", False),
        ("0.5 < confidence", True),
        ("0.2 < confidence <= 0.7", True),
        ("0.2 < confidence < similarity < 0.9", False),
        ("confidence != similarity", True),
        ("confidence > -1e-3", True),
        ("account_tier == 'enterprise' and sentiment == 'high_risk'", False),
        ('account_tier == "enterprise" or sentiment == "high_risk"', True),
        ("account_tier in ['team', 'enterprise']", True),
        ("account_tier not in ('team', 'enterprise',)", False),
        ("NOT is_vip", False),
        ("is_vip == TRUE and Not is_vip != True", True),
        ("not (confidence < 0.5 or is_vip) or confidence == 0.6", True),
        # `and` binds closer than `or`, `not` closer than both.
        ("is_vip or is_vip and not is_vip", True),
        ("not is_vip and is_vip or is_vip", True),
        ("true", True),
        ("not false", True),
        ("sentiment == none", False),
        ("sentiment != None", True),
        (r"sentiment == 'it\'s \\ \"fine\"'", False),
        ("\n  confidence\n  < 1  ", True),
    ],
)
def test_what_holds(text, expected):
    assert holds(parse(text, NAMES), VALUES) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < 1", None),
        ("not a < 1", None),
        ("a < 1 and no", False),
        ("a < 1 and yes", None),
        ("a < 1 or yes", True),
        ("a < 1 or no", None),
        ("a in [1, 2]", None),
        ("a not in [1, 2]", None),
        ("a == a", None),
        ("a == none", True),
        ("a != none", False),
        ("a != none and a < 1", False),
    ],
)
@pytest.mark.parametrize("lack", [{}, {"a": None}, {"a": math.nan}, {"a": "1"}, {"a": True}])
def test_kleene_logic_over_what_is_missing(text, expected, lack):
    condition = parse(text, {"a": "number", "yes": "flag", "no": "flag"})
    assert holds(condition, {"yes": True, "no": False, **lack}) is expected


def test_an_outcome_names_only_what_left_it_open():
    names = dict.fromkeys("abc", "number")
    condition = parse("(a > 1 and b > 1) or c > 1 or c > 2", names)
    assert evaluate(condition, {"a": 0}) == Outcome(holds=False, missing=("c",))
    assert evaluate(condition, {"a": 2}) == Outcome(holds=False, missing=("b", "c"))
    assert evaluate(condition, {"c": 5}) == Outcome(holds=True, missing=())
    assert evaluate(condition, {"a": 0, "c": 0}) == Outcome(holds=False, missing=())


@pytest.mark.parametrize(
    ("text", "column", "reason", "hint"),
    [
        ("confidance < 0.7", 1, "not a name", "confidence"),
        ("confidence < 0.7 and teir == 'x'", 22, "not a name", "account_tier"),
        ("confidence < 'high'", 14, "confidence is a number and 'high' is text", "Compare"),
        ("'a' < sentiment", 5, "text has no order", "=="),
        ("is_vip > false", 8, "true and false have no order", "=="),
        ("confidence == true", 15, "confidence is a number and true is a flag", "Compare"),
        ("confidence == sentiment", 15, "sentiment is text", "Compare"),
        ("confidence", 1, "confidence is a number", "confidence > 0"),
        ("'text'", 1, "'text' is text", "name"),
        ("0.7", 1, "0.7 is a number", "name"),
        ("none", 1, "none", "name"),
        ("1 < 2", 1, "two fixed values", "name"),
        ("none == none", 1, "two fixed values", "name"),
        ("confidence < none", 12, "none has no order", "== none"),
        ("confidence == 0.1 == 0.2", 19, "chained", "and"),
        ("0.1 < confidence == 0.2", 18, "chained", "and"),
        ("sentiment in ['a'] in ['b']", 20, "chained", "and"),
        ("confidence = 0.7", 12, "assign", "=="),
        ("confidence === 0.7", 12, "===", "=="),
        ("is_vip && is_vip", 8, "&&", "and"),
        ("is_vip || is_vip", 8, "||", "or"),
        ("!is_vip", 1, "!", "not"),
        ("confidence <> 0.7", 12, "<>", "!="),
        ("sentiment is none", 11, "is", "=="),
        ("exit('now')", 5, "cannot be called", "name"),
        ("sentiment.upper == 'A'", 10, "no parts", "name"),
        ("sentiment[0] == 'A'", 10, "no parts", "name"),
        ("confidence + 1 < 2", 12, "no arithmetic", "name"),
        ("confidence -1 < 2", 12, "no arithmetic", "name"),
        ("sentiment in 'abc'", 14, "list", "['a', 'b']"),
        ("sentiment in []", 15, "empty", "value"),
        ("sentiment in ['a', 1]", 20, "1 is a number", "Compare"),
        ("sentiment in ['a', confidence]", 20, "fixed values", "or"),
        ("sentiment in ['a' 'b']", 19, "expected , or ]", ""),
        ("sentiment in ['a', none]", 20, "none", "== none"),
        ("'a' in ['a']", 1, "fixed value", "name"),
        ("sentiment not 'a'", 11, "not", "not in"),
        ("sentiment == 'open", 14, "never closed", "'"),
        (r"sentiment == 'a\n'", 16, r"\n", "itself"),
        ("confidence < 1e999", 14, "too large", ""),
        ("confidence < 1.2.3", 14, "number", ""),
        ("confidence < 5x", 14, "number", ""),
        ("confidence <", 13, "ends", ""),
        ("(confidence < 1", 16, "expected )", ""),
        ("confidence < 1)", 15, "expected the end", ""),
        ("confidence < 1 is_vip", 16, "expected the end", "and"),
        ("and is_vip", 1, "and", ""),
        ("   ", 4, "ends", ""),
        ("confidence < 1 # why", 16, "'#'", ""),
        ("confidence < \u0661", 14, "'\u0661'", ""),
        ("(" * 40 + "is_vip" + ")" * 40, 33, "nested deeper than 32", ""),
        ("not " * 1999 + "is_vip", 0, "8,002 characters", "2,000"),
        ("not " * 400 + "is_vip", 129, "nested deeper than 32", ""),
    ],
)
def test_what_is_refused_names_the_place_and_the_remedy(text, column, reason, hint):
    with pytest.raises(ConfigError) as caught:
        parse(text, NAMES, what="escalate_if[1]")
    message = caught.value.message
    assert message.startswith("escalate_if[1]")
    assert reason in message.splitlines()[0]
    assert hint in caught.value.hint
    if column:
        assert f"column {column}:" in message


def test_the_caret_stands_below_the_culprit_and_a_long_text_is_cut():
    with pytest.raises(ConfigError) as caught:
        parse("confidence < 0.7 and\tsimilarty > 0.1", NAMES)
    _, shown, caret = caught.value.message.splitlines()
    assert shown == "    confidence < 0.7 and similarty > 0.1"
    assert caret == " " * shown.index("similarty") + "^" * len("similarty")
    with pytest.raises(ConfigError) as caught:
        parse("is_vip and " * 100 + "\x1b[31m", NAMES)
    _, shown, caret = caught.value.message.splitlines()
    assert len(shown) < 90
    assert "\x1b" not in caught.value.message
    assert shown[caret.index("^") :] == " [31m"


def test_an_error_stays_short_and_harmless_whatever_the_text():
    for text in ("1." * 900, "confidence < '" + "\x1b\n" * 900 + "'", "x" * 1900 + " < 1"):
        with pytest.raises(ConfigError) as caught:
            parse(text, NAMES)
        assert len(str(caught.value)) < 600
        assert "\x1b" not in str(caught.value)
        assert len(caught.value.message.splitlines()) == 3


def test_a_text_that_is_no_text_and_names_that_cannot_be_used_are_refused():
    with pytest.raises(ConfigError, match="must be text"):
        parse(0.7, NAMES)
    for name in ("and", "True", "account tier", "a.b", ""):
        with pytest.raises(ConfigError, match="cannot be the name"):
            parse("true", {name: "flag"})
    with pytest.raises(ConfigError, match="'date'"):
        parse("true", {"opened": "date"})


def test_what_only_grows_too_long_when_written_out_is_refused():
    text = "is_vip or " + "(" + " or ".join(["0<confidence<1"] * 110) + ")"
    assert len(text) < 2000
    with pytest.raises(ConfigError, match="characters"):
        parse(text, NAMES)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("confidence<0.720", "confidence < 0.72"),
        ('account_tier=="x"  AND (is_vip)', "account_tier == 'x' and is_vip"),
        ("0.2<confidence<=0.7", "0.2 < confidence and confidence <= 0.7"),
        ("NOT(is_vip OR TRUE)", "not (is_vip or true)"),
        ("(is_vip and is_vip) or is_vip", "is_vip and is_vip or is_vip"),
        ("is_vip and (is_vip and is_vip)", "is_vip and (is_vip and is_vip)"),
        ("confidence NOT IN (1, 2.50)", "confidence not in [1, 2.5]"),
        ("sentiment == NONE", "sentiment == none"),
        ('sentiment == "it\'s"', r"sentiment == 'it\'s'"),
    ],
)
def test_canonical_text(text, canonical):
    assert str(parse(text, NAMES)) == canonical


def of_type(kind):
    literal = {
        "number": st.floats(allow_nan=False, allow_infinity=False),
        "text": st.text(max_size=8),
        "flag": st.booleans(),
    }[kind].map(Literal)
    name = st.sampled_from([n for n, t in NAMES.items() if t == kind]).map(lambda n: Name(n, kind))
    operators = ["==", "!=", "<", "<=", ">", ">="] if kind == "number" else ["==", "!="]
    return st.one_of(
        st.builds(Comparison, name, st.sampled_from(operators), st.one_of(name, literal)),
        st.builds(Comparison, literal, st.sampled_from(operators), name),
        st.builds(Comparison, name, st.sampled_from(["==", "!="]), st.just(Literal(None))),
        st.builds(
            Membership,
            name,
            st.lists(literal, min_size=1, max_size=3).map(tuple),
            negated=st.booleans(),
        ),
    )


def groups(part):
    parts = st.lists(part, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, part), st.builds(And, parts), st.builds(Or, parts))


leaves = st.one_of(
    of_type("number"),
    of_type("text"),
    of_type("flag"),
    st.just(Name("is_vip", "flag")),
    st.builds(Constant, st.booleans()),
)
trees = st.recursive(leaves, groups, max_leaves=8)


@settings(deadline=None, max_examples=300)
@given(trees)
def test_the_canonical_text_reads_back_to_the_same_tree(tree):
    assert parse(str(tree), NAMES) == tree


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.text(max_size=60), st.text("()[]'\"\\<>=! andortifcl0.9_,", max_size=60)))
def test_any_text_is_read_or_refused(text):
    try:
        tree = parse(text, NAMES)
    except ConfigError:
        return
    assert parse(str(tree), NAMES) == tree


maybe = st.sampled_from([None, 0.1, 0.9])


@settings(deadline=None, max_examples=200)
@given(trees, st.fixed_dictionaries({"confidence": maybe, "similarity": maybe}))
def test_what_is_known_stays_so_when_the_missing_comes_in(tree, known):
    given_now = {"is_vip": True, "account_tier": "a", **known}
    filled = VALUES | {n: v for n, v in given_now.items() if v is not None}
    if "none" in str(tree):
        return
    before = holds(tree, given_now)
    assert before is None or before == holds(tree, filled)
    assert (before is None) == bool(evaluate(tree, given_now).missing)
