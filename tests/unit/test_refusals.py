"""What a status other than 200 means, as a table."""

import json

import pytest

from edge.cloud.refusals import refusal, retry_after_s
from edge.errors import CloudRejected, CloudServerError, RateLimited

NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT
LATER = "Sun, 06 Nov 1994 08:50:07 GMT"


def refused(status, headers=None, body=b"", key_env="POOL_KEY"):
    return refusal("gpu", status, headers or {}, body, key_env=key_env, now=NOW)


@pytest.mark.parametrize(
    ("status", "headers", "error", "maybe_billed", "again", "wait_s"),
    [
        (429, {}, RateLimited, False, True, None),
        (429, {"retry-after": "7"}, RateLimited, False, True, 7.0),
        (503, {"retry-after": "7"}, CloudServerError, False, True, 7.0),
        (503, {}, CloudServerError, True, False, None),
        (503, {"retry-after": "soon"}, CloudServerError, True, False, None),
        (500, {}, CloudServerError, True, False, None),
        (500, {"retry-after": "7"}, CloudServerError, True, False, None),
        (502, {}, CloudServerError, True, False, None),
        (504, {}, CloudServerError, True, False, None),
        (204, {}, CloudServerError, True, False, None),
        (301, {"location": "/v2"}, CloudRejected, False, False, None),
        (307, {"location": "https://evil.example"}, CloudRejected, False, False, None),
        (400, {}, CloudRejected, False, False, None),
        (401, {}, CloudRejected, False, False, None),
        (404, {}, CloudRejected, False, False, None),
        (413, {}, CloudRejected, False, False, None),
        (422, {}, CloudRejected, False, False, None),
    ],
)
def test_a_status(status, headers, error, maybe_billed, again, wait_s):
    found = refused(status, headers)
    assert type(found.error) is error
    assert (found.error.maybe_billed, found.again, found.wait_s) == (maybe_billed, again, wait_s)
    assert f"Pool gpu answered {status}" in found.error.message


@pytest.mark.parametrize(
    ("status", "key_env", "hint"),
    [
        (401, "POOL_KEY", "Check the key in the environment variable POOL_KEY."),
        (403, None, "api_key_env"),
        (404, None, "model and base_url"),
        (302, None, "final address"),
        (400, None, CloudRejected.default_hint),
    ],
)
def test_the_hint_says_what_to_change(status, key_env, hint):
    assert hint in refused(status, key_env=key_env).error.hint


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("0", None, 0.0),
        ("30", None, 30.0),
        (" 30 ", None, 30.0),
        ("999999999", None, 999_999_999.0),
        ("9999999999", None, None),
        ("-1", None, None),
        ("1.5", None, None),
        ("٣", None, None),
        ("", None, None),
        ("soon", None, None),
        (LATER, None, 30.0),
        (LATER, "Sun, 06 Nov 1994 08:50:00 GMT", 7.0),
        (LATER, "Sun, 06 Nov 1994 09:00:00 GMT", 0.0),
        (LATER, "yesterday", 30.0),
        ("Sun, 06 Nov 1994 08:50:07 -0000", None, 30.0),
        ("Sun, 06 Nov 99999 08:50:07 GMT", None, None),
        (None, None, None),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(value, date, seconds):
    given = {"retry-after": value, "date": date}
    headers = {name: text for name, text in given.items() if text is not None}
    assert retry_after_s(headers, now=NOW) == seconds


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"error": {"code": "insufficient_quota", "message": "my pin"}}, " (insufficient_quota)"),
        ({"error": {"code": None, "type": "invalid_api_key"}}, " (invalid_api_key)"),
        ({"error": {"code": "my pin", "type": "model_not_found"}}, " (model_not_found)"),
        ({"error": {"code": "my pin", "type": 7}}, ""),
        ({"error": "my pin"}, ""),
        (["my pin"], ""),
        ("my pin", ""),
    ],
)
def test_only_known_codes_of_a_server_are_shown(body, shown):
    found = refused(400, body=json.dumps(body).encode()).error
    assert found.message == f"Pool gpu answered 400{shown}."
    assert "my pin" not in str(found)
