"""The C of a row built outside of Python: the same from every set, NEON in an emulator too."""

import shutil
import subprocess

import pytest

from edge.sampling import instruction_sets

ARM, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"


def printed(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.strip()


@pytest.fixture(scope="module")
def native(compiled):
    return compiled("row_check", "row")


@pytest.mark.parametrize("name", instruction_sets())
def test_every_set_of_this_machine_prints_the_same(native, name):
    text, used = printed(native, name)
    assert used == name
    assert text == printed(native, "portable")[0]


def test_neon_prints_what_plain_c_prints(native, compiled):
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"{EMULATOR} is not here")
    program = compiled("row_check", "row", "-static", compiler=ARM)
    text, used = printed(EMULATOR, program)
    assert used == "neon"
    assert text == printed(native, "portable")[0]
    assert text == printed(EMULATOR, program, "portable")[0]


def test_a_row_is_clean_under_the_sanitizers(compiled):
    program = compiled("row_check", "row", "-g", "-fsanitize=address,undefined")
    for name in instruction_sets():
        assert printed(program, name)[1] == name
