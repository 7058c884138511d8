import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "native"
FLAGS = ["-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}"]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Return a function that builds a program of this folder with the C of one room."""

    def build(name, room, *flags, compiler="gcc"):
        if shutil.which(compiler) is None:
            pytest.skip(f"{compiler} is not here")
        sources = [Path(__file__).with_name(f"{name}.c"), *sorted((NATIVE / room).glob("*.c"))]
        program = tmp_path_factory.mktemp(name) / name
        command = [compiler, *FLAGS, *flags, *sources, "-o", program, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return program

    return build
