"""What ``import edge`` offers, and what it does not do."""

import subprocess
import sys

import pytest

import edge

HEAVY = ("numpy", "pydantic", "httpx", "sqlite_utils", "onnxruntime", "llama_cpp", "yaml", "rich")


def test_importing_brings_no_heavy_library_and_starts_no_thread():
    code = f"""
import sys, threading
import edge
print([name for name in {HEAVY} if name in sys.modules], threading.active_count())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] 1"


def test_the_runtime_brings_no_http_client():
    code = "import sys, edge; edge.open; print('httpx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_public_name_is_there():
    assert all(getattr(edge, name) is not None for name in edge.__all__)
    assert set(edge.__all__) <= set(dir(edge))
    assert edge.Runtime is edge.Runtime
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = edge.no_such_name
