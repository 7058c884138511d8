"""A text is cut to what a prompt has room for: between words, and never to more than fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.answering import cut_to_fit, read_prompt
from edge.backends.fake import FakeDecoder
from edge.task import Prompt, TaskSpec

DECODER = FakeDecoder()


def spec(most):
    return TaskSpec(kind="generate", budget={"max_input_tokens": most})


def cut(text, most, template="{text}"):
    prompt = Prompt(version=1, template=template)
    return cut_to_fit("t", spec(most), prompt, DECODER, text)


@pytest.mark.parametrize(
    ("text", "most", "left"),
    [
        ("one two three", 14, "one two three"),
        ("one two three", 13, "one two"),
        ("one two three", 9, "one two "),
        ("one two three", 8, "one two"),
        ("one two three", 7, "one"),
        ("one two three", 3, "on"),
        ("undivided", 5, "undi"),
        ("anything", 1, ""),
        ("ä ö", 3, "ä"),
    ],
)
def test_it_ends_between_words(text, most, left):
    assert cut(text, most) == left


def test_a_template_counts_as_well():
    assert cut("one two three", 13, "say: {text}") == "one two"
    assert cut("one two three", 5, "say: {text}") == ""


@given(st.text(min_size=1, max_size=60), st.integers(1, 80))
def test_what_is_left_is_a_beginning_that_fits(text, most):
    text = text.encode("utf-8", "ignore").decode()
    left = cut(text, most)
    assert text.startswith(left)
    if left:
        prompt = Prompt(version=1, template="{text}")
        assert len(read_prompt("t", spec(most), prompt, DECODER, left).tokens) <= most
