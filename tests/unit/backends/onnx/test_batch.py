"""Callers that come while a pass runs share the next one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edge.backends.onnx.batch import Gatherer
from edge.errors import GenerationError


def test_callers_that_come_meanwhile_share_a_pass():
    started, go, passes = threading.Event(), threading.Event(), []

    def work(rows):
        passes.append(len(rows))
        if len(passes) == 1:
            started.set()
            assert go.wait(10)
        return np.array([[row[0]] for row in rows], np.float32)

    gatherer = Gatherer(work, most=4)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(gatherer.run, [[0]])]
        assert started.wait(10)
        calls += [pool.submit(gatherer.run, [[at], [at + 10]]) for at in range(1, 6)]
        while len(gatherer._waiting) < 5:
            pass
        go.set()
        found = [call.result(10).ravel().tolist() for call in calls]
    assert found == [[0], *([at, at + 10] for at in range(1, 6))]
    assert passes == [1, 4, 4, 2]


def test_one_callers_bad_rows_do_not_fail_the_others():
    started, go = threading.Event(), threading.Event()

    def work(rows):
        if rows[0][0] == 0:
            started.set()
            assert go.wait(10)
        if any(row[0] == 13 for row in rows):
            raise GenerationError("thirteen")
        return np.array(rows, np.float32)

    gatherer = Gatherer(work, most=8)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(gatherer.run, [[0]])
        assert started.wait(10)
        good, bad = pool.submit(gatherer.run, [[1]]), pool.submit(gatherer.run, [[13]])
        while len(gatherer._waiting) < 2:
            pass
        go.set()
        assert [call.result(10).tolist() for call in (first, good)] == [[[0.0]], [[1.0]]]
        with pytest.raises(GenerationError, match="thirteen"):
            bad.result(10)
    with pytest.raises(GenerationError, match="thirteen"):
        gatherer.run([[13]])
    assert gatherer.run([[7]]).tolist() == [[7.0]]


def test_an_interrupt_is_the_leaders_alone():
    started, go, passes = threading.Event(), threading.Event(), []

    def work(rows):
        passes.append(len(rows))
        if len(passes) == 1:
            started.set()
            assert go.wait(10)
        if len(passes) == 2:
            raise KeyboardInterrupt
        return np.array(rows, np.float32)

    gatherer = Gatherer(work, most=8)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(gatherer.run, [[0]])]
        assert started.wait(10)
        calls += [pool.submit(gatherer.run, [[at]]) for at in (1, 2)]
        while len(gatherer._waiting) < 2:
            pass
        go.set()
        errors = [type(call.exception(10)) for call in calls]
    assert errors.count(KeyboardInterrupt) == 1
    assert passes == [1, 2, 1]
