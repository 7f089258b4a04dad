"""The compiled kernels. Optional: where they cannot be built, the package installs without and torch computes."""

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
            extra_compile_args=["-std=c++17", "-O3", "-fopenmp", "-fvisibility=hidden", *INSTRUCTIONS],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
    ]
)
