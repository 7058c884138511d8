"""Token rows are grouped and padded."""

from __future__ import annotations

import numpy as np

from edge.backends.onnx.rows import feed, groups


def test_rows_are_grouped_and_padded():
    assert groups([5, 9, 4, 30, 8], most=3) == [[2, 0, 4], [1], [3]]
    assert groups([3, 3], most=1) == [[0], [1]]
    types = {"input_ids": np.int32, "attention_mask": np.int64}
    found = feed([[7, 8], [9]], types, size=4)
    assert found["input_ids"].tolist() == [[7, 8, 0, 0], [9, 0, 0, 0]]
    assert found["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    assert {name: array.dtype.type for name, array in found.items()} == types
