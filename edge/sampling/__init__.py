"""Drawing tokens: the compiled sampler and its plain numpy specification."""

from edge._native.sampling import Sampler, instruction_sets
from edge.sampling.reference import ReferenceSampler

__all__ = ["ReferenceSampler", "Sampler", "instruction_sets"]
