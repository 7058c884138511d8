"""Builds the compiled modules of ``edge._native`` and puts ``models/`` into the wheel."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
DEBUG = os.environ.get("EDGE_CY_DEBUG") == "1"
PASSES = ("avx512", "avx2", "neon", "portable")
C_SOURCES = {
    "sampling": [
        f"native/row/{name}.c" for name in (*PASSES, "candidates", "cuts", "changes", "view")
    ],
    "engine": ["native/decode/slot.c", "native/decode/loop.c"],
}
MODELS_LEFT_OUT = shutil.ignore_patterns("recipes", "__pycache__")


class BuildPy(build_py):
    """Copies the shipped models and packs beside the runtime, except in an editable install."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "edge" / "models"
            shutil.copytree(HERE / "models", target, ignore=MODELS_LEFT_OUT, dirs_exist_ok=True)


def compile_args() -> list[str]:
    if sys.platform == "win32":
        return ["/Od", "/Zi"] if DEBUG else ["/O2", "/fp:precise"]
    # Fused multiply-add would make a row's sums differ between instruction sets.
    always = ["-ffp-contract=off", "-fvisibility=hidden"]
    if DEBUG:
        return [*always, "-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    return [*always, "-O3"]


def extensions() -> list[Extension]:
    link = ["-fsanitize=address,undefined"] if DEBUG and sys.platform != "win32" else []
    return [
        Extension(
            f"edge._native.{source.stem}",
            [str(source.relative_to(HERE)), *C_SOURCES.get(source.stem, [])],
            depends=[str(header.relative_to(HERE)) for header in (HERE / "native").rglob("*.h")],
            include_dirs=["native", np.get_include()],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
            extra_compile_args=compile_args(),
            extra_link_args=link,
        )
        for source in sorted((HERE / "native").glob("*.pyx"))
    ]


setup(
    cmdclass={"build_py": BuildPy},
    ext_modules=cythonize(
        extensions(),
        include_path=[".", "native"],
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "initializedcheck": DEBUG,
            "cdivision": True,
            "embedsignature": True,
            "auto_pickle": False,
            "autotestdict": False,
        },
    ),
)
