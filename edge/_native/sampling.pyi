from collections.abc import Iterable
from typing import final

import numpy as np
from numpy.typing import NDArray

from edge.types import SamplingParams, TokenStats

REFUSALS: tuple[str, ...]

def instruction_sets() -> tuple[str, ...]: ...
def log_probs_at(address: int, size: int, tokens: Iterable[int]) -> list[float]: ...

@final
class Sampler:
    def __new__(
        cls,
        params: SamplingParams,
        vocab_size: int,
        *,
        statistics: bool = True,
        instruction_set: str | None = None,
    ) -> Sampler: ...
    @property
    def params(self) -> SamplingParams: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def statistics(self) -> bool: ...
    @property
    def instruction_set(self) -> str: ...
    def reset(self) -> None: ...
    def accept(self, token: int) -> None: ...
    def accept_all(self, tokens: Iterable[int]) -> None: ...
    def sample(
        self, logits: NDArray[np.float32], *, allowed: NDArray[np.uint32] | None = None
    ) -> TokenStats: ...
    def sample_at(
        self, address: int, *, allowed: NDArray[np.uint32] | None = None
    ) -> TokenStats: ...
