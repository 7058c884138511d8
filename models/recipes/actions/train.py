"""Trains the actions model on a CPU within a given wall-clock time.

    python models/recipes/actions/train.py --data ../shared/data --out build/actions --minutes 90

The learning rate follows the clock (warm-up, then cosine), so that a slow or busy machine still
ends on time; an exponential mean of the weights is what is saved.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from data import (
    DOMAINS,
    Example,
    Substitution,
    answer_text,
    load_domain,
    load_snips,
    prompt_text,
    same_call,
    split,
)
from drafts import draft_text
from init import semantic_embedding
from model import Actions, Shape
from tokenizer import structure_tokens, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor

from edge.task import spaced

DRAFT_SHARE = 0.07
EMA_DECAY = 0.998
MATRIX = 2  # dimensions of a weight that decays


@dataclass
class Corpus:
    """Training and validation rows of snips, and the other domains' rows."""

    snips: list[Example]
    validation: list[Example]
    domains: list[Example]


def load_corpus(data: Path) -> Corpus:
    """Read every training file and hold out the validation rows."""
    snips, validation = split(load_snips(data / "snips" / "train.jsonl"))
    held = {spaced(example.text) for example in validation}
    snips = [e for e in snips if spaced(e.text) not in held]
    domains: list[Example] = []
    for domain in DOMAINS:
        domains += load_domain(data / "restaurant8k" / f"{domain}_train.jsonl", domain)
    return Corpus(snips, validation, domains)


class Encoder:
    """Turns examples into token rows with the answer marked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.begin = tokenizer.token_to_id("<s>")
        self.end = tokenizer.token_to_id("</s>")

    def row(self, prompt: str, answer: str) -> tuple[list[int], int]:
        """Return the tokens and how many of them are prompt."""
        head = [self.begin, *self._tokenizer.encode(prompt, add_special_tokens=False).ids]
        tail = self._tokenizer.encode(answer, add_special_tokens=False).ids
        return [*head, *tail, self.end], len(head)

    def decode(self, ids: list[int]) -> str:
        """Return the text of generated ids."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def epoch_rows(
    corpus: Corpus, encoder: Encoder, substitution: Substitution, rng: random.Random, share: float
) -> list[tuple[list[int], int]]:
    """Return one epoch: all of snips and ``share`` of the domains, with values substituted."""
    chosen = corpus.snips + rng.sample(corpus.domains, int(share * len(corpus.domains)))
    rows = []
    for example in chosen:
        varied = substitution.apply(example, rng)
        prompt, answer = prompt_text(varied), answer_text(varied)
        if rng.random() < DRAFT_SHARE and (draft := draft_text(varied, rng)):
            prompt, answer = prompt.replace("<answer>", "<draft>"), draft
        rows.append(encoder.row(prompt, answer))
    return rows


def batches(
    rows: list[tuple[list[int], int]], size: int, rng: random.Random
) -> list[list[tuple[list[int], int]]]:
    """Return batches of rows of about the same length, about ``size`` tokens each, shuffled."""
    rng.shuffle(rows)
    chunk = 2048
    found = []
    for start in range(0, len(rows), chunk):
        part = sorted(rows[start : start + chunk], key=lambda row: len(row[0]))
        batch: list[tuple[list[int], int]] = []
        for row in part:
            if batch and (len(batch) + 1) * len(row[0]) > size:
                found.append(batch)
                batch = []
            batch.append(row)
        found.append(batch)
    rng.shuffle(found)
    return found


