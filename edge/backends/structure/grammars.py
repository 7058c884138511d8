"""What an answer may look like: a JSON schema, a regular expression, a Lark grammar or choices.

A ``Grammar`` has been compiled once against plain bytes, within limits of size and time, so a wrong
one is refused where it is made, whatever model it is for. Nothing is fetched. Knows nothing of
vocabularies; ``edge.backends.structure.constraint`` does.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from pydantic import BaseModel
from pydantic.errors import PydanticUserError

from edge.backends.structure.schemas import any_order, check_schema_shape, json_rule, locate, quoted
from edge.errors import InputError

GrammarKind: TypeAlias = Literal["json_schema", "regex", "lark", "choices"]
Order: TypeAlias = Literal["schema", "any"]
Schema: TypeAlias = dict[str, Any] | str | type[BaseModel]

MAX_CHARS = 128 * 1024
"""The longest grammar, in characters of its text; with it compiling ends within about a second."""

_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
_LISTING = re.compile(r"\n\s*\d+ \| .*", re.DOTALL)
_INSIDE = re.compile(r"^at 1\(8\): (failed to compile JSON schema: )?")
_LITERAL = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\\n])+/')
_CARET = re.compile(r"^    ( *)\^+\n+error: (.*)", re.MULTILINE)
_END = 256


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer may look like. Make one with the class methods; each raises ``InputError``.

    Attributes:
        kind: what it was written as.
        text: the Lark grammar it became, which is all that a compiled constraint depends on.

    """

    kind: GrammarKind
    text: str

    @property
    def digest(self) -> str:
        """sha256 of the text, lower-case hex: part of the key of a calibration."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @classmethod
    def json_schema(
        cls, schema: Schema, *, order: Order = "schema", compact: bool = False
    ) -> Grammar:
        """Return the grammar of the JSON texts that fit a schema.

        The text is one line. Properties come in the order of the schema. With ``order="any"`` they
        come in any order where every schema on the way down from the top names all its properties
        (``additionalProperties`` is ``false``, at most 63 of them) and refers only to ``$defs``.

        Args:
            schema: JSON Schema, draft 2020-12, as a dictionary or JSON text, or a pydantic model.
            order: of the properties of an object.
            compact: no space after ``,`` and ``:``.

        Raises:
            InputError: the schema is too large or too deep, refers to something outside of itself,
                uses a keyword that cannot be enforced, or nothing fits it; the message says where.

        """
        value = _schema_value(schema)
        check_schema_shape(value)
        if len(json.dumps(value, ensure_ascii=False)) > MAX_CHARS:
            raise _too_long("JSON schema")
        rules = any_order(value, compact=compact) if order == "any" else None
        text = (rules or f"start: {json_rule(value, compact=compact)}") + _NO_FORCING
        problem = _problem(text)
        if problem is not None:
            where, inner = locate(value, lambda part: _problem(f"start: {json_rule(part)}"))
            raise InputError(f"The JSON schema cannot be enforced at {where}: {inner or problem}.")
        return cls("json_schema", text)

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        r"""Return the grammar of the texts that a regular expression matches as a whole.

        The syntax is that of Rust's regex crate, which is Python's without look-around and
        back-references. Word boundaries are not supported, ``\d`` is 0 to 9, ``\w`` is Unicode's,
        and a brace that repeats nothing is written ``\{``.

        Raises:
            InputError: the pattern is invalid, unsupported or too long, or matches nothing.

        """
        body = regex_to_lark(_checked_text(pattern, "regular expression"), "d")
        return cls._compiled("regex", f"start: /{body}/", "regular expression")

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """Return a context-free grammar in llguidance's variant of Lark.

        It may hold ``%json {...}`` for a JSON schema. Only text can be part of it: no tokens by
        name or number.

        Raises:
            InputError: the grammar is invalid or too long, or nothing fits it.

        """
        if "<" in _LITERAL.sub("", _checked_text(text, "Lark grammar")):
            raise InputError(
                "The Lark grammar names a token between < and >; only text can be part of it.",
                hint='Write the text in quotes, as in "<b>".',
            )
        return cls._compiled("lark", text, "Lark grammar")

    @classmethod
    def choices(cls, words: Sequence[str]) -> Grammar:
        """Return the grammar of a list of texts.

        Raises:
            InputError: there are none, or one is empty or no text.

        """
        if isinstance(words, str) or not words:
            raise InputError("A list of choices is empty or no list.", hint="Give at least one.")
        if not all(isinstance(word, str) and word for word in words):
            raise InputError("A choice is empty or no text.")
        for word in words:
            _checked_text(word, "choice")
        literals = " | ".join(quoted(word) for word in dict.fromkeys(words))
        if len(literals) > MAX_CHARS:
            raise _too_long("list of choices")
        return cls._compiled("choices", f"start: CHOICE\nCHOICE: {literals}", "list of choices")

    @classmethod
    def _compiled(cls, kind: GrammarKind, lark: str, what: str) -> Grammar:
        text = lark + _NO_FORCING
        problem = _problem(text)
        if problem is not None:
            raise InputError(f"The {what} cannot be used: {problem}.")
        return cls(kind, text)


def limits() -> LLParserLimits:
    """Return the bounds on what a grammar may cost, and terse errors."""
    return LLParserLimits(
        initial_lexer_fuel=1_000_000, max_grammar_size=500_000, verbose_errors=False
    )


def _problem(text: str) -> str | None:
    """Return why a grammar is of no use, or ``None``; compiles it against plain bytes."""
    matcher = LLMatcher(
        _bytes_tokenizer(), LLMatcher.grammar_from_lark(text), log_level=0, limits=limits()
    )
    begins = 0 if matcher.is_error() else int.from_bytes(matcher.compute_bitmask(), "little")
    if matcher.is_error():
        return _reason(matcher.get_error())
    return "only the empty text fits it" if begins == 1 << _END else None


def _reason(message: str) -> str:
    """Return the compiler's reason without its listing of our text."""
    if message.startswith("NoExtension"):
        return "no text fits it"
    if found := _CARET.search(message):
        return f"{found[2].strip()}, at character {len(found[1]) + 1}"
    short = _INSIDE.sub("", _LISTING.sub("", message.split("\n<", maxsplit=1)[0]))
    return " ".join(short.split())[:300].rstrip(".") or "unknown reason"


@functools.cache
def _bytes_tokenizer() -> LLTokenizer:
    return LLTokenizer(_Bytes(), slices=[])  # type: ignore[arg-type]


class _Bytes:
    """The smallest vocabulary: every byte, and an end."""

    is_tokenizer_wrapper = True
    eos_token_id = _END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(_END)), b"\xff<end>")
    special_token_ids = (_END,)

    def __call__(self, _text: str) -> list[int]:
        return []


def _schema_value(schema: Schema) -> dict[str, Any]:
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        try:
            return schema.model_json_schema()
        except PydanticUserError as error:
            raise InputError(
                f"The model {schema.__name__} has no JSON schema: {error.message}."
            ) from error
    value: Any = schema
    if isinstance(schema, str):
        try:
            value = json.loads(_checked_text(schema, "JSON schema"))
        except RecursionError as error:
            raise InputError("The JSON schema is nested too deep.") from error
        except ValueError as error:
            raise InputError(f"The JSON schema is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InputError(f"A JSON schema is an object, not {type(value).__name__}.")
    return value


def _checked_text(text: object, what: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"A {what} is text, not {type(text).__name__}.")
    if len(text) > MAX_CHARS:
        raise _too_long(what)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"The {what} holds half of a surrogate pair at character {error.start}."
        ) from error
    return text


def _too_long(what: str) -> InputError:
    return InputError(
        f"The {what} is longer than {MAX_CHARS} characters.", hint="Split or simplify it."
    )
