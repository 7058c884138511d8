"""Trains the actions model on a CPU.

    python models/recipes/actions/train.py --data ../shared/data --out build/actions --epochs 26

The learning rate warms up, then falls along a cosine over the given epochs; an exponential mean of
the weights is what is saved.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Iterable, Sequence
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
    tagged_pieces,
)
from drafts import draft_text
from init import semantic_embedding
from model import Actions, Objective, Shape
from tokenizer import structure_tokens, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor

from edge.task import spaced

DRAFT_SHARE = 0.07
EMA_DECAY = 0.998
SMOOTHING = 0.05
NO_TAG = -100
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


@dataclass(frozen=True)
class Row:
    """One tokenized example: its ids, how many are prompt, and each id's tag (-100: none)."""

    ids: list[int]
    prompt: int
    tags: list[int]


class Encoder:
    """Turns examples into token rows with the answer marked."""

    def __init__(self, tokenizer: Tokenizer, slots: Iterable[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._tags = {name: 1 + 2 * index for index, name in enumerate(sorted(set(slots)))}
        self.tags = 1 + 2 * len(self._tags)
        self.begin = tokenizer.token_to_id("<s>")
        self.end = tokenizer.token_to_id("</s>")

    def row(self, prompt: str, answer: str, pieces: Sequence[tuple[str, str]] | None = None) -> Row:
        """Return a row; ``pieces`` are the utterance's, see ``tagged_pieces``."""
        head = [self.begin, *self._ids(prompt)]
        ids = [*head, *self._ids(answer), self.end]
        tags = [NO_TAG] * len(ids)
        found = [tag for text, slot in pieces or () for tag in self._piece(text, slot)]
        tags[len(head) - 1 - len(found) : len(head) - 1] = found
        return Row(ids, len(head), tags)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _piece(self, text: str, slot: str) -> list[int]:
        """Return a piece's tags: 0 outside, one for a slot's first token, one for the others."""
        count = len(self._ids(text))
        if not slot:
            return [0] * count
        return [self._tags[slot], *[self._tags[slot] + 1] * (count - 1)]

    def decode(self, ids: list[int]) -> str:
        """Return the text of generated ids."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def epoch_rows(
    corpus: Corpus, encoder: Encoder, substitution: Substitution, rng: random.Random, share: float
) -> list[Row]:
    """Return one epoch: all of snips and ``share`` of the domains, with values substituted."""
    chosen = corpus.snips + rng.sample(corpus.domains, int(share * len(corpus.domains)))
    rows = []
    for example in chosen:
        varied = substitution.apply(example, rng)
        prompt, answer = prompt_text(varied), answer_text(varied)
        if rng.random() < DRAFT_SHARE and (draft := draft_text(varied, rng)):
            prompt, answer = prompt.replace("<answer>", "<draft>"), draft
        rows.append(encoder.row(prompt, answer, tagged_pieces(varied)))
    return rows


def batches(rows: list[Row], size: int, rng: random.Random) -> list[list[Row]]:
    """Return batches of rows of about the same length, about ``size`` tokens each, shuffled."""
    rng.shuffle(rows)
    chunk = 2048
    found = []
    for start in range(0, len(rows), chunk):
        part = sorted(rows[start : start + chunk], key=lambda row: len(row.ids))
        batch: list[Row] = []
        for row in part:
            if batch and (len(batch) + 1) * len(row.ids) > size:
                found.append(batch)
                batch = []
            batch.append(row)
        found.append(batch)
    rng.shuffle(found)
    return found


def tensors(batch: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Return padded tokens, the mask of answer tokens, and tags; of 8k + 1 columns."""
    length = -(-max(len(row.ids) for row in batch) // 8) * 8 + 1
    tokens = torch.zeros(len(batch), length, dtype=torch.long)
    answer = torch.zeros(len(batch), length, dtype=torch.bool)
    tags = torch.full((len(batch), length), NO_TAG, dtype=torch.long)
    for index, row in enumerate(batch):
        tokens[index, : len(row.ids)] = torch.tensor(row.ids)
        answer[index, row.prompt : len(row.ids)] = True
        tags[index, : len(row.tags)] = torch.tensor(row.tags)
    return tokens, answer, tags


@torch.no_grad()
def exact_match(model: Actions, encoder: Encoder, examples: list[Example]) -> dict[str, float]:
    """Return intent accuracy and exact match by greedy decoding, without a KV cache."""
    model.eval()
    right = intent = 0
    for start in range(0, len(examples), 64):
        part = sorted(examples[start : start + 64], key=lambda e: len(e.text))
        heads = [encoder.row(prompt_text(e), "").ids[:-1] for e in part]
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


def rate_at(progress: float, peak: float) -> float:
    """Return the learning rate: linear warm-up over 3 % of the training, then cosine to 2 %."""
    cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2
    return peak * min(progress / 0.03 + 0.02, cosine)


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
    encoder = Encoder(tokenizer, (slot.name for e in everything for slot in e.slots))
    shape = Shape(
        vocab=tokenizer.get_vocab_size(),
        width=arguments.width,
        layers=arguments.layers,
        hidden=3 * arguments.width,
    )
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
    """The training loop, with a line of figures after each epoch."""

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
        objective = Objective(
            model,
            tags=encoder.tags,
            tag_layer=arguments.tag_layer,
            tag_share=arguments.tag_share,
            smoothing=SMOOTHING,
        )
        self._objective = objective
        self._mean = copy.deepcopy(model).requires_grad_(requires_grad=False)
        decay = [p for p in objective.parameters() if p.dim() == MATRIX]
        rest = [p for p in objective.parameters() if p.dim() != MATRIX]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        self._loss = torch.compile(objective, dynamic=True) if arguments.compile else objective
        known = corpus.snips + corpus.domains
        self._substitution = Substitution(known, share=0.5, open_share=0.08)

    def run(self, out: Path) -> None:
        """Train all epochs; weights and figures are saved after each."""
        curve: list[dict[str, float]] = []
        for epoch in range(1, self._arguments.epochs + 1):
            start = time.monotonic()
            loss = self._epoch(epoch - 1)
            seconds = time.monotonic() - start
            curve.append({"epoch": epoch, "loss": loss, "seconds": seconds})
            save(out, self._mean, curve)
            curve[-1] |= self._figures(epoch)
            save(out, self._mean, curve)
            print(json.dumps({k: round(v, 4) for k, v in curve[-1].items()}), flush=True)

    def _epoch(self, done: int) -> float:
        share, size = self._arguments.domain_share, self._arguments.batch_tokens
        rows = epoch_rows(self._corpus, self._encoder, self._substitution, self._rng, share)
        found = batches(rows, size, self._rng)
        losses = []
        for index, batch in enumerate(found):
            progress = (done + index / len(found)) / self._arguments.epochs
            losses.append(self._step(batch, rate_at(progress, self._arguments.rate)))
        return float(np.mean(losses))

    def _step(self, batch: list[Row], rate: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._arguments.bf16):
            loss = self._loss(*tensors(batch))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._objective.parameters(), 1.0)
        self._optimizer.step()
        update_mean(self._mean, self._model)
        return float(loss.item())

    def _figures(self, epoch: int) -> dict[str, float]:
        """Return exact match on validation: all of it at the end, some rows now and then."""
        if epoch == self._arguments.epochs:
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
    parser.add_argument("--epochs", type=int, default=26)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--tag-layer", type=int, default=3, help="layers below the tagger")
    parser.add_argument("--tag-share", type=float, default=0.5, help="weight of its loss")
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
