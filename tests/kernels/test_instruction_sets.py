"""The passes built outside of Python: the same bits from every set, NEON in an emulator too."""

import shutil
import subprocess
from pathlib import Path

import pytest

from edge.sampling import instruction_sets

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [Path(__file__).with_name("row_check.c"), *sorted((ROOT / "native" / "row").glob("*.c"))]
FLAGS = ["-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'native' / 'row'}"]
ARM, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"


def needed(name):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here")
    return found


def build(folder, compiler, *flags):
    program = folder / "row_check"
    command = [needed(compiler), *FLAGS, *flags, *SOURCES, "-o", program, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def printed(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.strip()


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return build(tmp_path_factory.mktemp("native"), "gcc")


@pytest.mark.parametrize("name", instruction_sets())
def test_every_set_of_this_machine_prints_the_same(native, name):
    text, used = printed(native, name)
    assert used == name
    assert text == printed(native, "portable")[0]


def test_neon_prints_what_plain_c_prints(native, tmp_path):
    needed(EMULATOR)
    program = build(tmp_path, ARM, "-static")
    text, used = printed(EMULATOR, program)
    assert used == "neon"
    assert text == printed(native, "portable")[0]
    assert text == printed(EMULATOR, program, "portable")[0]


def test_the_passes_are_clean_under_the_sanitizers(tmp_path):
    program = build(tmp_path, "gcc", "-g", "-fsanitize=address,undefined")
    for name in instruction_sets():
        assert printed(program, name)[1] == name
