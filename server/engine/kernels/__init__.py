"""Which kernels compute: the compiled ones where machine, dtype and model allow it, else torch.

The choice is made once, when an engine is loaded. The compiled kernels are an accelerator: everything they do
torch does too, and every reason for leaving them out is told once in the log and for as long as asked.
"""

import logging
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from server.engine.config import EngineConfig
from server.engine.errors import KernelsUnavailableError
from server.engine.kernels.library import (
    MAX_HEAD_DIM,
    MAX_QUANTIZED_INPUTS,
    KernelLibrary,
    load_library,
)
from server.engine.model import ModelGeometry

MATRIX, VECTOR = "amx-bf16", "avx512-bf16"  # what the compiled ones multiply with

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KernelChoice:
    """What an engine computes with. `library` is None where torch does.

    Attributes:
        description: "amx-bf16", "avx512-bf16" or "torch: <why>".
    """

    library: KernelLibrary | None
    description: str

    @property
    def uses_matrix_unit(self) -> bool:
        return self.description == MATRIX


def describe() -> str:
    """What this machine can compute with: "amx-bf16", "avx512-bf16" or "torch: <why>"."""
    try:
        return _best(load_library())
    except KernelsUnavailableError as error:
        return f"torch: {error}"


def choose_kernels(config: EngineConfig, model_config: PretrainedConfig) -> KernelChoice:
    """The compiled kernels, unless something speaks against them."""
    try:
        _check(config, model_config)
        library = load_library()
        return KernelChoice(library, VECTOR if config.kernels == "avx512" else _best(library))
    except KernelsUnavailableError as error:
        logger.info("The compiled kernels are not used, torch computes: %s.", error)
        return KernelChoice(None, f"torch: {error}")


def _best(library: KernelLibrary) -> str:
    return MATRIX if library.matrix_unit() else VECTOR


def _check(config: EngineConfig, model_config: PretrainedConfig) -> None:
    head_dim = ModelGeometry.from_config(model_config).head_dim
    hidden, activation = model_config.hidden_size, model_config.hidden_act
    neurons = model_config.intermediate_size
    reasons = {
        "the setting kernels asks for torch": config.kernels == "torch",
        f"the device is {config.device}, and they are for the CPU": torch.device(config.device).type != "cpu",
        f"the dtype is {config.dtype}, and they are for bfloat16": config.dtype != "bfloat16",
        f"the activation is {activation}, and they know silu": activation != "silu",
        f"hidden_size is {hidden}, not a multiple of 16": hidden % 16 != 0,
        f"head_dim is {head_dim}, not a multiple of 16 up to {MAX_HEAD_DIM}": head_dim % 16 != 0
        or head_dim > MAX_HEAD_DIM,
        f"intermediate_size is {neurons:,}, and int8 goes up to {MAX_QUANTIZED_INPUTS:,}": neurons
        > MAX_QUANTIZED_INPUTS
        and config.quantization == "int8",
        f"block_size is {config.block_size}, an odd number": config.block_size % 2 != 0,
    }
    for reason, applies in reasons.items():
        if applies:
            raise KernelsUnavailableError(reason)
