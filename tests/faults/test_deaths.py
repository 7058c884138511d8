"""Real processes that die at every step of a script: money and rows are exact, and the script ends
where it would have. A step is a statement of SQL, or, on a disk that loses what was not synced,
a write.

Here every so many-th step is tried; ``EDGE_DEATHS=all`` tries all of them, for minutes. The script
and what it checks are in ``tests/support/kill_*.py``.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
ALL = os.environ.get("EDGE_DEATHS") == "all"

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL"),
    pytest.mark.timeout(3_600 if ALL else 240),
]


def die(script, name, *, way, stride, folder, **environment):
    """Run a scenario in a process of its own, which forks; return what it told."""
    paths = os.pathsep.join(map(str, (SUPPORT, ROOT / "sync", ROOT)))
    command = [sys.executable, SUPPORT / script, name, way, 1 if ALL else stride, folder]
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    print(told)  # noqa: T201
    return told


@pytest.fixture(scope="session")
def losing(tmp_path_factory):
    """Return the environment of a process whose disk loses what was not synced."""
    compiler = shutil.which("cc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("lost") / "lostwrites.so"
    options = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(
        [compiler, *options, "-o", library, SUPPORT / "lostwrites.c", "-ldl"], check=True
    )
    return {"LD_PRELOAD": str(library)}


# scenario -> (script, stride, steps and deaths at least)
STATEMENTS = {
    "gateway": ("kill_gateway.py", 4, 180, 69),
    "device": ("kill_device.py", 15, 500, 67),
    "hub": ("kill_hub.py", 60, 1_100, 42),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_death_before_any_statement_changes_no_end(memory_path, name):
    script, stride, steps, deaths = STATEMENTS[name]
    told = die(script, name, way="statements", stride=stride, folder=memory_path)
    assert told["wrong"] == []
    assert told["steps"] >= steps
    assert told["deaths"] >= deaths


def test_a_death_before_any_statement_of_postgresql_changes_no_end(memory_path, postgres):
    told = die(
        "kill_hub.py", "hub-postgresql", way="statements", stride=60, folder=memory_path,
        POSTGRES=postgres(),
    )  # fmt: skip
    assert told["wrong"] == []
    assert told["steps"] >= 600
    assert told["deaths"] >= 36


# scenario -> (stride, steps and deaths at least)
WRITES = {
    "gateway": (31, 450, 38),
    "device": (101, 1_100, 44),
    "outside": (3, 60, 32),
}


@pytest.mark.parametrize("way", ["disk", "torn"])
@pytest.mark.parametrize("name", WRITES)
def test_a_power_cut_before_any_write_loses_nothing_that_was_told(memory_path, losing, name, way):
    stride, steps, deaths = WRITES[name]
    told = die("kill_files.py", name, way=way, stride=stride, folder=memory_path, **losing)
    assert told["wrong"] == []
    assert told["steps"] >= steps
    assert told["deaths"] >= deaths


@pytest.mark.parametrize(
    ("name", "way", "stride"),
    [("hasty", "disk", 1), ("hasty", "torn", 1), ("unsynced", "disk", 90),
     ("unlisted", "disk", 300)],
)  # fmt: skip
def test_a_careless_write_is_found_by_a_power_cut(memory_path, losing, name, way, stride):
    told = die("kill_files.py", name, way=way, stride=stride, folder=memory_path, **losing)
    assert any("found " in wrong for wrong in told["wrong"])


def test_an_answer_before_the_commit_is_found_by_a_death(memory_path):
    told = die("kill_files.py", "rash", way="statements", stride=1, folder=memory_path)
    assert any("found " in wrong for wrong in told["wrong"])
