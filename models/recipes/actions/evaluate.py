"""Measures an actions GGUF as a device runs it: greedy decoding through llama.cpp's C API.

    python models/recipes/actions/evaluate.py --model models/actions-q8_0/actions-q8_0.gguf

Reads the bench files (or, with ``--validation``, the held-out rows of snips' train file) and prints
JSON: intent accuracy, exact match of the whole call, and milliseconds per utterance. Text that
comes from data is never parsed for control tokens. Trains and tunes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

import llama_cpp
import numpy as np
from constrain import Grammar, allowed, grammar
from data import DOMAINS, Example, load_domain, load_snips, prompt_text, same_call, split
from drafts import confirmations
from tokenizer import load_tokenizer

from edge.backends.grounding import ground_object
from edge.task import Prompt, Segment, spaced

EXTRACT = Prompt(version=1, template="<utt>{text_spaced}<again>{text_spaced}<answer>")
DRAFT = Prompt(version=1, template="<utt>{text_spaced}<again>{text_spaced}<draft>")
CONTEXT, LIMIT, PIECE_BYTES = 512, 128, 256
Allow = Callable[[Sequence[int]], Collection[int]]


@llama_cpp.llama_log_callback
def _quiet(_level: int, _text: bytes, _data: object) -> None:
    """Drop llama.cpp's log."""


def extract_prompt(example: Example, *, ask: bool = True) -> list[Segment]:
    """Return the prompt in segments: what was asked for, then the template with the utterance."""
    whole = EXTRACT.render(example.text)
    if not (ask and example.requested):
        return whole
    asked = prompt_text(example).partition("<utt>")[0]
    return [Segment(asked, trusted=True), *whole]


class Decoder:
    """One GGUF in llama.cpp, decoding greedily, one utterance at a time."""

    def __init__(self, path: Path, *, threads: int) -> None:
        llama_cpp.llama_log_set(_quiet, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = CONTEXT
        context.n_threads = context.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._size = llama_cpp.llama_vocab_n_tokens(self._vocab)

    def close(self) -> None:
        """Free the context and the model."""
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def tokens(self, segments: Sequence[Segment]) -> list[int]:
        """Return the prompt's tokens, with the beginning-of-sequence token."""
        ids = [llama_cpp.llama_vocab_bos(self._vocab)]
        for segment in segments:
            ids += self._tokenize(segment.text, special=segment.trusted)
        return ids

    def _tokenize(self, text: str, *, special: bool) -> list[int]:
        raw = text.encode()
        room = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(
            self._vocab,
            raw,
            len(raw),
            room,
            len(room),
            False,  # noqa: FBT003
            special,
        )
        return list(room[:count])

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of generated tokens."""
        return b"".join(self._piece(token) for token in ids).decode(errors="replace")

    def _piece(self, token: int) -> bytes:
        room = ctypes.create_string_buffer(PIECE_BYTES)
        size = llama_cpp.llama_token_to_piece(self._vocab, token, room, PIECE_BYTES, 0, False)  # noqa: FBT003
        return room.raw[:size]

    def greedy(
        self, ids: Sequence[int], *, allow: Allow | None = None, limit: int = LIMIT
    ) -> list[int]:
        """Return the most likely continuation, up to the end token or ``limit`` tokens.

        Args:
            ids: the prompt.
            allow: given the continuation so far, the tokens that may come next.
            limit: the most tokens to return.

        """
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)  # noqa: FBT003
        found: list[int] = []
        given = list(ids)
        while len(found) < limit and len(ids) + len(found) < CONTEXT:
            row = (llama_cpp.llama_token * len(given))(*given)
            if llama_cpp.llama_decode(
                self._context, llama_cpp.llama_batch_get_one(row, len(given))
            ):
                raise RuntimeError("llama.cpp failed to decode; the prompt may exceed the context")
            raw = llama_cpp.llama_get_logits_ith(self._context, -1)
            logits = np.ctypeslib.as_array(raw, shape=(self._size,))
            if allow is None:
                chosen = int(logits.argmax())
            else:
                chosen = max(allow(found), key=lambda token: float(logits[token]))
            if llama_cpp.llama_vocab_is_eog(self._vocab, chosen):
                break
            found.append(chosen)
            given = [chosen]
        return found


@contextlib.contextmanager
def decoder(path: Path, *, threads: int) -> Iterator[Decoder]:
    """Open a GGUF and free it afterwards."""
    opened = Decoder(path, threads=threads)
    try:
        yield opened
    finally:
        opened.close()


def measure(
    model: Decoder,
    examples: Sequence[Example],
    *,
    rules: Grammar | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return shares of right intents and calls, and the time that one utterance takes.

    ``exact_match`` compares case and white space aside; ``exact_match_grounded`` compares, letter
    for letter, after the runtime's grounding has put the utterance's own characters back. With
    ``rules`` the decoding is copy-constrained, without it plain greedy.
    """
    intent = right = grounded = valid = 0
    spent = []
    for example in examples:
        start = clock()
        answer = answer_of(model, example, rules)
        spent.append((clock() - start) * 1000)
        try:
            call = json.loads(answer)
        except ValueError:
            continue
        valid += 1
        intent += call.get("intent") == example.intent
        right += same_call(call, example.call())
        grounded += ground_object(call, example.text, skip={"intent"})[0] == literal(example)
    total = max(len(examples), 1)
    return {
        "n": len(examples),
        "intent": round(intent / total, 4),
        "exact_match": round(right / total, 4),
        "exact_match_grounded": round(grounded / total, 4),
        "valid_json": round(valid / total, 4),
        "ms_median": round(statistics.median(spent), 2) if spent else 0.0,
    }


def answer_of(model: Decoder, example: Example, rules: Grammar | None) -> str:
    """Return the text of the model's call for an example."""
    prompt = model.tokens(extract_prompt(example))
    if rules is None:
        return model.text(model.greedy(prompt))
    words = model.tokens([Segment(spaced(example.text), trusted=False)])[1:]
    return model.text(model.greedy(prompt, allow=partial(allowed, rules, words)))


def measure_drafts(model: Decoder, examples: Sequence[Example]) -> dict[str, float]:
    """Return the share of greedy drafts that are one of the right confirmations, word for word."""
    fitting = [(example, confirmations(example)) for example in examples]
    right = sum(
        model.text(model.greedy(model.tokens(DRAFT.render(example.text)))) in wordings
        for example, wordings in fitting
        if wordings
    )
    total = sum(1 for _, wordings in fitting if wordings)
    return {"n": total, "right": round(right / max(total, 1), 4)}


def constraint(run: Path, data: Path) -> Grammar:
    """Return the rules of copy-constrained decoding, from a run's vocabulary and train files."""
    vocabulary = load_tokenizer(run / "tokenizer.json").get_vocab()
    return grammar(vocabulary, slots_by_intent(data))


def slots_by_intent(data: Path) -> dict[str, list[str]]:
    """Return every intent's slots as they occur in the train files, sorted."""
    rows = load_snips(data / "snips" / "train.jsonl")
    for domain in DOMAINS:
        rows += load_domain(data / "restaurant8k" / f"{domain}_train.jsonl", domain)
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.intent, set()).update(slot.name for slot in row.slots)
    return {intent: sorted(names) for intent, names in sorted(found.items())}


