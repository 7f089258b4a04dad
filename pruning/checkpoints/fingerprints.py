"""Digests that tell one network, or one tokenizer, from another.

They are compared, never inverted: equal digests mean "the same for our purposes", as each function says.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from pruning.chat_prompts import MEASUREMENT_VARIABLES
from pruning.checkpoints.tensors import TensorReader
from pruning.errors import ModelError

SHOWN_DIGITS = 16  # of a digest, to people

# What config.json says about the network's shape and arithmetic, under the names old and new checkpoints
# use. Read from the file as written: the defaults that transformers fills in differ between its versions.
SHAPING_FIELDS = (
    "attention_bias",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
)
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
SAMPLED_ROWS = 8
WHOLE_BELOW_ELEMENTS = 16_384


def model_fingerprint(config: dict[str, Any], reader: TensorReader) -> str:
    """Hexadecimal SHA-256 over a network's shape and samples of its weights.

    Of every tensor it takes name, dtype, shape and, above 16,384 elements, eight evenly spaced rows (the
    first and the last among them), so that a checkpoint of gigabytes takes a fraction of a second. Any
    training step, quantisation or merge changes rows everywhere and is seen. An edit of a few rows of a
    large matrix, such as one token's embedding, may be missed. How tensors are spread over shards makes
    no difference.

    Args:
        config: config.json as written.
    """
    digest = hashlib.sha256()
    shape = {field: config[field] for field in SHAPING_FIELDS if field in config}
    digest.update(json.dumps(shape, sort_keys=True).encode())
    for name in sorted(reader.names):
        digest.update(f"\n{name} {reader.dtype(name)} {reader.shape(name)}\n".encode())
        for start, stop in _sampled_blocks(reader.shape(name)):
            block = reader.rows(name, start, stop).contiguous()
            digest.update(block.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_fingerprint(path: Path) -> str:
    """Hexadecimal SHA-256 over the files in directory `path` that turn a chat into tokens, template included.

    And over what the template is told where something is measured, if it asks: answers depend on it.

    Raises:
        ModelError: there is no vocabulary among them.
    """
    check_vocabulary(path)
    digest, asked_for = hashlib.sha256(), dict[str, Any]()
    for file in (path / name for name in TOKENIZER_FILES if (path / name).is_file()):
        content = file.read_bytes()
        digest.update(f"\n{file.name} {len(content)}\n".encode())
        digest.update(content)
        asked_for |= {name: told for name, told in MEASUREMENT_VARIABLES.items() if name.encode() in content}
    if asked_for:
        digest.update(json.dumps(asked_for, sort_keys=True).encode())
    return digest.hexdigest()


def check_vocabulary(path: Path) -> None:
    """Raises ModelError unless directory `path` has a tokenizer: transformers would make up an empty one."""
    if not any((path / name).is_file() for name in VOCABULARY_FILES):
        raise ModelError(f"{path} has no tokenizer (none of {', '.join(VOCABULARY_FILES)}); add its files")


def _sampled_blocks(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    rows = shape[0]
    if rows <= SAMPLED_ROWS or torch.Size(shape).numel() <= WHOLE_BELOW_ELEMENTS:
        return [(0, rows)]
    starts = [step * (rows - 1) // (SAMPLED_ROWS - 1) for step in range(SAMPLED_ROWS)]
    return [(start, start + 1) for start in starts]
