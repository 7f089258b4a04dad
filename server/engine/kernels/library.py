"""Finds and loads the compiled kernels, and declares them. The C side is src/kernels.cpp and src/model.h."""

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Mapping
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch

from server.engine.errors import KernelsUnavailableError

MAX_HEAD_DIM = 256  # kMaxHeadDim
MAX_QUANTIZED_INPUTS = 2**31 // (255 * 127)  # sums of 8-bit products are int32

_MODULE = "server.engine.kernels._avx512"
_OUTDATED = "they were built from other sources: install again"


class ModelStruct(ctypes.Structure):
    """`Model` of src/model.h; tables and shapes are explained there."""

    _fields_ = (
        *((name, c_int32) for name in ("hidden", "heads", "kv_heads", "head_dim", "block_size", "matrix")),
        ("eps", c_float),
        ("cos", c_void_p),
        ("sin", c_void_p),
    )


class MatrixStruct(ctypes.Structure):
    """`Matrix` of src/model.h."""

    _fields_ = (("panels", c_void_p), ("scales", c_void_p))


class LayerStruct(ctypes.Structure):
    """`Layer` of src/model.h."""

    _fields_ = (
        ("input_norm", c_void_p),
        ("qkv", MatrixStruct),
        *((name, c_void_p) for name in ("qkv_bias", "q_norm", "k_norm")),
        ("output", MatrixStruct),
        *((name, c_void_p) for name in ("output_bias", "mlp_norm")),
        *((name, MatrixStruct) for name in ("gate_up", "down")),
        *((name, c_void_p) for name in ("keys", "values")),
        ("neurons", c_int32),
        ("window", c_int32),
    )


class LowRankStruct(ctypes.Structure):
    """`LowRank` of src/model.h."""

    _fields_ = (("a", c_void_p), ("b", c_void_p), ("pairs", c_int64))


class LayerDeltaStruct(ctypes.Structure):
    """`LayerDelta` of src/model.h."""

    _fields_ = tuple((name, LowRankStruct) for name in ("qkv", "output", "gate_up", "down"))


class BatchStruct(ctypes.Structure):
    """`Batch` of src/model.h."""

    _tensors: Mapping[str, torch.Tensor]

    _fields_ = (
        ("tokens", c_int32),
        ("requests", c_int32),
        ("groups", c_int32),
        ("rank_pairs", c_int32),
        *(
            (name, c_void_p)
            for name in (
                *("residual", "positions", "slots", "starts", "block_tables", "table_starts", "widths"),
                *("group_ends", "group_deltas"),
            )
        ),
    )

    @classmethod
    def of(
        cls, num_tokens: int, num_requests: int, *, rank_pairs: int = 0, **tensors: torch.Tensor
    ) -> "BatchStruct":
        """Of contiguous tensors by field, which live as long as the structure."""
        groups = len(tensors["group_ends"]) if "group_ends" in tensors else 0
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        struct = cls(num_tokens, num_requests, groups, rank_pairs, **pointers)
        struct._tensors = tensors
        return struct


HeadFunction = Callable[..., None]  # both take the same


class KernelLibrary:
    """The functions of src/kernels.cpp; ctypes checks the types of their arguments. Pointers are data_ptr()s.

    Each takes the number of threads last: torch's, so that both use one pool.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        model, layer, batch = POINTER(ModelStruct), POINTER(LayerStruct), POINTER(BatchStruct)
        matrix = POINTER(MatrixStruct)

        def function(name: str, *arguments: type, returns: type | None = None) -> "ctypes._NamedFuncPointer":
            found = library[f"secateur_{name}"]
            found.argtypes, found.restype = arguments, returns
            return found

        self.supported = function("supported", returns=c_int)
        self.matrix_unit = function("matrix_unit", returns=c_int)
        self.struct_bytes = function("struct_bytes", c_int, returns=c_int64)
        self.pack = function(
            "pack",
            *(c_void_p, c_int, *[c_int64] * 4, c_int, c_int, c_int64, c_void_p, c_int),
        )
        self.unpack_rows = function(
            "unpack_rows", matrix, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_int
        )
        self.workspace_bytes = function("workspace_bytes", model, *[c_int] * 4, returns=c_int64)
        self.attention_block = function("attention_block", model, layer, batch, c_void_p, c_int)
        self.mlp_block = function("mlp_block", model, layer, batch, c_void_p, c_int)
        self.forward = function("forward", model, layer, c_int, batch, batch, *[c_void_p] * 2, c_int)
        head = (model, c_void_p, c_int, c_void_p, matrix, c_int, c_void_p, c_void_p, c_int)
        self.head: HeadFunction = function("head", *head)
        self.likeliest: HeadFunction = function("likeliest", *head)


@cache
def load_library() -> KernelLibrary:
    """The kernels, once per process.

    Raises:
        KernelsUnavailableError: they were not built, or from other sources, this CPU lacks the instructions,
            or they bring a second OpenMP pool beside torch's, which costs more than they gain.
    """
    if sys.platform != "linux":
        raise KernelsUnavailableError(f"they are made for Linux, and this is {sys.platform}")
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or spec.origin is None:
        raise KernelsUnavailableError("they were not built: no C++ compiler at installation, or another CPU")
    try:
        library = KernelLibrary(Path(spec.origin))
    except OSError as error:
        raise KernelsUnavailableError(f"they cannot be loaded ({error})") from error
    except AttributeError as error:
        raise KernelsUnavailableError(f"{_OUTDATED} ({error})") from error
    structs = (ModelStruct, LayerStruct, LayerDeltaStruct, BatchStruct)
    if any(library.struct_bytes(i) != ctypes.sizeof(struct) for i, struct in enumerate(structs)):
        raise KernelsUnavailableError(_OUTDATED)
    if not library.supported():
        raise KernelsUnavailableError("this CPU has no AVX512-BF16 and AVX512-VNNI instructions")
    pools = _openmp_pools()
    if len(pools) > 1:
        raise KernelsUnavailableError(f"the process would have {len(pools)} OpenMP pools: {', '.join(pools)}")
    return library


def num_threads() -> int:
    """Threads of one operation: as many as torch's operations take."""
    return torch.get_num_threads()


def _openmp_pools() -> list[str]:
    """Files of the OpenMP libraries in this process."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    files = {line.split(maxsplit=5)[-1] for line in maps if "omp" in line.rpartition("/")[2]}
    return sorted(file for file in files if Path(file).name.startswith(("libgomp", "libiomp", "libomp")))
