"""Turns a GGUF file into a Hugging Face checkpoint, once, and keeps it in the cache.

transformers reads and dequantises the file. This adds the caching, and the checks that it lacks: what it
would leave out of the model without a word is either put back or refused.
"""

import hashlib
import logging
import shutil
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pruning.checkpoints.architectures import architecture_of, check_family
from pruning.errors import ModelError, UnsupportedModelError

if TYPE_CHECKING:
    from gguf import GGUFReader

logger = logging.getLogger(__name__)

SAMPLE_BYTES = 65_536
SAMPLES = 64
ROPE_FACTORS = "rope_freqs.weight"


def converted_gguf(file: Path, cache_dir: Path) -> Path:
    """The directory with `file` as a checkpoint; converted now unless it was before.

    Files of plain floats keep their precision. Quantised ones are unpacked to bfloat16, which is what they
    are served in by default, and a warning says so. The directory appears whole or not at all.

    Raises:
        UnsupportedModelError: an architecture or rotary embedding that is not supported.
        ModelError: the packages for GGUF are not installed, the file is damaged or only half understood, or
            there is no room for the checkpoint.
    """
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if not hasattr(transformers, "GgufConfig"):
        missing.append(f"a newer transformers than {transformers.__version__}")
    if missing:
        raise ModelError(f"reading {file} needs {' and '.join(missing)}: pip install 'secateur[gguf]'")
    target = cache_dir / "converted" / _digest(file)
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        partial.mkdir(parents=True)
        _convert(file, partial)
        _move(partial, target)
    except (OSError, SafetensorError) as error:  # of writing: what goes wrong in reading is a ModelError
        raise ModelError(
            f"cannot keep {file} as a checkpoint in {target.parent}: {error}; "
            f"make room, or name another directory in SECATEUR_CACHE_DIR"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _convert(file: Path, directory: Path) -> None:
    from gguf import GGUFReader  # of the extra `gguf`

    try:
        reader = GGUFReader(file)
        _check_header(reader)
        config = _config(file, reader)
        model, loading = cast("Any", AutoModelForCausalLM).from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=config,
            quantization_config=transformers.GgufConfig(dequantize=True),
            dtype=_dtype(reader),
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, struct.error) as error:
        raise ModelError(f"{file} cannot be read as a GGUF model ({error}); get the file again") from error
    factors = next((tensor.data for tensor in reader.tensors if tensor.name == ROPE_FACTORS), None)
    unused = len(reader.tensors) - (factors is not None) - sum(1 for _ in model.parameters())
    if unused or loading["missing_keys"]:
        raise ModelError(
            f"{file} does not fit the architecture {config.model_type}: {unused} of its tensors "
            f"have no place there, and it lacks {', '.join(sorted(loading['missing_keys'])) or 'none'}; "
            f"use the original checkpoint"
        )
    if factors is not None:
        _restore_llama3_rope(model.config, torch.tensor(factors))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _check_header(reader: "GGUFReader") -> None:
    """Raises UnsupportedModelError for what transformers would read wrongly."""
    architecture = reader.fields["general.architecture"].contents()
    check_family(architecture)
    scaling = reader.fields.get(f"{architecture}.rope.scaling.type")
    if scaling is not None and scaling.contents() != "none":
        raise UnsupportedModelError(
            f"rotary embeddings with scaling {scaling.contents()!r} are not supported in GGUF files; "
            f"use the original checkpoint"
        )


def _config(file: Path, reader: "GGUFReader") -> PretrainedConfig:
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    assert isinstance(config, PretrainedConfig)
    architecture = reader.fields["general.architecture"].contents()
    head_dim = reader.fields.get(f"{architecture}.attention.key_length")
    if head_dim is not None:  # transformers takes Qwen3's default, 128, whatever the file says
        config.head_dim = head_dim.contents()
    architecture_of(config)
    return config


def _dtype(reader: "GGUFReader") -> torch.dtype:
    types = {tensor.tensor_type.name for tensor in reader.tensors}
    if types == {"F32"}:
        return torch.float32
    if types <= {"F32", "F16"}:
        return torch.float16
    if not types <= {"F32", "BF16"}:
        logger.warning("unpacking %s to bfloat16, which rounds them", ", ".join(sorted(types - {"F32"})))
    return torch.bfloat16


def _restore_llama3_rope(config: PretrainedConfig, factors: Tensor) -> None:
    """Names in `config` the scaling that a file states as one divisor a frequency, `factors` [head_dim / 2].

    llama.cpp writes Llama 3's rope scaling so. The parameters are those of all published Llama 3 models but
    the largest divisor, and are taken only if they give these divisors.
    """
    plain = config.rope_parameters["rope_theta"] ** (-torch.arange(len(factors)) / len(factors))
    config.rope_parameters = {
        **config.rope_parameters,
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    if not torch.allclose(plain / scaled, factors, rtol=1e-3):
        raise UnsupportedModelError(
            f"{ROPE_FACTORS} is not the scaling of a Llama 3 model, the only one that is supported in GGUF "
            f"files; use the original checkpoint"
        )


def _move(partial: Path, target: Path) -> None:
    try:
        partial.replace(target)
    except OSError:
        if not target.is_dir():  # it is one if another process was faster: then its copy is as good
            raise


def _digest(file: Path) -> str:
    """Names the file's content and the converter: size, evenly spaced samples, transformers' version."""
    size = file.stat().st_size
    digest = hashlib.sha256(f"{transformers.__version__} {size}\n".encode())
    with file.open("rb") as content:
        for sample in range(SAMPLES):
            content.seek(sample * max(size - SAMPLE_BYTES, 0) // (SAMPLES - 1))
            digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()[:32]
