"""Turns a GGUF file into a Hugging Face checkpoint, once, and keeps it in the cache.

transformers reads and dequantises the file; this is only the caching around it, and clear errors.
"""

import hashlib
import os
import shutil
import struct
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from pruning.architectures import architecture_of
from pruning.errors import ModelError

SAMPLE_BYTES = 65_536
SAMPLES = 64


def converted_gguf(file: Path, cache_dir: Path) -> Path:
    """The directory with `file` as a checkpoint; converted now unless it was before.

    Weights are kept in float32 where the file is quantised, since bfloat16 would round them, and else in
    the file's own dtype. The directory appears whole or not at all.

    Raises:
        UnsupportedModelError: another architecture than the supported ones.
        ModelError: the packages for GGUF are not installed, or the file cannot be read.
    """
    target = cache_dir / "converted" / _digest(file)
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.{uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        _convert(file, partial)
        _move(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _convert(file: Path, directory: Path) -> None:
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if missing:
        raise ModelError(f"reading {file} needs {' and '.join(missing)}: pip install 'secateur[gguf]'")
    try:
        architecture_of(AutoConfig.from_pretrained(file.parent, gguf_file=file.name))
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype="auto",
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelError(f"{file} cannot be read as a GGUF model: {error}") from error
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


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
            content.seek(sample * max(size - SAMPLE_BYTES, 0) // (SAMPLES - 1), os.SEEK_SET)
            digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()[:32]
