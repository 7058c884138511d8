"""What an answer other than a completion means: which error, whether billed, whether to ask again.

Pure rules over status, headers and body. Guarantees: a message holds nothing that a server wrote
except an error code from a fixed list, since servers quote the prompt in their errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from edge.cloud.chat import read_json
from edge.errors import CloudError, CloudRejected, CloudServerError, RateLimited

_CODES = frozenset(
    {
        "billing_hard_limit_reached",
        "content_filter",
        "context_length_exceeded",
        "insufficient_quota",
        "invalid_api_key",
        "invalid_request_error",
        "model_not_found",
        "rate_limit_exceeded",
        "unsupported_parameter",
        "unsupported_value",
    }
)
_SECONDS = re.compile(r"\d{1,9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A failed attempt.

    Attributes:
        error: what to raise.
        again: the attempt was certainly not billed and another may succeed.
        wait_s: the pause the server asked for, if it did.

    """

    error: CloudError
    again: bool = False
    wait_s: float | None = None


def refusal(
    pool: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    key_env: str | None,
    now: float,
) -> Refusal:
    """Return what a status other than 200 means.

    Args:
        pool: the pool's name.
        status: the HTTP status.
        headers: looked up in lower case.
        body: as far as it could be read.
        key_env: the environment variable of the key.
        now: Unix seconds, for a ``Retry-After`` date where the answer has no ``Date``.

    """
    said = f"Pool {pool} answered {status}{_code(body)}"
    wait_s = retry_after_s(headers, now=now)
    pause = "" if wait_s is None else f" and asks to wait {wait_s:.0f} s"
    if status == 429:  # noqa: PLR2004 - the status is its own name
        return Refusal(RateLimited(f"{said}{pause}."), again=True, wait_s=wait_s)
    if status == 503 and wait_s is not None:  # noqa: PLR2004
        unbilled = CloudServerError(f"{said}{pause}.", maybe_billed=False)
        return Refusal(unbilled, again=True, wait_s=wait_s)
    if 300 <= status < 400:  # noqa: PLR2004
        hint = "Name the final address in the pool's base_url."
        return Refusal(CloudRejected(f"{said}, a redirect, which is not followed.", hint=hint))
    if 400 <= status < 500:  # noqa: PLR2004
        return Refusal(CloudRejected(f"{said}.", hint=_hint(status, key_env)))
    return Refusal(CloudServerError(f"{said}."))


def retry_after_s(headers: Mapping[str, str], *, now: float) -> float | None:
    """Return the seconds ``Retry-After`` asks for (RFC 9110, 10.2.3), or ``None``.

    A date is compared with the server's own ``Date``, so a wrong clock on the device is no matter.
    """
    value = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    until = _unix(value)
    if until is None:
        return None
    sent = _unix(headers.get("date", ""))
    return max(0.0, until - (now if sent is None else sent))


def _unix(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
        # A date without a zone is in UTC, as HTTP says.
        return (moment if moment.tzinfo else datetime.replace(moment, tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _code(body: bytes) -> str:
    answer = read_json(body)
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        return ""
    for name in ("code", "type"):
        if isinstance(error.get(name), str) and error[name] in _CODES:
            return f" ({error[name]})"
    return ""


def _hint(status: int, key_env: str | None) -> str | None:
    if status in {401, 403}:
        return (
            f"Check the key in the environment variable {key_env}."
            if key_env
            else "Name the environment variable of the key in the pool's api_key_env."
        )
    return "Check the pool's model and base_url." if status == 404 else None  # noqa: PLR2004
