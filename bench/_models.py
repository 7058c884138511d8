"""Random models that a bench builds for itself: right in shape and size, meaningless in words.

Their vocabulary begins with the shipped actions model's, so that text has tokens.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize

ROOT = Path(__file__).resolve().parents[1]
ACTIONS = ROOT / "models" / "actions-q8_0" / "actions-q8_0.gguf"
BUILT = ROOT / "build" / "bench"


def shipped_words() -> tuple[list[str], list[int], list[str]]:
    """Return tokens, their types and the merges of the shipped actions model."""
    fields = gguf.GGUFReader(ACTIONS).fields
    found = [
        fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges")
    ]
    return found[0], found[1], found[2]


def random_llama(
    name: str,
    *,
    vocab: int,
    width: int,
    layers: int,
    hidden: int,
    context: int = 2048,
    kind: str = "Q8_0",
) -> Path:
    """Return a GGUF of the llama architecture, written on first use.

    Args:
        name: of the file.
        vocab: entries of a row of logits.
        width: a multiple of 32, at least 64.
        layers: transformer blocks.
        hidden: width of the feed-forward part, a multiple of 32.
        context: tokens it claims to be trained for.
        kind: ``Q8_0`` or ``Q4_0``.

    """
    path = BUILT / f"{name}.gguf"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    packing = gguf.GGMLQuantizationType[kind]
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path.with_suffix(".part"), "llama")
    heads = width // 64
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    words, kinds, merges = shipped_words()
    spare = [f"<unused{i}>" for i in range(vocab - len(words))]
    writer.add_token_list([*words, *spare])
    writer.add_token_types([*kinds, *[gguf.TokenType.UNUSED] * len(spare)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def matrix(label: str, rows: int, columns: int, scale: float = 1.0) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32)
        values *= scale / np.sqrt(columns)
        writer.add_tensor(label, quantize(values, packing), raw_dtype=packing)

    matrix("token_embd.weight", vocab, width)
    matrix("output.weight", vocab, width, scale=3.0)
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    for layer in range(layers):
        block = f"blk.{layer}"
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{block}.{part}.weight", width, width)
        matrix(f"{block}.ffn_gate.weight", hidden, width)
        matrix(f"{block}.ffn_up.weight", hidden, width)
        matrix(f"{block}.ffn_down.weight", width, hidden)
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}.{part}.weight", np.ones(width, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".part").rename(path)
    return path
