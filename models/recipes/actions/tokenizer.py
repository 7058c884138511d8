"""The vocabulary: byte-level BPE on spaced, lower-case text, and one token per piece of structure.

Structure tokens (an intent's opening, a slot's key, the closing quote and brace) are user-defined
tokens, so an answer is short and every value is made of exactly the tokens it has in the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from data import Example
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CONTROL = ("<s>", "</s>", "<utt>", "<again>", "<answer>", "<ask>", "<draft>")


def structure_tokens(examples: Iterable[Example]) -> list[str]:
    """Return the user-defined tokens that spell out every call's structure."""
    intents, slots = set(), set()
    for example in examples:
        intents.add(example.intent)
        slots.update(slot.name for slot in example.slots)
    opened = [f'{{"intent": "{intent}"' for intent in sorted(intents)]
    keys = [f', "{slot}": "' for slot in sorted(slots)]
    return [*opened, *keys, '"', "}"]


def train_tokenizer(texts: Iterable[str], structure: list[str], *, vocab_size: int) -> Tokenizer:
    """Train the vocabulary; the first ids are the control tokens, then the structure."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*CONTROL, *structure],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a trained vocabulary."""
    return Tokenizer.from_file(str(path))
