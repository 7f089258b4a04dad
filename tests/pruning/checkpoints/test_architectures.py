from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from pruning.checkpoints.architectures import FAMILIES, architecture_of, eos_token_ids
from pruning.checkpoints.tensors import open_tensors
from pruning.errors import UnsupportedModelError
from tests.tiny import FAMILIES as TINY_FAMILIES
from tests.tiny import tiny_checkpoint


def config(**overrides: Any) -> PretrainedConfig:
    return LlamaConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=2048,
        **overrides,
    )


def rope(rope_type: str, **settings: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": 10_000.0, **settings}


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_names_are_those_in_the_checkpoint(family: str, tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, family)
    architecture = architecture_of(AutoConfig.from_pretrained(path))

    assert architecture.family == family
    with open_tensors(path) as tensors:
        for layer in range(architecture.num_layers):
            gate, up, down = architecture.mlp_weight_names(layer)
            wide = (architecture.intermediate_size, architecture.hidden_size)
            assert tensors.shape(gate) == tensors.shape(up) == wide
            assert tensors.shape(down) == wide[::-1]
        assert architecture.mlp_weight_names(architecture.num_layers)[0] not in tensors.names


def test_another_architecture_is_refused_with_the_list_of_supported_ones() -> None:
    with pytest.raises(UnsupportedModelError, match="'gpt2' is not supported") as caught:
        architecture_of(GPT2Config())

    assert all(family in str(caught.value) for family in FAMILIES)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "sine"}, "'sine' is not supported; supported are .*silu"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"rope_parameters": rope("dynamic", factor=2.0)}, "'dynamic' are not supported; .*default, linear"),
    ],
)
def test_what_would_be_served_wrongly_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        architecture_of(config(**overrides))


@pytest.mark.parametrize(
    "rope_parameters",
    [
        rope("default"),
        rope("linear", factor=2.0),
        rope("yarn", factor=2.0, original_max_position_embeddings=1024),
        rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=1024,
        ),
    ],
)
def test_rotary_embeddings_that_do_not_depend_on_the_length_are_accepted(
    rope_parameters: dict[str, Any],
) -> None:
    accepted = architecture_of(config(rope_parameters=rope_parameters))

    assert (accepted.num_layers, accepted.hidden_size, accepted.intermediate_size) == (3, 64, 192)


def test_a_size_that_is_none_is_refused() -> None:
    broken = config()
    broken.num_hidden_layers = 0

    with pytest.raises(UnsupportedModelError, match="num_hidden_layers is 0"):
        architecture_of(broken)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_token_takes_the_memory_that_transformers_keeps_for_it(family: str, tmp_path: Path) -> None:
    """24 is not the residual stream's 64 over 4 heads."""
    path = tiny_checkpoint(tmp_path, family, head_dim=24)
    model = AutoModelForCausalLM.from_pretrained(path)
    kept = model(torch.tensor([[5, 6, 7]])).past_key_values

    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in kept.layers)
    assert architecture_of(model.config).kv_bytes_per_token(itemsize=4) * 3 == held


def test_heads_share_the_residual_stream_where_their_width_is_not_declared() -> None:
    plain = Qwen2Config(hidden_size=64, intermediate_size=192, num_attention_heads=4, num_hidden_layers=3)
    assert not hasattr(plain, "head_dim")

    assert architecture_of(plain).head_dim == 16


@pytest.mark.parametrize(("named", "ids"), [(7, {7}), ([7, 9], {7, 9}), (None, set()), (0, {0})])
def test_one_token_several_or_none_end_an_answer(named: Any, ids: set[int]) -> None:
    assert eos_token_ids(config(eos_token_id=named)) == ids
    assert eos_token_ids(GenerationConfig(eos_token_id=named)) == ids
