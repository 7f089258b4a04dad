"""Finds a model (a directory, a GGUF file or a hub id) and gives access to its parts.

Knows where files are and what they say; never builds a network, never runs code or unpickles anything
that comes with a model.
"""

import json
import math
import os
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME

from pruning.checkpoints.architectures import Architecture, architecture_of, check_family, eos_token_ids
from pruning.checkpoints.fingerprints import check_vocabulary, model_fingerprint, tokenizer_fingerprint
from pruning.checkpoints.tensors import TensorReader, open_tensors, shard_files
from pruning.errors import ModelError
from pruning.garbage import no_garbage_collection

__all__ = ["Checkpoint", "TensorReader", "default_cache_dir", "open_checkpoint"]

CONFIG_FILE = "config.json"
HUB_FILES = [
    *("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt"),
    *(f"{name}{suffix}" for name in ("LICENSE", "NOTICE") for suffix in ("", ".md", ".txt")),
]
# Second copies of the weights in other layouts: Mistral's own format, and subdirectories.
HUB_FILES_LEFT = ["consolidated*", "*/*"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """A readable checkpoint of a supported architecture. Made by `open_checkpoint`.

    Attributes:
        path: directory that holds config.json, safetensors and tokenizer.
        name: of the directory, GGUF file or hub repository.
        config: transformers' configuration.
        architecture: the part of it that pruning works on.
    """

    path: Path
    name: str
    config: PretrainedConfig
    architecture: Architecture

    @cached_property
    def fingerprint(self) -> str:
        """Names the network: see `model_fingerprint` for what it would miss."""
        with self.open_tensors() as reader:
            return model_fingerprint(_read_config(self.path), reader)

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Names the tokenizer and its chat template."""
        return tokenizer_fingerprint(self.path)

    @cached_property
    def num_parameters(self) -> int:
        """Numbers in its files; what is tied and lies there twice counts twice."""
        with self.open_tensors() as tensors:
            return sum(math.prod(tensors.shape(name)) for name in tensors.names)

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end an answer, by its generation settings if it has any, else its own."""
        if (self.path / GENERATION_CONFIG_NAME).exists():
            return eos_token_ids(GenerationConfig.from_pretrained(self.path))
        return eos_token_ids(self.config)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer. Raises ModelError where there is none or it cannot be read."""
        check_vocabulary(self.path)
        try:
            with no_garbage_collection():  # thrice as fast with 150,000 tokens
                tokenizer = AutoTokenizer.from_pretrained(
                    self.path, trust_remote_code=False, local_files_only=True
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"cannot load the tokenizer in {self.path}: {error}") from error
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        return tokenizer

    def open_tensors(self) -> AbstractContextManager[TensorReader]:
        """The weights, to be used in a `with` statement."""
        return open_tensors(self.path)


def open_checkpoint(model: str, cache_dir: Path) -> Checkpoint:
    """Opens a Hugging Face directory, a .gguf file, or a hub id ``owner/name``.

    A GGUF file is dequantised once into a checkpoint under `cache_dir`. The hub is asked only for files
    that are data (safetensors, JSON, templates), and not at all where HF_HUB_OFFLINE is set.

    Raises:
        UnsupportedModelError: the architecture, or one of its settings, is not supported.
        ModelError: it does not exist, cannot be reached, is incomplete or damaged.
    """
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{path} is a file, but not .gguf; give the directory that holds config.json")
        # Here, because it imports transformers' networks: a second and 80 MB that serving has no use for.
        from pruning.checkpoints.gguf_conversion import converted_gguf

        return _checkpoint(converted_gguf(path, cache_dir), path.stem)
    if path.is_dir():
        return _checkpoint(path, path.resolve().name)
    if HUB_ID.fullmatch(model) and path.suffix.lower() != ".gguf":
        return _checkpoint(_download(model), model.rpartition("/")[2])
    raise ModelError(
        f"there is no file or directory {model}; give a checkpoint directory, a .gguf file, "
        f"or a hub id of the form owner/name"
    )


def default_cache_dir() -> Path:
    """$SECATEUR_CACHE_DIR, or ~/.cache/secateur. Holds profiles and converted GGUF files."""
    return Path(os.environ.get("SECATEUR_CACHE_DIR") or "~/.cache/secateur").expanduser()


def _checkpoint(path: Path, name: str) -> Checkpoint:
    check_family(str(_read_config(path).get("model_type")))
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise ModelError(f"{path / CONFIG_FILE} is not a valid configuration: {error}") from error
    assert isinstance(config, PretrainedConfig)
    architecture = architecture_of(config)
    shard_files(path)
    return Checkpoint(path=path, name=name, config=config, architecture=architecture)


def _read_config(path: Path) -> dict[str, Any]:
    file = path / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{path} has no {CONFIG_FILE}; give a checkpoint directory, or a .gguf file"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}); get the file again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} holds {type(config).__name__}, not an object; get the file again")
    return config


def _download(repo_id: str) -> Path:
    try:
        return Path(snapshot_download(repo_id, allow_patterns=HUB_FILES, ignore_patterns=HUB_FILES_LEFT))
    except (OSError, HFValidationError) as error:  # OSError: every error of the hub and of the network
        raise ModelError(
            f"{repo_id} is no local path and cannot be had from the Hugging Face hub ({error}); check the "
            f"spelling, the network and HF_HUB_OFFLINE, or give the path of a downloaded checkpoint"
        ) from error
