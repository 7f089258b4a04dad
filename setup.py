"""Builds the compiled kernels where that can be done; elsewhere the package installs without them."""

from setuptools import Extension, setup

SOURCES = "server/engine/kernels/src"
INSTRUCTIONS = [f"-mavx512{name}" for name in ("f", "bw", "vl", "dq", "bf16")]

setup(
    ext_modules=[
        # A plain C library, loaded with ctypes; no Python or torch headers.
        Extension(
            "server.engine.kernels._avx512",
            sources=[f"{SOURCES}/kernels.cpp"],
            depends=[
                f"{SOURCES}/{name}.h"
                for name in ("attention", "decoder", "linear", "model", "nested_mlp", "rows", "simd", "tiles")
            ],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-g0", "-fopenmp", "-fvisibility=hidden", *INSTRUCTIONS],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
    ]
)
