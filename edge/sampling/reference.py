"""What the compiled sampler must do, written plainly in numpy and float64.

Same interface and same random numbers as ``edge._native.sampling.Sampler``. Slow, allocates freely;
it is the specification, not the engine.
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edge.errors import GenerationError, InputError
from edge.types import SamplingParams, TokenStats

Floats = NDArray[np.float64]
Tokens = NDArray[np.intp]

_WORD = 2**64
_DRY_LONGEST = 64
_COLD = 1e-6
_BLOCK = 256
_FLAT_REACH, _FLAT_BLOCKS, _FLAT_TRIES = 8.0, 16, 4


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
    """The specification; see ``edge._native.sampling.Sampler`` for arguments and errors.

    Attributes:
        closest: how near, as a share of the mass, the last draw came to a border between two
            outcomes; sums in single precision may decide otherwise below about 1e-5.

    """

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        *,
        statistics: bool = True,
        instruction_set: str | None = None,
    ) -> None:
        if not 2 <= vocab_size < 2**31:  # noqa: PLR2004
            raise InputError(f"A vocabulary needs 2 to 2**31 - 1 tokens, not {vocab_size}.")
        self.params = params
        self.vocab_size = vocab_size
        self.statistics = statistics
        self.instruction_set = instruction_set or "numpy"
        for token in (*dict(params.logit_bias), *params.dry_breakers):
            self._check(token)
        self.reset()

    def reset(self) -> None:
        """Forget the history and put the random state back to the seed."""
        self._random = Xoshiro(self.params.seed)
        self._history: list[int] = []
        self._mu = 2.0 * self.params.mirostat_tau
        self.closest = 1.0

    def accept(self, token: int) -> None:
        """Add one token to the history that the penalties look at."""
        self._check(token)
        self._history.append(token)

    def accept_all(self, tokens: Iterable[int]) -> None:
        """Add several tokens, the oldest first."""
        for token in tokens:
            self.accept(token)

    def _check(self, token: int) -> None:
        if not 0 <= token < self.vocab_size:
            raise InputError(f"Token {token} is outside the vocabulary of {self.vocab_size}.")

    def sample(
        self, logits: NDArray[np.float32], *, allowed: NDArray[np.uint32] | None = None
    ) -> TokenStats:
        """Draw the next token."""
        row = self._checked(logits)
        if np.isnan(row).any() or np.isposinf(row).any():
            raise GenerationError("The row of logits holds NaN or +inf.")
        if np.isneginf(row).all():
            raise GenerationError("No token of the row is possible: every logit is -inf.")
        mask = self._mask(allowed)
        changed = np.where(mask, self._changed(row), -np.inf)
        if np.isneginf(changed).all():
            raise GenerationError("No allowed token is possible: every logit is -inf.")
        self.closest = 1.0
        token = self._draw(row, changed)
        if not self.statistics:
            return TokenStats(token, math.nan, math.nan, math.nan)
        return _stats(row, token, mask)

    def sample_at(self, address: int, *, allowed: NDArray[np.uint32] | None = None) -> TokenStats:
        """Draw from the float row at a memory address; the caller vouches for it."""
        if address == 0:
            raise InputError("There is no row of logits at address 0.")
        row = (ctypes.c_float * self.vocab_size).from_address(address)
        return self.sample(np.ctypeslib.as_array(row), allowed=allowed)

    def _checked(self, logits: NDArray[np.float32]) -> Floats:
        if not isinstance(logits, np.ndarray) or logits.dtype != np.float32 or logits.ndim != 1:
            raise InputError("A row of logits must be contiguous float32.")
        if not logits.flags.c_contiguous:
            raise InputError("A row of logits must be contiguous float32, not strided.")
        if len(logits) != self.vocab_size:
            raise InputError(f"The row has {len(logits)} logits, not {self.vocab_size}.")
        return logits.astype(np.float64)

    def _mask(self, allowed: NDArray[np.uint32] | None) -> NDArray[np.bool_]:
        if allowed is None:
            return np.ones(self.vocab_size, dtype=bool)
        words = (self.vocab_size + 31) // 32
        fits = isinstance(allowed, np.ndarray) and allowed.dtype == np.uint32
        if not fits or allowed.shape != (words,) or not allowed.flags.c_contiguous:
            raise InputError(f"The mask must be contiguous uint32 of {words} words.")
        bits = np.unpackbits(allowed.view(np.uint8), bitorder="little")[: self.vocab_size]
        return bits.astype(bool)

    def _changed(self, row: Floats) -> Floats:
        """Return the row with bias, penalties and DRY, each rounded to single precision."""
        changed, params = row.copy(), self.params
        for token, bias in params.logit_bias:
            changed[token] = np.float32(changed[token] + np.float32(bias))
        recent = self._history[-params.penalty_last_n :] if params.penalty_last_n else []
        for token, seen in Counter(recent).items():
            value = changed[token]
            by = params.repetition_penalty
            value = value / by if value > 0 else value * by
            lower = seen * params.frequency_penalty + params.presence_penalty
            changed[token] = np.float32(value - lower)
        for token, lower in self._repeated().items():
            changed[token] = np.float32(changed[token] - lower)
        return changed

    def _repeated(self) -> dict[int, float]:
        """Return what DRY takes off each token that would go on with a repetition."""
        params = self.params
        past = self._history[-params.dry_last_n :] if params.dry_last_n else []
        if params.dry_multiplier == 0.0 or len(past) < 2 or past[-1] in params.dry_breakers:  # noqa: PLR2004
            return {}
        found: dict[int, float] = {}
        for end in range(len(past) - 1):
            length = 0
            while (
                length < min(_DRY_LONGEST, end + 1)
                and past[end - length] == past[-1 - length]
                and past[end - length] not in params.dry_breakers
            ):
                length += 1
            if length >= params.dry_allowed_length:
                power = params.dry_base ** (length - params.dry_allowed_length)
                lower = float(params.dry_multiplier * power)
                found[past[end + 1]] = max(found.get(past[end + 1], 0.0), lower)
        return found

    def _draw(self, row: Floats, changed: Floats) -> int:
        params = self.params
        if params.mirostat_tau > 0.0:
            return self._mirostat(changed)
        if params.temperature == 0.0:
            return int(changed.argmax())
        possible = np.flatnonzero(changed > -np.inf)
        if not self._cuts():
            return self._pick(changed, possible, params.temperature)
        order = possible[np.argsort(-changed[possible], kind="stable")]
        token = self._reject(row, changed, order) if self._only_top_p() else None
        if token is not None:
            return token
        order = self._cut(row, changed, order)
        return self._pick(changed, order, self._heat(changed[order]))

    def _cuts(self) -> bool:
        params = self.params
        off = (params.top_k, params.top_p, params.min_p, params.typical_p, params.top_n_sigma)
        rest = (params.xtc_threshold <= 0.5 and params.xtc_probability > 0.0,)  # noqa: PLR2004
        return off != (0, 1.0, 0.0, 1.0, 0.0) or any(rest) or params.dynamic_temperature_range > 0

    def _only_top_p(self) -> bool:
        params = self.params
        off = SamplingParams(top_p=params.top_p, xtc_threshold=params.xtc_threshold)
        same = ("top_k", "min_p", "typical_p", "top_n_sigma", "dynamic_temperature_range")
        others = any(getattr(params, name) != getattr(off, name) for name in same)
        xtc = params.xtc_threshold <= 0.5 and params.xtc_probability > 0.0  # noqa: PLR2004
        return params.top_p < 1.0 and params.temperature >= _COLD and not others and not xtc

    def _reject(self, row: Floats, changed: Floats, order: Tokens) -> int | None:
        """Draw from all tokens of a flat row until top-p would keep the one drawn.

        ``None`` where the row is not flat, or after a few tries.
        """
        maxima = np.maximum.reduceat(row, np.arange(0, len(row), _BLOCK))
        near = int((maxima > float(np.float32(row.max()) - np.float32(_FLAT_REACH))).sum())
        if len(maxima) < _FLAT_BLOCKS or 4 * near <= 3 * len(maxima):
            return None
        kept = order[: self._reach(_weights(changed[order]), self.params.top_p)]
        for _ in range(_FLAT_TRIES):
            token = self._pick(changed, np.sort(order), self.params.temperature)
            if token in kept:
                return token
        return None

    def _cut(self, row: Floats, changed: Floats, order: Tokens) -> Tokens:
        params = self.params
        if params.top_n_sigma > 0.0:
            spread = float(row[row > -np.inf].std())
            floor = np.float32(changed[order[0]] - params.top_n_sigma * spread)
            self._near(np.abs(changed[order] - float(floor)).min() / max(spread, 1e-9))
            order = order[changed[order] >= floor]
        if params.top_k > 0:
            order = order[: params.top_k]
        if params.typical_p < 1.0:
            order = self._typical(changed, order)
        if params.top_p < 1.0:
            order = order[: self._reach(_weights(changed[order]), params.top_p)]
        if params.min_p > 0.0:
            floor = np.float32(changed[order].max() + np.log(params.min_p))
            order = order[changed[order] >= floor]
        return self._exclude_top(changed, order)

    def _reach(self, weights: Floats, share: float) -> int:
        """Return how many of the first weights hold a share of them all."""
        held = np.cumsum(weights) / weights.sum()
        self._near(np.abs(held - share).min())
        return int(np.searchsorted(held, share, side="left")) + 1

    def _typical(self, changed: Floats, order: Tokens) -> Tokens:
        shares = _weights(changed[order])
        shares /= shares.sum()
        surprise = -np.log(np.maximum(shares, 1e-300))
        away = np.abs(surprise - np.sum(shares * surprise)).astype(np.float32)
        by = np.argsort(away, kind="stable")
        kept = by[: self._reach(shares[by], self.params.typical_p)]
        if len(kept) < len(by):
            self._near(abs(float(away[by[len(kept)]] - away[kept[-1]])))
        return order[np.sort(kept)]

    def _exclude_top(self, changed: Floats, order: Tokens) -> Tokens:
        params = self.params
        if params.xtc_threshold > 0.5 or params.xtc_probability == 0.0:  # noqa: PLR2004
            return order
        if self._random.uniform() >= params.xtc_probability or len(order) < 2:  # noqa: PLR2004
            return order
        shares = _weights(changed[order])
        shares /= shares.sum()
        self._near(np.abs(shares - params.xtc_threshold).min())
        above = int((shares >= params.xtc_threshold).sum())
        return order[max(above - 1, 0) :]

    def _heat(self, logits: Floats) -> float:
        params = self.params
        if params.dynamic_temperature_range == 0.0 or len(logits) < 2:  # noqa: PLR2004
            return params.temperature
        shares = _weights(logits)
        shares = shares[shares > 0] / shares.sum()
        entropy = -float(np.sum(shares * np.log(shares)))
        low = max(0.0, params.temperature - params.dynamic_temperature_range)
        high = params.temperature + params.dynamic_temperature_range
        share = max(entropy, 0.0) / math.log(len(logits))
        return low + (high - low) * float(share**params.dynamic_temperature_exponent)

    def _mirostat(self, changed: Floats) -> int:
        params = self.params
        heat = params.temperature or 1.0
        possible = np.flatnonzero(changed > -np.inf)
        order = possible[np.argsort(-changed[possible], kind="stable")]
        weights = _weights(changed[order] / heat)
        surprise = -np.log2(np.maximum(weights / weights.sum(), 1e-300))
        self._near(np.abs(surprise - self._mu).min())
        kept = max(int((surprise <= self._mu).sum()), 1)
        token = self._pick(changed, order[:kept], heat)
        share = weights[np.flatnonzero(order == token)[0]] / weights[:kept].sum()
        self._mu -= params.mirostat_eta * (-math.log2(share) - params.mirostat_tau)
        return token

    def _pick(self, changed: Floats, order: Tokens, heat: float) -> int:
        """Draw by inverse distribution in the order given."""
        if heat < _COLD:
            return int(order[changed[order].argmax()])
        held = np.cumsum(_weights(changed[order] / heat))
        held /= held[-1]
        aim = self._random.uniform()
        self._near(np.abs(held[:-1] - aim).min() if len(held) > 1 else 1.0)
        return int(order[min(int(np.searchsorted(held, aim, side="right")), len(order) - 1)])

    def _near(self, distance: float) -> None:
        self.closest = min(self.closest, float(distance))


def _weights(logits: Floats) -> Floats:
    return np.asarray(np.exp(logits - logits.max()))


def _stats(row: Floats, token: int, mask: NDArray[np.bool_]) -> TokenStats:
    best, second = np.sort(row)[::-1][:2]
    mass = np.exp(row - best)
    log_sum = float(np.log(mass.sum()))
    shares = mass / mass.sum()
    entropy = -float(np.sum(shares[shares > 0] * np.log(shares[shares > 0])))
    return TokenStats(
        token,
        float(row[token] - best - log_sum),
        max(entropy, 0.0),
        float(best - second),
        float(best + log_sum),
        float(np.sum(shares**2)),
        float(shares[mask].sum()),
        int((row > row[token]).sum()),
    )
