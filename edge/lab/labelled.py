"""Labelled answers of a task: read from JSON lines, and compared with what a model said.

One line is ``{"text": …, "label": …}`` for a classification, ``{"text": …, "value": {…}}`` for an
extraction. A label of ``null`` is a text that none of the labels fits: every answer to it is wrong.
Every error names the line. Works on values; opens no file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from edge.confidence.fusion import row_digest, row_name
from edge.errors import InputError
from edge.strict import strict_json
from edge.types import Json, Kind

FEWEST = 40
"""Rows: 20 to fit on and 20 to speak for the fit."""

_FORMS = {
    Kind.CLASSIFY: ("label", 'Write {"text": "…", "label": "…"}, one a line.'),
    Kind.EXTRACT: ("value", 'Write {"text": "…", "value": {…}}, one a line.'),
}


@dataclass(frozen=True, slots=True)
class Example:
    """A text whose right answer is known.

    Attributes:
        text: the input.
        gold: a label, an object, or ``None`` where no label fits.
        where: names the line in an error.

    """

    text: str
    gold: Json
    where: str


def read_examples(lines: Iterable[str], *, name: str, kind: Kind) -> list[Example]:
    """Return the examples in the lines of a file; empty lines are passed over.

    Texts that differ only in case or white space are the same text.

    Raises:
        InputError: the kind of task has no right answer to compare with, a line is no example, a
            text occurs twice, or there are fewer than 40.

    """
    if kind not in _FORMS:
        raise InputError(
            f"A task of kind {kind} has no right answer to compare with.",
            hint="Calibrate a task of kind classify or extract.",
        )
    found: dict[str, Example] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        made = _example(line, f"Line {number} of {name}", kind)
        same = found.setdefault(row_name(made.text), made)
        if same is not made:
            raise InputError(
                f"{made.where} repeats the text of {same.where[0].lower()}{same.where[1:]}; a "
                "repeated row is not another observation.",
                hint="Give each text once; case and white space do not make another one.",
            )
    if len(found) < FEWEST:
        raise InputError(
            f"{name} has {len(found)} labelled rows; below {FEWEST} they say nothing.",
            hint="Label more answers; a few hundred are usual.",
        )
    return list(found.values())


def check_labels(examples: Iterable[Example], labels: Collection[str]) -> None:
    """Make sure that every label is one of the task's.

    Raises:
        InputError: one is not; its line is named.

    """
    for each in examples:
        if each.gold is not None and each.gold not in labels:
            raise InputError(
                f"{each.where} has the label {str(each.gold)[:60]!r}, which is not one of the "
                f"task's {len(labels)} labels.",
                hint="Correct it, or write null where no label fits.",
            )


def check_unseen(examples: Sequence[Example], known: Collection[str], *, model: str) -> None:
    """Make sure that a model was not trained, nor its calibration fitted, on one of the texts.

    Args:
        examples: at least one.
        known: digests of what it has seen; see ``row_digest``.
        model: its name, for the error.

    Raises:
        InputError: it has seen some; their number is named.

    """
    names = [{each.text, row_name(each.text)} for each in examples]
    met = sum(any(row_digest(name) in known for name in both) for both in names)
    if met:
        raise InputError(
            f"{met} of these {len(examples)} rows are ones that {model} was made from; how it "
            "does on them says nothing of how it does on others.",
            hint="Pass labelled answers of your own traffic.",
        )


def _example(line: str, where: str, kind: Kind) -> Example:
    key, hint = _FORMS[kind]
    try:
        row = strict_json(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON.", hint=hint) from error
    if not isinstance(row, dict) or "text" not in row or key not in row:
        raise InputError(f"{where} has no text or no {key}.", hint=hint)
    text, gold = row["text"], row[key]
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where} has a text that is empty or no string.", hint=hint)
    fits = isinstance(gold, dict) if kind is Kind.EXTRACT else isinstance(gold, str | None)
    if not fits:
        raise InputError(f"{where} has a {key} of type {type(gold).__name__}.", hint=hint)
    return Example(text, gold, where)
