"""What stands around a generation: its prompt in tokens, its grammar, and what its text comes to.

Plain functions over a task's specification and a decoder; ``edge.local`` puts them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.backends.base import Decoder
from edge.backends.generate import Generation
from edge.backends.grounding import ground_object
from edge.confidence.fields import FieldTokens, field_tokens
from edge.errors import ConfigError, InputError
from edge.strict import strict_json
from edge.task import Prompt, TaskSpec
from edge.types import Json, Kind

if TYPE_CHECKING:
    from edge.backends.structure.constraint import Matcher
    from edge.backends.structure.grammars import Grammar

NOT_GROUNDED = frozenset({"intent"})
"""Fields whose value need not stand in the input."""

LATE = "the answer did not end before the deadline"
"""The problem of a generation that was cut off."""


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A prompt as a decoder reads it.

    Attributes:
        shared: how many of the first tokens come before the text, the same in every call.

    """

    tokens: tuple[int, ...]
    shared: int


def read_prompt(
    task: str, spec: TaskSpec, prompt: Prompt | None, decoder: Decoder, text: str
) -> PromptTokens:
    """Return a task's prompt with the text in it; the text spells no special token.

    Raises:
        ConfigError: the task has no prompt.
        InputError: the prompt is longer than the task's budget.

    """
    if prompt is None:
        raise ConfigError(f"Task {task} has no prompt.")
    tokens: list[int] = []
    shared: int | None = None
    for index, segment in enumerate(prompt.render(text)):
        if not segment.trusted and shared is None:
            shared = len(tokens)
        tokens += decoder.tokenize(
            segment.text,
            add_bos=index == 0 and prompt.add_bos,
            parse_special=segment.trusted,
        )
    limit = spec.budget.max_input_tokens
    if len(tokens) > limit:
        raise InputError(
            f"The prompt of task {task} has {len(tokens)} tokens; the limit is {limit}.",
            hint="Shorten the text or raise max_input_tokens.",
        )
    return PromptTokens(tuple(tokens), shared or 0)


def grammar_of(name: str, spec: TaskSpec) -> Grammar | None:
    """Return what a task's answers are constrained to; ``None`` for any text.

    Raises:
        ConfigError: the task's grammar or schema cannot be enforced.

    """
    if not spec.constrain and spec.grammar is None:
        return None
    from edge.backends.structure.grammars import Grammar

    try:
        if spec.grammar is None:
            return Grammar.json_schema(spec.output_schema or {}, order="any")
        if spec.grammar.regex is not None:
            return Grammar.regex(spec.grammar.regex)
        if spec.grammar.lark is not None:
            return Grammar.lark(spec.grammar.lark)
        return Grammar.choices(spec.grammar.choices or ())
    except InputError as error:
        raise ConfigError(f"Task {name}: {error.message}") from error


def matcher_of(task: str, grammar: Grammar | None, decoder: Decoder) -> Matcher | None:
    """Return what keeps one generation within a task's grammar.

    Raises:
        ConfigError: the grammar cannot be followed with this model.

    """
    if grammar is None:
        return None
    from edge.backends.structure.constraint import constrain

    try:
        return constrain(decoder, grammar).matcher()
    except InputError as error:
        raise ConfigError(f"Task {task}: {error.message}", hint=error.hint) from error


def parsed(answer: str, source: str, *, ground: bool) -> tuple[Json, Sequence[str]]:
    """Return the JSON in an answer, its strings grounded, and the fields not in the input.

    An answer that is not JSON gives ``None``, as the answer ``null`` does; ``problem_of`` tells
    them apart.
    """
    try:
        value = strict_json(answer)
    except ValueError:
        return None, ()
    if not ground or not isinstance(value, dict):
        return value, ()
    return ground_object(value, source, skip=NOT_GROUNDED)


def problem_of(
    generation: Generation, value: Json, missing: Sequence[str], kind: Kind
) -> str | None:
    """Return why a generation cannot be an answer, or ``None``."""
    if generation.finish == "cancelled":
        return LATE
    if generation.finish == "length":
        return "the answer did not end within max_output_tokens"
    if kind is Kind.EXTRACT and value is None and not _is_json(generation.text):
        return "the answer is not JSON"
    return f"not in the input: {', '.join(missing)}" if missing else None


def tokens_by_field(decoder: Decoder, generation: Generation) -> dict[str, FieldTokens]:
    """Return the tokens of each field of a JSON answer."""
    pieces = [
        b"" if token in decoder.end_tokens else decoder.piece(token) for token in generation.tokens
    ]
    return field_tokens(pieces, generation.stats)


def is_copied(name: str, missing: Sequence[str]) -> bool | None:
    """Whether a field's value stands in the input; ``None`` where it need not."""
    if name in NOT_GROUNDED:
        return None
    return not any(place == name or place.startswith((f"{name}.", f"{name}[")) for place in missing)


def cut_to_fit(
    task: str, spec: TaskSpec, prompt: Prompt | None, decoder: Decoder, text: str
) -> str:
    """Return the longest beginning of a text whose prompt is within the task's budget.

    It ends between words where there are any; it is empty where the prompt alone is too long.

    Raises:
        ConfigError: the task has no prompt.

    """

    def fits(part: str) -> bool:
        try:
            read_prompt(task, spec, prompt, decoder, part)
        except InputError:
            return False
        return True

    if fits(text):
        return text
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(text[:middle]) else (low, middle)
    begun = not any(each.isspace() for each in text[max(low - 1, 0) : low + 1])  # within a word
    words = text[:low].rsplit(None, 1) if begun else [text[:low]]
    part = words[0] if len(words) > 1 or not begun else text[:low]
    return part if fits(part) else ""


def _is_json(text: str) -> bool:
    try:
        strict_json(text)
    except ValueError:
        return False
    return True