def literal(example: Example) -> dict[str, str]:
    """Return the gold call with the utterance's own characters, ends stripped."""
    call = {"intent": example.intent}
    for slot in example.slots:
        call.setdefault(slot.name, example.value(slot).strip())
    return call


def benches(data: Path) -> dict[str, list[Example]]:
    """Read every bench file, by name."""
    found = {"snips": load_snips(data / "snips" / "bench.jsonl")}
    for domain in DOMAINS:
        path = data / "restaurant8k" / f"{domain}_bench.jsonl"
        found[domain] = load_domain(path, domain)
    return found


def validation(data: Path) -> dict[str, list[Example]]:
    """Read the rows of snips' train file that training leaves out."""
    return {"snips_validation": split(load_snips(data / "snips" / "train.jsonl"))[1]}


def main() -> None:
    """Measure one file and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/actions-q8_0/actions-q8_0.gguf")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--drafts", action="store_true", help="also measure the draft mode")
    parser.add_argument("--constrained", metavar="RUN", help="copy-constrained; the run's folder")
    parser.add_argument("--only", help="one set, such as snips")
    arguments = parser.parse_args()
    data = Path(arguments.data)
    sets = validation(data) if arguments.validation else benches(data)
    rules = constraint(Path(arguments.constrained), data) if arguments.constrained else None
    figures: dict[str, dict[str, float]] = {}
    with decoder(Path(arguments.model), threads=arguments.threads) as model:
        for name, examples in sets.items():
            if arguments.only in {None, name}:
                figures[name] = measure(model, examples, rules=rules)
        if arguments.drafts:
            figures["drafts"] = measure_drafts(model, next(iter(sets.values())))
    print(json.dumps({"threads": arguments.threads, **figures}, indent=2))


if __name__ == "__main__":
    main()