def tensors(batch: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    """Return padded tokens and the mask of answer tokens; the length is a multiple of 8."""
    length = -(-max(len(ids) for ids, _ in batch) // 8) * 8 + 1
    tokens = torch.zeros(len(batch), length, dtype=torch.long)
    answer = torch.zeros(len(batch), length, dtype=torch.bool)
    for index, (ids, prompt) in enumerate(batch):
        tokens[index, : len(ids)] = torch.tensor(ids)
        answer[index, prompt : len(ids)] = True
    return tokens, answer


@torch.no_grad()
def exact_match(model: Actions, encoder: Encoder, examples: list[Example]) -> dict[str, float]:
    """Return intent accuracy and exact match by greedy decoding, without a KV cache."""
    model.eval()
    right = intent = 0
    for start in range(0, len(examples), 64):
        part = sorted(examples[start : start + 64], key=lambda e: len(e.text))
        heads = [encoder.row(prompt_text(e), "")[0][:-1] for e in part]
        answers = greedy(model, heads, encoder.end)
        for example, ids in zip(part, answers, strict=True):
            try:
                call = json.loads(encoder.decode(ids))
            except ValueError:
                continue
            intent += call.get("intent") == example.intent
            right += same_call(call, example.call())
    model.train()
    return {"intent": intent / len(examples), "exact_match": right / len(examples)}


def greedy(model: Actions, heads: list[list[int]], end: int, limit: int = 40) -> list[list[int]]:
    """Return greedy continuations of prompts of different lengths, right-padded."""
    lengths = [len(head) for head in heads]
    tokens = torch.zeros(len(heads), max(lengths) + limit, dtype=torch.long)
    for index, head in enumerate(heads):
        tokens[index, : len(head)] = torch.tensor(head)
    where = torch.tensor(lengths)
    open_rows = torch.ones(len(heads), dtype=torch.bool)
    for _ in range(limit):
        longest = int(where.max())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = model.hidden(tokens[:, :longest])
        last = states[torch.arange(len(heads)), where - 1]
        chosen = (last.float() @ model.token_embd.weight.float().T).argmax(-1)
        open_rows &= chosen != end
        if not open_rows.any():
            break
        tokens[torch.arange(len(heads)), where] = torch.where(open_rows, chosen, 0)
        where = where + open_rows.long()
    return [tokens[i, lengths[i] : int(where[i])].tolist() for i in range(len(heads))]


class Schedule:
    """Learning rate by the clock: linear warm-up over 3 % of the time, then cosine to 2 %."""

    def __init__(self, seconds: float, peak: float) -> None:
        self._start, self._seconds, self._peak = time.monotonic(), seconds, peak

    @property
    def progress(self) -> float:
        """Share of the time that has passed, 0 to 1."""
        return min(1.0, (time.monotonic() - self._start) / self._seconds)

    def rate(self) -> float:
        """Return the rate now."""
        done = self.progress
        return self._peak * min(
            done / 0.03 + 0.02, 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2
        )


def train(arguments: argparse.Namespace) -> None:
    """Run the whole training."""
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    rng = random.Random(arguments.seed)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    corpus = load_corpus(Path(arguments.data))
    everything = corpus.snips + corpus.domains
    texts = [t for e in everything for t in (spaced(e.text), *map(spaced, e.requested))]
    tokenizer = train_tokenizer(texts, structure_tokens(everything), vocab_size=4096)
    tokenizer.save(str(out / "tokenizer.json"))
    encoder = Encoder(tokenizer)
    shape = Shape(vocab=tokenizer.get_vocab_size(), layers=arguments.layers)
    model = Actions(shape, dropout=arguments.dropout)
    if arguments.semantic_init:
        with torch.no_grad():
            model.token_embd.weight.copy_(semantic_embedding(tokenizer, shape.width, seed=0))
    print(
        f"parameters {sum(p.numel() for p in model.parameters()):,}; vocab {shape.vocab}",
        flush=True,
    )
    trainer = Trainer(arguments, model, encoder, corpus, rng=rng)
    trainer.run(out)


class Trainer:
    """The training loop: clock-driven, with a line of figures after each epoch."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        model: Actions,
        encoder: Encoder,
        corpus: Corpus,
        *,
        rng: random.Random,
    ) -> None:
        self._arguments, self._encoder, self._corpus, self._rng = arguments, encoder, corpus, rng
        self._model = model
        self._mean = copy.deepcopy(model).requires_grad_(requires_grad=False)
        decay = [p for p in model.parameters() if p.dim() == MATRIX]
        rest = [p for p in model.parameters() if p.dim() != MATRIX]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        self._loss = torch.compile(model.loss, dynamic=True) if arguments.compile else model.loss
        known = corpus.snips + corpus.domains
        self._substitution = Substitution(known, share=0.5, open_share=0.08)
        self._schedule = Schedule(arguments.minutes * 60, arguments.rate)

    def run(self, out: Path) -> None:
        """Train until the time is up; weights and figures are saved after each epoch."""
        curve: list[dict[str, float]] = []
        while self._schedule.progress < 1.0:
            loss = self._epoch()
            progress = self._schedule.progress
            curve.append({"epoch": len(curve) + 1, "progress": progress, "loss": loss})
            save(out, self._mean, curve)
            curve[-1] |= self._figures(len(curve), last=progress >= 1.0)
            save(out, self._mean, curve)
            print(json.dumps({k: round(v, 4) for k, v in curve[-1].items()}), flush=True)

    def _epoch(self) -> float:
        share, size = self._arguments.domain_share, self._arguments.batch_tokens
        rows = epoch_rows(self._corpus, self._encoder, self._substitution, self._rng, share)
        losses = []
        for batch in batches(rows, size, self._rng):
            losses.append(self._step(batch))
            if self._schedule.progress >= 1.0:
                break
        return float(np.mean(losses))

    def _step(self, batch: list[tuple[list[int], int]]) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.rate()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._arguments.bf16):
            loss = self._loss(*tensors(batch), smoothing=0.05)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        update_mean(self._mean, self._model)
        return float(loss.item())

    def _figures(self, epoch: int, *, last: bool) -> dict[str, float]:
        """Return exact match on validation: all of it at the end, some rows now and then."""
        if last:
            return exact_match(self._mean, self._encoder, self._corpus.validation)
        if epoch % self._arguments.every == 0:
            rows = self._corpus.validation
            few = rows[:: max(1, len(rows) // self._arguments.few)]
            return exact_match(self._mean, self._encoder, few)
        return {}


def update_mean(mean: Actions, model: Actions) -> None:
    """Move the mean of the weights a little towards the weights."""
    with torch.no_grad():
        torch._foreach_lerp_(list(mean.parameters()), list(model.parameters()), 1 - EMA_DECAY)


def save(out: Path, model: Actions, curve: list[dict[str, float]]) -> None:
    """Write weights and curve; the last good file stays until the new one is whole."""
    state = {"shape": asdict(model.shape), "weights": model.state_dict()}
    torch.save(state, out / "model.tmp")
    (out / "model.tmp").replace(out / "model.pt")
    (out / "curve.json").write_text(json.dumps(curve, indent=1) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--out", default="build/actions")
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batch-tokens", type=int, default=3072)
    parser.add_argument("--domain-share", type=float, default=0.35)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=4, help="epochs between two validations")
    parser.add_argument("--few", type=int, default=128, help="validation rows while training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--semantic-init", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    train(parse())
