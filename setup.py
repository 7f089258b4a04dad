"""Builds the compiled kernels where that can be done, and fetches the console's chart library where it can be
reached; elsewhere the package installs without them."""

import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

SOURCES = "server/engine/kernels/src"
INSTRUCTIONS = [
    *(f"-mamx-{name}" for name in ("tile", "bf16", "int8")),
    *(f"-mavx512{name}" for name in ("f", "bw", "vl", "dq", "vnni", "bf16")),
]


class BuildWithVendored(build_py):
    """Package data has to be there before it is collected."""

    def run(self) -> None:
        runpy.run_path("server/console/fetch.py", run_name="__main__")
        super().run()


setup(
    cmdclass={"build_py": BuildWithVendored},
    ext_modules=[
        # A plain C library, loaded with ctypes; no Python or torch headers.
        Extension(
            "server.engine.kernels._avx512",
            sources=[f"{SOURCES}/kernels.cpp"],
            depends=[str(header) for header in sorted(Path(SOURCES).glob("*.h"))],
            language="c++",
            extra_compile_args=["-std=c++20", "-O3", "-g0", "-fopenmp", "-fvisibility=hidden", *INSTRUCTIONS],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
    ],
)
