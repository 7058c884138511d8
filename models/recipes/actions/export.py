"""Writes a trained model as GGUF and quantizes it with llama.cpp's own quantizer.

    python models/recipes/actions/export.py --run build/actions --out models/actions-q8_0

The file is a plain `llama` model: byte-level BPE vocabulary (`gpt2`, pre-tokenizer `gpt-2`), tied
embedding, interleaved rotary pairs. Control tokens never show up in a text; the tokens of a call's
structure are user-defined, so they come out as they are. Knows nothing of how good the model is.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from model import Shape
from numpy.typing import NDArray
from tokenizer import CONTROL, load_tokenizer

QUANTIZED = {"q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0", "q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M"}
_CONTROL, _USER, _NORMAL = (
    gguf.TokenType.CONTROL,
    gguf.TokenType.USER_DEFINED,
    gguf.TokenType.NORMAL,
)
Array = NDArray[np.float32]


def write_gguf(run: Path, target: Path) -> None:
    """Write the float32 GGUF of a training run.

    Args:
        run: folder with ``model.pt`` and ``tokenizer.json``.
        target: the file to write.

    """
    state = torch.load(run / "model.pt", map_location="cpu", weights_only=True)
    shape = Shape(**state["shape"])
    writer = gguf.GGUFWriter(str(target), "llama")
    _write_shape(writer, shape)
    _write_vocabulary(writer, run / "tokenizer.json")
    for name, weight in tensors(state["weights"], shape).items():
        writer.add_tensor(name, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(weights: dict[str, torch.Tensor], shape: Shape) -> dict[str, Array]:
    """Return the weights under llama.cpp's names, fused matrices split, float32 ``[out, in]``."""
    plain = {name: weight.float().numpy() for name, weight in weights.items()}
    found = {
        "token_embd.weight": plain["token_embd.weight"],
        "output_norm.weight": plain["output_norm.weight"],
    }
    for index in range(shape.layers):
        ours, theirs = f"blocks.{index}", f"blk.{index}"
        for name in ("attn_norm", "ffn_norm", "attn_output", "ffn_down"):
            found[f"{theirs}.{name}.weight"] = plain[f"{ours}.{name}.weight"]
        q, k, v = np.split(plain[f"{ours}.attn_qkv.weight"], 3)
        gate, up = np.split(plain[f"{ours}.ffn_gate_up.weight"], 2)
        for name, part in (("attn_q", q), ("attn_k", k), ("attn_v", v)):
            found[f"{theirs}.{name}.weight"] = part
        for name, part in (("ffn_gate", gate), ("ffn_up", up)):
            found[f"{theirs}.{name}.weight"] = part
    return found


def _write_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name("actions")
    writer.add_license("Apache-2.0")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(shape.theta)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _write_vocabulary(writer: gguf.GGUFWriter, path: Path) -> None:
    tokenizer = load_tokenizer(path)
    tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    merges = json.loads(path.read_text("utf-8"))["model"]["merges"]
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([_kind(token, added) for token in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(tokenizer.token_to_id("<s>"))
    writer.add_eos_token_id(tokenizer.token_to_id("</s>"))
    writer.add_add_bos_token(value=True)
    writer.add_add_eos_token(value=False)
    writer.add_add_space_prefix(value=False)


def _kind(token: str, added: set[str]) -> gguf.TokenType:
    if token in CONTROL:
        return _CONTROL
    return _USER if token in added else _NORMAL


def quantize(source: Path, target: Path, kind: str) -> None:
    """Quantize a GGUF; ``kind`` is a key of ``QUANTIZED``.

    Raises:
        RuntimeError: llama.cpp refused.

    """
    import llama_cpp

    parameters: Any = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, QUANTIZED[kind])
    parameters.nthread = 1
    done = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    if done != 0:
        raise RuntimeError(f"llama.cpp could not quantize {source.name} to {kind} (code {done})")


def main() -> None:
    """Export a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="build/actions")
    parser.add_argument("--out", default="models/actions-q8_0")
    parser.add_argument("--kind", choices=sorted(QUANTIZED), default="q8_0")
    parser.add_argument("--keep-f32", help="also keep the float32 GGUF, as this file")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"actions-{arguments.kind}.gguf"
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "actions-f32.gguf"
        write_gguf(Path(arguments.run), plain)
        quantize(plain, target, arguments.kind)
        if arguments.keep_f32:
            Path(arguments.keep_f32).write_bytes(plain.read_bytes())
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
