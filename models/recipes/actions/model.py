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
        return self.states(tokens, 0)[0]

    def states(self, tokens: Tensor, tag_layer: int) -> tuple[Tensor, Tensor]:
        """Return the last layer's normed states and those after ``tag_layer`` layers."""
        length = tokens.shape[1]
        x = middle = self.dropout(self.token_embd(tokens))
        for index, block in enumerate(self.blocks, 1):
            x = block(x, self.cosine[:length], self.sine[:length])
            if index == tag_layer:
                middle = x
        return self.output_norm(x), middle

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits after each token, ``[batch, length, vocab]``."""
        return functional.linear(self.hidden(tokens), self.token_embd.weight).float()


class Tagger(nn.Module):
    """Used in training only: reads each token's slot from the states of the utterance's repeat.

    The repeat has seen the whole utterance, so its states can know every slot before the answer
    begins; the upper layers then only have to copy. Dropped at export.
    """

    def __init__(self, width: int, tags: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.out = nn.Linear(width, tags)

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits over tags."""
        return self.out(self.norm(states)).float()


class Objective(nn.Module):
    """Cross-entropy of the answer's tokens, plus that of the repeat's slots.

    Args:
        model: the decoder.
        tags: kinds of tag, 0 for outside.
        tag_layer: layers below the tagger.
        tag_share: weight of the tagging loss.
        smoothing: label smoothing of the answer's tokens.

    """

    def __init__(
        self, model: Actions, *, tags: int, tag_layer: int, tag_share: float, smoothing: float
    ) -> None:
        super().__init__()
        self.model = model
        self.tagger = Tagger(model.shape.width, tags)
        self._tag_layer, self._tag_share, self._smoothing = tag_layer, tag_share, smoothing

    def forward(self, tokens: Tensor, answer: Tensor, tags: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            tokens: ``[batch, length]``.
            answer: bool, same shape: the tokens of the answer.
            tags: same shape: the tag of a token of the repeat, -100 elsewhere.

        """
        last, middle = self.model.states(tokens[:, :-1], self._tag_layer)
        marked = answer[:, 1:]
        logits = functional.linear(last[marked], self.model.token_embd.weight).float()
        said = functional.cross_entropy(
            logits, tokens[:, 1:][marked], label_smoothing=self._smoothing
        )
        known = tags[:, :-1] >= 0
        seen = functional.cross_entropy(self.tagger(middle[known]), tags[:, :-1][known])
        return said + self._tag_share * seen
