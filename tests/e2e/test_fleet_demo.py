"""`edge-hub demo`: what it tells at the end is what the hub's database says."""

import subprocess
import sys


def test_the_demo_halts_its_second_wave_and_comes_back():
    run = subprocess.run(
        [sys.executable, "-c", "from edge_sync.cli.main import main; main()", "demo"],
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert not [line for line in lines if "✗" in line]
    refusal = next(line for line in lines if "till-3 refuses policy 2" in line)
    assert "memory budget is 30.0 MB" in refusal
    assert [line for line in lines if "wave 2 of 2 is halted" in line]
    assert len([line for line in lines if "runs policy 3" in line]) == 3
