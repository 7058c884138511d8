"""A llama-architecture decoder in torch: RMSNorm, rotary positions, SwiGLU, tied embedding.

Rotary pairs are interleaved, as llama.cpp's `llama` architecture expects, so weights are written
to GGUF as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; every width is a multiple of 256 so that k-quants apply."""

    vocab: int = 4096
    width: int = 256
    layers: int = 5
    heads: int = 4
    hidden: int = 768
    context: int = 512
    theta: float = 10000.0
    eps: float = 1e-5


def rotary(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each ``[length, head/2]``."""
    half = shape.width // shape.heads // 2
    rates = shape.theta ** (-torch.arange(half).float() / half)
    angles = torch.outer(torch.arange(length).float(), rates)
    return angles.cos(), angles.sin()


def rotate(value: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn neighbouring pairs of ``[batch, heads, length, head]`` by their position's angle."""
    even, odd = value[..., 0::2], value[..., 1::2]
    turned = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
    return turned.flatten(-2)


class Block(nn.Module):
    """One layer."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.attn_norm = nn.RMSNorm(width, eps=shape.eps)
        self.ffn_norm = nn.RMSNorm(width, eps=shape.eps)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_output = nn.Linear(width, width, bias=False)
        self.ffn_gate_up = nn.Linear(width, 2 * shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Return the layer's output, ``[batch, length, width]``."""
        batch, length, width = x.shape
        mixed = self.attn_qkv(self.attn_norm(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = mixed.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cosine, sine).to(v.dtype), rotate(k, cosine, sine).to(v.dtype)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.attn_output(seen.transpose(1, 2).reshape(batch, length, width)))
        gate, up = self.ffn_gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.dropout(self.ffn_down(functional.silu(gate) * up))


class Actions(nn.Module):
    """The whole decoder."""

    def __init__(self, shape: Shape, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(Block(shape, dropout) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, eps=shape.eps)
        self.dropout = nn.Dropout(dropout)
        cosine, sine = rotary(shape, shape.context)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deep = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * shape.layers) ** 0.5 if deep else 0.02)
        nn.init.normal_(self.token_embd.weight, std=0.05)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return the last layer's normed states, ``[batch, length, width]``."""
        length = tokens.shape[1]
        x = self.dropout(self.token_embd(tokens))
        for block in self.blocks:
            x = block(x, self.cosine[:length], self.sine[:length])
        return self.output_norm(x)

    def loss(self, tokens: Tensor, answer: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Return the mean cross-entropy of the tokens that ``answer`` (bool, same shape) marks."""
        states = self.hidden(tokens[:, :-1])[answer[:, 1:]]
        logits = functional.linear(states, self.token_embd.weight).float()
        return functional.cross_entropy(
            logits, tokens[:, 1:][answer[:, 1:]], label_smoothing=smoothing
        )

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits after each token, ``[batch, length, vocab]``."""
        return functional.linear(self.hidden(tokens), self.token_embd.weight).float()
