"""Strict JSON (RFC 8259): what Python's reader lets through beyond it is refused.

Pure: no I/O, no knowledge of tasks.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from edge.types import Json


def strict_json(text: str) -> Json:
    """Return the value of a JSON text; the text ``null`` is ``None`` and an error is no value.

    Raises:
        ValueError: it is not JSON, holds ``NaN``, an infinity or a number too large for a float,
            half of a surrogate pair, or is nested too deep.

    """
    try:
        value: Json = json.loads(text, parse_constant=_refuse)
        json_text(value)
    except RecursionError as error:
        raise ValueError("It is nested too deep.") from error
    return value


def json_text(value: Any) -> str:
    """Return a value as JSON text.

    Raises:
        RecursionError: it is nested too deep.
        TypeError: it holds something that JSON has not.
        ValueError: it holds itself, a number that is not finite, or half of a surrogate pair.

    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    text.encode()
    return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON.")
