"""What ran where is the session's own record."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edge.backends.base import Placement
from edge.backends.onnx.providers import Provider
from edge.backends.onnx.session import _placement
from edge.errors import DeviceFallback

QNN = Provider("qnn", plugin=True, options={})


class Record:
    """A session that only keeps record of its nodes."""

    def __init__(self, **nodes):
        self._nodes = nodes

    def get_provider_graph_assignment_info(self):
        names = {"npu": "QNNExecutionProvider", "cpu": "CPUExecutionProvider"}
        return [
            SimpleNamespace(
                ep_name=names[where],
                get_nodes=lambda ops=ops: [SimpleNamespace(op_type=o) for o in ops],
            )
            for where, ops in self._nodes.items()
        ]


@pytest.mark.parametrize(
    ("session", "expected", "fallback"),
    [
        (Record(npu=["MatMul"] * 4), Placement("qnn", "qnn"), False),
        (
            Record(npu=["MatMul"] * 3, cpu=["Gather"]),
            Placement("qnn", "qnn", 0.75, "1 of 4 nodes run on the CPU (Gather)"),
            True,
        ),
        (
            Record(cpu=["Cast", "Gather", "Cast"]),
            Placement(
                "qnn", "cpu", 1.0, "QNNExecutionProvider took none of 3 nodes (Cast, Gather)"
            ),
            True,
        ),
        (
            object(),
            Placement("qnn", "qnn", None, "this version of onnxruntime keeps no record of nodes"),
            False,
        ),
    ],
)
def test_the_share_is_the_sessions_own_record(session, expected, fallback):
    found = _placement(session, QNN)
    assert found == expected
    assert found.fallback is fallback
    if fallback:
        with pytest.raises(DeviceFallback, match="model cannot run on 'qnn'"):
            found.require("model")
    else:
        found.require("model")
