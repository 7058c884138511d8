"""Enrolment codes as a person hands them over: a secret, a dash, and the fleet that it is of."""

from __future__ import annotations

import re

from edge.errors import ConfigError

_CODE = re.compile(r"[0-9A-Za-z]{8,64}-([0-9A-Fa-f]{16,64})")


def read_code(code: str) -> str:
    """Return the part of an enrolment code that names the fleet, in lower case.

    Raises:
        ConfigError: it is no code.

    """
    found = _CODE.fullmatch(code.strip())
    if found is None:
        raise ConfigError(
            "The enrolment code is not one: it has letters and digits, a dash, and hex digits.",
            hint="Copy it whole, as `edge-hub enroll` printed it.",
        )
    return found[1].lower()
