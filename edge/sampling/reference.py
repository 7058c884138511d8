"""What the compiled sampler must do, written plainly in numpy and float64.

Same interface and same random numbers as ``edge._native.sampling.Sampler``. Slow, allocates freely;
it is the specification, not the engine.
"""

from __future__ import annotations

import ctypes
from collections import Counter, deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edge.errors import GenerationError, InputError
from edge.types import SamplingParams, TokenStats

_WORD = 2**64


class Xoshiro:
    """xoshiro256** seeded by splitmix64 (Blackman and Vigna 2018, Steele et al. 2014)."""

    def __init__(self, seed: int) -> None:
        self.state = []
        for _ in range(4):
            seed = (seed + 0x9E3779B97F4A7C15) % _WORD
            z = seed
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
            z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _WORD
            self.state.append(z ^ (z >> 31))

    def uniform(self) -> float:
        """Return the next double in [0, 1)."""
        s = self.state
        result = _rotate(s[1] * 5 % _WORD, 7) * 9 % _WORD
        t = (s[1] << 17) % _WORD
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = _rotate(s[3], 45)
        return (result >> 11) * 2.0**-53


def _rotate(x: int, by: int) -> int:
    return ((x << by) | (x >> (64 - by))) % _WORD


class ReferenceSampler:
    """The specification; see ``edge._native.sampling.Sampler`` for arguments and errors."""

    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        if not 2 <= vocab_size < 2**31:  # noqa: PLR2004
            raise InputError(f"A vocabulary needs 2 to 2**31 - 1 tokens, not {vocab_size}.")
        self.params = params
        self.vocab_size = vocab_size
        self.reset()

    def reset(self) -> None:
        """Forget the history and put the random state back to the seed."""
        self._random = Xoshiro(self.params.seed)
        self._history: deque[int] = deque(maxlen=self.params.penalty_last_n)

    def accept(self, token: int) -> None:
        """Add one token to the history that the penalties look at."""
        if not 0 <= token < self.vocab_size:
            raise InputError(f"Token {token} is outside the vocabulary of {self.vocab_size}.")
        self._history.append(token)

    def accept_all(self, tokens: Iterable[int]) -> None:
        """Add several tokens, the oldest first."""
        for token in tokens:
            self.accept(token)

    def sample(
        self, logits: NDArray[np.float32], *, allowed: NDArray[np.uint32] | None = None
    ) -> TokenStats:
        """Draw the next token."""
        row = self._checked(logits)
        if np.isnan(row).any() or np.isposinf(row).any():
            raise GenerationError("The row of logits holds NaN or +inf.")
        if np.isneginf(row).all():
            raise GenerationError("No token of the row is possible: every logit is -inf.")
        changed = self._masked(self._penalised(row), allowed)
        if np.isneginf(changed).all():
            raise GenerationError("No allowed token is possible: every logit is -inf.")
        token = self._draw(changed)
        best, second = np.sort(row)[::-1][:2]
        mass = np.exp(row - best)
        log_sum = np.log(mass.sum())
        shares = mass / mass.sum()
        entropy = -np.sum(shares[shares > 0] * np.log(shares[shares > 0]))
        logprob = float(row[token] - best - log_sum)
        return TokenStats(token, logprob, float(entropy), float(best - second))

    def sample_at(self, address: int, *, allowed: NDArray[np.uint32] | None = None) -> TokenStats:
        """Draw from the float row at a memory address; the caller vouches for it."""
        if address == 0:
            raise InputError("There is no row of logits at address 0.")
        row = (ctypes.c_float * self.vocab_size).from_address(address)
        return self.sample(np.ctypeslib.as_array(row), allowed=allowed)

    def _checked(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        if not isinstance(logits, np.ndarray) or logits.dtype != np.float32 or logits.ndim != 1:
            raise InputError("A row of logits must be contiguous float32.")
        if not logits.flags.c_contiguous:
            raise InputError("A row of logits must be contiguous float32, not strided.")
        if len(logits) != self.vocab_size:
            raise InputError(f"The row has {len(logits)} logits, not {self.vocab_size}.")
        return logits.astype(np.float64)

    def _penalised(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        changed, params = row.copy(), self.params
        for token, seen in Counter(self._history).items():
            value = changed[token]
            value = (
                value / params.repetition_penalty
                if value > 0
                else value * params.repetition_penalty
            )
            penalised = value - seen * params.frequency_penalty - params.presence_penalty
            changed[token] = np.float32(penalised)
        return changed

    def _masked(
        self, row: NDArray[np.float64], allowed: NDArray[np.uint32] | None
    ) -> NDArray[np.float64]:
        if allowed is None:
            return row
        words = (self.vocab_size + 31) // 32
        fits = isinstance(allowed, np.ndarray) and allowed.dtype == np.uint32
        if not fits or allowed.shape != (words,) or not allowed.flags.c_contiguous:
            raise InputError(f"The mask must be contiguous uint32 of {words} words.")
        bits = np.unpackbits(allowed.view(np.uint8), bitorder="little")[: self.vocab_size]
        return np.where(bits == 1, row, -np.inf)

    def _draw(self, row: NDArray[np.float64]) -> int:
        if self.params.temperature == 0.0:
            return int(row.argmax())
        order = self._candidates(row)
        weights = np.exp((row[order] - row.max()) / self.params.temperature)
        held = np.cumsum(weights)
        aim = self._random.uniform() * held[-1]
        return int(order[min(int(np.searchsorted(held, aim, side="right")), len(order) - 1)])

    def _candidates(self, row: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return the tokens left by top-k, top-p and min-p; ordered unless nothing cuts."""
        params = self.params
        possible = np.flatnonzero(row > -np.inf)
        if params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0:
            return possible
        order = possible[np.argsort(-row[possible], kind="stable")]
        if params.top_k > 0:
            order = order[: params.top_k]
        mass = np.exp(row[order] - row.max())
        if params.top_p < 1.0:
            held = np.cumsum(mass)
            total = held[-1] if params.top_k > 0 else np.exp(row - row.max()).sum()
            enough = int(np.searchsorted(held, params.top_p * total, side="left"))
            order = order[: enough + 1]
        if params.min_p > 0.0:
            floor = np.float32(row.max() + np.log(params.min_p))
            kept = row[order] >= floor
            kept[0] = True
            order = order[kept]
        return order
