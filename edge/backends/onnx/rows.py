"""Token rows of an encoder: cut to a limit, grouped for a pass, laid out as the graph wants them.

Pure functions over plain values. Knows nothing of sessions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

_WIDEST = 2


def cut(encoding: Encoding, limit: int) -> list[int]:
    """Return the token ids, cut in the text and not in the special tokens that close it."""
    ids = encoding.ids
    if len(ids) <= limit:
        return list(ids)
    closing = 0
    while closing < limit and encoding.special_tokens_mask[-1 - closing]:
        closing += 1
    return [*ids[: limit - closing], *ids[len(ids) - closing :]]


def groups(lengths: Sequence[int], *, most: int) -> list[list[int]]:
    """Return indices of rows that share a pass.

    At most ``most`` are together, shortest first, and the longest has at most twice the tokens of
    the shortest: padding costs as much as text.
    """
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        last = found[-1] if found else []
        if last and len(last) < most and lengths[index] <= _WIDEST * lengths[last[0]]:
            last.append(index)
        else:
            found.append([index])
    return found


def feed(
    rows: Sequence[Sequence[int]], inputs: Mapping[str, Any], *, size: int | None = None
) -> dict[str, NDArray[Any]]:
    """Return the inputs of one pass, ``[len(rows), size]`` each, padding masked out.

    Args:
        rows: token ids.
        inputs: types by name; of ``input_ids``, ``attention_mask`` and ``token_type_ids``.
        size: tokens of every row after padding; of the longest where ``None``.

    """
    width = max(map(len, rows)) if size is None else size
    ids = np.zeros((len(rows), width), np.int64)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row
        mask[at, : len(row)] = 1
    columns = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: columns[name].astype(kind, copy=False) for name, kind in inputs.items()}
