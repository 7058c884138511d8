"""What an engine must offer, whichever library runs the model.

Encoders turn texts into vectors. Decoders hold one model in memory and hand out sequences; a
sequence holds its own KV cache and gives the row of logits for the next token, which the shared
sampler reads in place. Engines translate their library's exceptions into ``edge.errors`` and
nothing above sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.backends.questions import Question
from edge.backends.scheduler import Scheduler
from edge.errors import DeviceFallback


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a loaded model runs, beside where it was asked to.

    Attributes:
        asked: the device that was asked for; ``auto`` where it was chosen by measuring.
        used: the device that runs it.
        share: of the model's nodes or layers that run on ``used``, 0..1; the others run on the
            CPU. ``None`` where the engine does not say.
        why: the reason of a fallback or of a choice; empty where there is nothing to say.

    """

    asked: str
    used: str
    share: float | None = 1.0
    why: str = ""

    @property
    def fallback(self) -> bool:
        """Whether less runs on the device than was asked for."""
        elsewhere = self.asked not in {"auto", self.used}
        return elsewhere or (self.share is not None and self.share < 1)

    def require(self, name: str) -> None:
        """Make sure that all of the model runs where it was asked to.

        Raises:
            DeviceFallback: it does not.

        """
        if self.fallback:
            raise DeviceFallback(f"{name} cannot run on {self.asked!r}: {self.why}.")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a loaded model.

    Attributes:
        name: the name it was opened under.
        engine: ``llamacpp``, ``onnx`` or ``fake``.
        digest: sha256 of the weights, lower-case hex.
        device: where it really runs, for example ``cpu``.
        context: the most tokens one sequence may hold (input and output together).
        vocab_size: width of a row of logits; 0 for an encoder.
        dimensions: width of an embedding; 0 for a decoder.
        threads: threads one forward pass uses, chosen by measurement.
        placement: what was asked, what is used and why; ``None`` where the engine keeps no record.

    """

    name: str
    engine: str
    digest: str
    device: str
    context: int
    vocab_size: int = 0
    dimensions: int = 0
    threads: int = 1
    placement: Placement | None = None


class Encoder(Protocol):
    """Turns texts into unit vectors. Safe to call from several threads."""

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        ...

    def embed(self, texts: Sequence[str], *, max_tokens: int | None = None) -> NDArray[np.float32]:
        """Return one unit vector per text, float32 ``[len(texts), dimensions]``.

        Args:
            texts: what to embed.
            max_tokens: so many tokens of a text are read, at least 1 and at most
                ``info.context``, which is the limit where ``None``.

        """
        ...

    def count_tokens(self, text: str) -> int:
        """Return how many tokens ``text`` has before truncation."""
        ...

    def close(self) -> None:
        """Free the model; calling twice is harmless."""
        ...


class DecoderSequence(Protocol):
    """One sequence with its own KV cache. Not shared between threads."""

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append ``tokens`` and return the row of logits after the last one.

        The returned float32 ``[vocab_size]`` array is a view into the engine's memory: it is valid
        until the next call on any sequence of the model and must not be written to.

        Raises:
            InputError: the sequence would outgrow the context.
            GenerationError: the engine failed.

        """
        ...

    def close(self) -> None:
        """Give the KV cells back; calling twice is harmless."""
        ...


class Decoder(Protocol):
    """A causal language model. Safe to call from several threads; forward passes take turns."""

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        ...

    @property
    def scheduler(self) -> Scheduler | None:
        """Runs generations natively and together; ``None`` for the loop in Python."""
        ...

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a generation (end of sequence, end of turn)."""
        ...

    def tokenize(
        self, text: str, *, add_bos: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the tokens of ``text``; special tokens written out are parsed only where asked."""
        ...

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return one token's bytes, maybe a part of a character; empty for control tokens."""
        ...

    def sequence(self) -> DecoderSequence:
        """Open an empty sequence."""
        ...

    def label_scores(
        self, prompt: Sequence[int], questions: Sequence[Question]
    ) -> list[list[float]]:
        """Return the log-probability of every label of every question; generates nothing.

        Args:
            prompt: tokens that all questions begin with.
            questions: see ``edge.backends.questions``.

        Raises:
            InputError: the prompt does not fit, or the labels are no choice.
            GenerationError: the engine failed.

        """
        ...

    def close(self) -> None:
        """Free the model; calling twice is harmless."""
        ...
