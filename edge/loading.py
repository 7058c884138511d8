"""From a model's name to the loaded model: its files checked, its engine chosen, its size told.

Every file passes the store's check first. Keeps nothing; ``edge.backends.residency`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge.backends.base import Decoder, Encoder
from edge.backends.footprint import CacheShape, shape_of_architecture, shape_of_gguf
from edge.backends.heads import Head
from edge.errors import ConfigError, LoadError
from edge.store.weights import Manifest, ModelStore

MAX_SEQUENCES = 2
"""Generations of one decoder that may run at once; each takes memory for a context."""

_CONTEXT = 2048
_ONNX_CONTEXT = 1024
_MAX_TOKENS = 256
_F32_BYTES = 4
_UNPACKED = 4  # a head's int8 parts are float32 in memory


@dataclass(frozen=True, slots=True)
class Loader:
    """Loads the models of a store.

    Args:
        store: where they lie; it checks digests.
        threads: threads per forward pass; measured per model where ``None``.
        choices: the file that remembers which device each ONNX model is fastest on; nothing is
            remembered where ``None``.
        snapshots: the folder where the KV cache of prompts' beginnings outlives the process; it
            does not where ``None``.

    """

    store: ModelStore
    threads: int | None = None
    choices: Path | None = None
    snapshots: Path | None = None

    def head(self, name: str) -> Head:
        """Load a head.

        Raises:
            ConfigError: there is no such model.
            LoadError: a file is missing or broken.
            IntegrityError: a file has another digest than the manifest says.

        """
        return Head.load(self.store.path(name))

    def encoder(self, name: str) -> Encoder:
        """Load an encoder; raises as ``head``, and ``ConfigError`` where it is none."""
        from edge.backends.onnx.encoder import OnnxEncoder

        manifest = self.of_kind(name, "encoder")
        return OnnxEncoder.open(
            self.store.path(name),
            self.store.path(name, "tokenizer"),
            name=name,
            digest=manifest.digest,
            max_tokens=manifest.max_tokens or _MAX_TOKENS,
            threads=self.threads,
            device=str(manifest.facts.get("device", "auto")),
            buckets=_buckets(manifest),
            memory=self.choices,
        )

    def decoder(self, name: str) -> Decoder:
        """Load a decoder; raises as ``encoder``."""
        manifest = self.of_kind(name, "decoder")
        if manifest.engine == "onnx":
            return self._onnx_decoder(name, manifest)
        from edge.backends.llama.decoder import LlamaDecoder

        return LlamaDecoder.open(
            self.store.path(name),
            name=name,
            digest=manifest.digest,
            context=manifest.context or _CONTEXT,
            threads=self.threads,
            max_sequences=MAX_SEQUENCES,
            device=str(manifest.facts.get("device", "auto")),
            snapshots=self.snapshots,
        )

    def estimate(self, name: str) -> int:
        """Return the bytes that a model will take in memory; see ``edge.backends.footprint``.

        Raises:
            ConfigError: there is no such model.
            LoadError: a file is missing or broken.
            IntegrityError: a file has another digest than the manifest says.

        """
        manifest = self.store.manifest(name)
        weights = sum(file.bytes for file in manifest.of_role("weights"))
        if manifest.kind == "head":
            return _UNPACKED * weights
        if manifest.kind != "decoder":
            return weights
        shape = self._cache_shape(name, manifest)
        if shape is None:
            return weights
        if manifest.engine == "onnx":
            context = manifest.context or _ONNX_CONTEXT
            cache = shape.bytes(context=context, sequences=MAX_SEQUENCES, element_bytes=_F32_BYTES)
            return weights + cache
        from edge.backends.llama.decoder import PREFIX_SEQUENCES

        sequences = MAX_SEQUENCES + PREFIX_SEQUENCES
        context = manifest.context or _CONTEXT
        return weights + shape.bytes(context=context, sequences=sequences)

    def of_kind(self, name: str, kind: str) -> Manifest:
        """Return the manifest of a model, made sure to be of a kind.

        Raises:
            ConfigError: there is no such model, or it is of another kind.
            LoadError: the manifest cannot be read or is not valid.

        """
        manifest = self.store.manifest(name)
        if manifest.kind != kind:
            raise ConfigError(f"Model {name} is a {manifest.kind}, but a {kind} is needed.")
        return manifest

    def _cache_shape(self, name: str, manifest: Manifest) -> CacheShape | None:
        if isinstance(manifest.architecture, dict):
            shape = shape_of_architecture(manifest.architecture)
            if shape is not None:
                return shape
        return shape_of_gguf(self.store.path(name)) if manifest.engine == "llamacpp" else None

    def _onnx_decoder(self, name: str, manifest: Manifest) -> Decoder:
        from edge.backends.onnx.decoder import OnnxDecoder, genai_tokens

        listed = any(file.role == "config" for file in manifest.files)
        facts = genai_tokens(self.store.path(name, "config")) if listed else None
        return OnnxDecoder.open(
            self.store.path(name),
            self.store.path(name, "tokenizer"),
            name=name,
            digest=manifest.digest,
            context=manifest.context or (facts.context if facts else _ONNX_CONTEXT),
            bos_token=facts.bos_token if facts else None,
            end_tokens=facts.end_tokens if facts else (),
            threads=self.threads,
            device=str(manifest.facts.get("device", "auto")),
            memory=self.choices,
        )


def _buckets(manifest: Manifest) -> tuple[int, ...]:
    """Return the token counts that an encoder's graph is opened for."""
    listed = manifest.facts.get("buckets", ())
    if not isinstance(listed, list | tuple) or not all(type(each) is int for each in listed):
        raise LoadError(
            f"The manifest of model {manifest.name} has the buckets {listed!r}, "
            "which is no list of token counts."
        )
    return tuple(listed)
