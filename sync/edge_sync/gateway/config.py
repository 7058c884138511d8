"""``gateway.yaml``: which pool, whose leases, which upstreams.

    pool: default                   # the pool's id, as leases name it
    listen: 127.0.0.1:8430
    register: gateway.db            # relative to this file
    hub:
      keys: {KEY-ID: 64 HEX DIGITS} # public keys that leases are signed with
      secret_env: EDGE_GATEWAY_SECRET
    upstreams:
      - name: local
        base_url: http://127.0.0.1:8000/v1
        model: qwen
        input_microusd_per_mtok: 150000
        output_microusd_per_mtok: 600000

Guarantees: what is read fits, every secret is there, and no secret stands in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge.errors import ConfigError
from edge_sync.reading import read_yaml

_LEAST_SECRET = 16
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$")]
_Money = Annotated[int, Field(ge=0, le=10**12)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HubSettings(_Strict):
    """The hub whose leases count.

    Attributes:
        name: epochs are counted by it.
        keys: public keys by key id.
        secret_env: environment variable of the secret that the hub's requests carry.

    """

    name: _Name = "hub"
    keys: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(min_length=1)
    secret_env: str = "EDGE_GATEWAY_SECRET"  # noqa: S105 - the name of a variable


class UpstreamSettings(_Strict):
    """One server behind the gateway.

    Attributes:
        name: for logs and metrics.
        base_url: what OpenAI's paths are appended to; ends in ``/v1`` with most.
        model: sent in place of what the device names, since prices are the model's.
        api_key_env: environment variable of its key; none is sent without.
        weight: share of the calls beside the others'.
        input_microusd_per_mtok, output_microusd_per_mtok: price of a million tokens.
        failures: in a row, after which it is left alone for ``cooldown_s``.

    """

    name: _Name
    base_url: str
    model: str = Field(min_length=1, max_length=200)
    api_key_env: str = ""
    weight: float = Field(default=1.0, gt=0, le=1_000)
    input_microusd_per_mtok: _Money
    output_microusd_per_mtok: _Money
    failures: int = Field(default=3, ge=1, le=100)
    cooldown_s: float = Field(default=10.0, gt=0, le=3_600)


class Limits(_Strict):
    """Bounds of one request.

    Attributes:
        body_bytes: of a request.
        answer_bytes: of an answer that is not a stream.
        max_tokens: the most tokens of one answer, set where a request sets none.
        timeout_s: for the whole of a call; a device's own deadline can be earlier.
        waiting: calls at once; more are told to come back.
        keep_answers_s: how long an answer is kept for the same request; 0 keeps none.
        keep_answer_bytes: longer ones are not kept.

    """

    body_bytes: int = Field(default=1_000_000, ge=1_000, le=100_000_000)
    answer_bytes: int = Field(default=16_000_000, ge=1_000, le=1_000_000_000)
    max_tokens: int = Field(default=1_024, ge=1, le=1_000_000)
    timeout_s: float = Field(default=120.0, gt=0, le=3_600)
    waiting: int = Field(default=2_000, ge=1, le=100_000)
    keep_answers_s: float = Field(default=86_400.0, ge=0)
    keep_answer_bytes: int = Field(default=65_536, ge=0)


class Settings(_Strict):
    """All of ``gateway.yaml``."""

    pool: _Name
    listen: str = Field(default="127.0.0.1:8430", pattern=r"^.+:\d{1,5}$")
    register_path: str = Field(default="gateway.db", alias="register")
    hub: HubSettings
    upstreams: tuple[UpstreamSettings, ...] = Field(min_length=1)
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({each.name for each in self.upstreams}) < len(self.upstreams):
            raise ValueError("two upstreams have the same name")
        return self


def read_settings(path: Path) -> Settings:
    """Read the file; a relative ``register`` is taken from its folder.

    Raises:
        ConfigError: it cannot be read, or a setting is wrong; the setting is named.

    """
    settings = read_yaml(path, Settings, whose="gateway")
    return settings.model_copy(
        update={"register_path": str(path.resolve().parent / settings.register_path)}
    )


def secret(env: Mapping[str, str], variable: str) -> str:
    """Return a secret of the environment.

    Raises:
        ConfigError: it is missing, or shorter than 16 characters.

    """
    found = env.get(variable, "")
    if len(found) < _LEAST_SECRET or not found.isascii():
        raise ConfigError(
            f"The environment variable {variable} holds no secret of {_LEAST_SECRET} or more "
            "characters of ASCII.",
            hint="Set it for the process of the gateway.",
        )
    return found
