"""``pool.yaml``: which model, on which engine, how many replicas, on which cluster.

    name: qwen                      # what requests name as `model`
    model: qwen2.5-7b-q4_k_m.gguf   # relative to this file
    listen: 127.0.0.1:8000
    context: 8192
    replicas: {min: 1, max: 4, target_ongoing: 3}
    resources: {cpus: 8}
    ray: {address: ""}              # one machine; auto or ADDRESS:PORT for a cluster

Guarantees: what is read fits, and a file of a model that is named is there and whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge.backends.gguf import check_gguf
from edge.errors import ConfigError, LoadError
from edge_sync.reading import read_yaml

_TEMPLATE = "tokenizer.chat_template"
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$")]
_Seconds = Annotated[float, Field(gt=0, le=86_400)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Replicas(_Strict):
    """How many copies of the model there are; Ray adds and removes them.

    Attributes:
        min, max: the same number switches scaling off.
        target_ongoing: calls under way at one replica that Ray aims at.
        up_s, down_s: how long there must be more or less to do before Ray scales.

    """

    min: int = Field(default=1, ge=1, le=1_000)
    max: int = Field(default=1, ge=1, le=1_000)
    target_ongoing: float = Field(default=2.0, gt=0, le=10_000)
    up_s: _Seconds = 10.0
    down_s: _Seconds = 300.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self


class Resources(_Strict):
    """What Ray sets aside for one replica.

    Attributes:
        cpus, gpus: may be parts of one.
        custom: further resources of the cluster's nodes by name.

    """

    cpus: float = Field(default=1.0, ge=0, le=1_024)
    gpus: float = Field(default=0.0, ge=0, le=64)
    custom: dict[str, float] = Field(default_factory=dict)


class Limits(_Strict):
    """Bounds of one request.

    Attributes:
        body_bytes: of a request.
        max_tokens: the most tokens of an answer, set where a request sets none.
        timeout_s: for the whole of a call; the deadline that comes with it can be earlier.
        queue: calls that wait for a replica; more are told to come back.

    """

    body_bytes: int = Field(default=1_000_000, ge=1_000, le=100_000_000)
    max_tokens: int = Field(default=1_024, ge=1, le=1_000_000)
    timeout_s: _Seconds = 120.0
    queue: int = Field(default=200, ge=1, le=100_000)


class Health(_Strict):
    """When Ray replaces a replica.

    Attributes:
        period_s: between two questions.
        timeout_s: for an answer.
        stall_s: without one step of the model although there is work.

    """

    period_s: _Seconds = 5.0
    timeout_s: _Seconds = 30.0
    stall_s: _Seconds = 120.0


class RayCluster(_Strict):
    """Where the replicas run.

    Attributes:
        address: ``auto`` or ``HOST:PORT`` of a cluster; empty for this machine alone.
        object_store_mb: shared memory on this machine; answers are small.

    """

    address: str = Field(default="", max_length=300)
    object_store_mb: int = Field(default=80, ge=75, le=100_000)


class Settings(_Strict):
    """All of ``pool.yaml``.

    Attributes:
        engine: ``edge`` for a GGUF file on this project's engine; ``vllm`` for what vLLM serves.
        model: of ``edge`` a file, the same on every node; of ``vllm`` a name or folder.
        template: ``model`` for the chat template in the GGUF file, ``plain`` for the contents of
            the messages one a line, or the path of a template in Jinja.
        context: the most tokens of one call, its answer included.
        sequences: calls that one replica computes at once.
        threads: of one forward pass; as many as the replica has CPUs where missing.
        device: ``cpu``, ``gpu`` or ``auto``.
        arguments: of ``vllm serve``, besides model, name, host, port and context.
        drain_s: how long calls under way may take to end when the pool ends or shrinks.

    """

    name: _Name
    engine: Literal["edge", "vllm"] = "edge"
    model: str = Field(min_length=1, max_length=4_096)
    listen: str = Field(default="127.0.0.1:8000", pattern=r"^.+:\d{1,5}$")
    template: str = "model"
    context: int = Field(default=2_048, ge=16, le=10_000_000)
    sequences: int = Field(default=4, ge=1, le=1_024)
    threads: int | None = Field(default=None, ge=1, le=1_024)
    device: Literal["cpu", "gpu", "auto"] = "cpu"
    arguments: tuple[str, ...] = ()
    drain_s: _Seconds = 30.0
    replicas: Replicas = Replicas()
    resources: Resources = Resources()
    limits: Limits = Limits()
    health: Health = Health()
    ray: RayCluster = RayCluster()

    @property
    def ongoing(self) -> int:
        """Calls that Ray gives a replica at once; some wait there, so that no sequence does."""
        return 2 * self.sequences

    @model_validator(mode="after")
    def _of_its_engine(self) -> Self:
        if self.engine == "edge" and self.arguments:
            raise ValueError("arguments are for the engine vllm")
        if self.device == "gpu" and self.resources.gpus == 0:
            raise ValueError("device is gpu, but resources.gpus sets none aside")
        return self


def read_settings(path: Path) -> Settings:
    """Read the file; the paths in it are taken from its folder.

    Raises:
        ConfigError: it cannot be read, a setting is wrong, or the model or its template is not
            there; the setting is named.

    """
    settings = read_yaml(path, Settings, whose="pool")
    return _with_files(settings, path.resolve().parent) if settings.engine == "edge" else settings


def _with_files(settings: Settings, folder: Path) -> Settings:
    model = folder / settings.model
    try:
        found = check_gguf(model)
    except LoadError as error:
        raise ConfigError(
            f"The pool's model cannot be used: {error.message}",
            hint="Name a whole GGUF file as `model`; the path is taken from the settings' folder.",
        ) from error
    template = settings.template
    if template == "model" and not found.metadata.get(_TEMPLATE):
        raise ConfigError(
            f"The model {model} has no chat template.",
            hint="Set `template` to the path of one in Jinja, or to `plain`.",
        )
    if template not in {"model", "plain"}:
        template = str(folder / template)
        if not Path(template).is_file():
            raise ConfigError(f"The pool's template {template} is no file.")
    return settings.model_copy(update={"model": str(model), "template": template})
