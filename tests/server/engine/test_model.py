"""The parts of the decoder that transformers has too, against transformers."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from server.engine.model import rotary_tables
from tests.server.engine.support import GREEDY, generate, logit_gap, prompt
from tests.server.engine.test_laws import TIE

YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [None, 32])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10_000.0},
        {"rope_type": "default", "rope_theta": 1_000_000.0},
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        YARN,
    ],
    ids=["plain", "another base", "linear", "yarn"],
)
def test_rotary_tables_are_transformers_bit_by_bit(
    rope: dict[str, object], head_dim: int | None, dtype: torch.dtype
) -> None:
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=256,
        rope_parameters=rope,
    )
    tables = rotary_tables(config, 100, torch.empty(1, 1, dtype=dtype))
    expected = LlamaRotaryEmbedding(config)(torch.empty(1, 1, dtype=dtype), torch.arange(100)[None])
    for ours, theirs in zip(tables, expected, strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours, theirs[0])


def test_the_activation_is_the_models_own(load) -> None:
    loaded = load("llama", hidden_act="gelu_pytorch_tanh")
    asked = [(prompt(seed, 20), loaded.dense) for seed in range(3)]
    reference = loaded.reference(loaded.dense)
    for (token_ids, _), output in zip(asked, generate(loaded.engine(), asked), strict=True):
        assert len(output) == GREEDY.max_tokens
        assert logit_gap(reference, token_ids, output) <= TIE
