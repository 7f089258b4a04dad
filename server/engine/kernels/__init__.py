"""Which kernels compute: our own where machine, dtype and model allow it, else torch.

On a CPU they are compiled C++ (src/), on a CUDA device Triton's and graphs of them (cuda/). The choice is
made once, when an engine is loaded. They are an accelerator: everything they do torch does too, and every
reason for leaving them out is told once in the log and for as long as asked.
"""

import logging
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from server.engine.config import EngineConfig
from server.engine.errors import KernelsUnavailableError
from server.engine.kernels.cuda import check_triton
from server.engine.kernels.library import (
    MAX_HEAD_DIM,
    MAX_QUANTIZED_INPUTS,
    KernelLibrary,
    load_library,
)
from server.engine.model import ModelGeometry

MATRIX, VECTOR = "amx-bf16", "avx512-bf16"  # what the compiled ones multiply with
GRAPHS = "cuda-graphs"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KernelChoice:
    """What an engine computes with. `library` is what the compiled kernels are in, where they compute.

    Attributes:
        description: "amx-bf16", "avx512-bf16", "cuda-graphs" or "torch: <why>".
    """

    library: KernelLibrary | None
    description: str

    @property
    def uses_matrix_unit(self) -> bool:
        return self.description == MATRIX

    @property
    def uses_graphs(self) -> bool:
        return self.description == GRAPHS


def without_reason(description: str) -> str:
    """What computes, as above, but of torch not why it does."""
    return description.partition(":")[0]


def describe() -> str:
    """What this CPU can compute with: "amx-bf16", "avx512-bf16" or "torch: <why>"."""
    try:
        return _best(load_library())
    except KernelsUnavailableError as error:
        return f"torch: {error}"


def choose_kernels(config: EngineConfig, model_config: PretrainedConfig) -> KernelChoice:
    """Our own kernels, unless something speaks against them."""
    try:
        _check(config, model_config)
        if torch.device(config.device).type == "cuda":
            check_triton(config.device)
            return KernelChoice(None, GRAPHS)
        library = load_library()
        return KernelChoice(library, VECTOR if config.kernels == "avx512" else _best(library))
    except KernelsUnavailableError as error:
        logger.info("Kernels of our own are not used, torch computes: %s.", error)
        return KernelChoice(None, f"torch: {error}")


def _best(library: KernelLibrary) -> str:
    return MATRIX if library.matrix_unit() else VECTOR


def _check(config: EngineConfig, model_config: PretrainedConfig) -> None:
    activation = model_config.hidden_act
    reasons = {
        "the setting kernels asks for torch": config.kernels == "torch",
        f"the activation is {activation}, and they know silu": activation != "silu",
    }
    if torch.device(config.device).type == "cpu":
        reasons |= _reasons_of_cpu(config, model_config)
    for reason, applies in reasons.items():
        if applies:
            raise KernelsUnavailableError(reason)


def _reasons_of_cpu(config: EngineConfig, model_config: PretrainedConfig) -> dict[str, bool]:
    head_dim = ModelGeometry.from_config(model_config).head_dim
    hidden, neurons = model_config.hidden_size, model_config.intermediate_size
    return {
        f"the dtype is {config.dtype}, and they are for bfloat16": config.dtype != "bfloat16",
        f"hidden_size is {hidden}, not a multiple of 16": hidden % 16 != 0,
        f"head_dim is {head_dim}, not a multiple of 16 up to {MAX_HEAD_DIM}": head_dim % 16 != 0
        or head_dim > MAX_HEAD_DIM,
        f"intermediate_size is {neurons:,}, and int8 goes up to {MAX_QUANTIZED_INPUTS:,}": neurons
        > MAX_QUANTIZED_INPUTS
        and config.quantization == "int8",
        f"block_size is {config.block_size}, an odd number": config.block_size % 2 != 0,
    }
