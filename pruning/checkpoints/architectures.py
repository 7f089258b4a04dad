"""Where the MLP neurons live in each supported model family, and which settings are refused.

Knows configurations and tensor names; opens no files and holds no weights.
"""

from dataclasses import dataclass
from typing import Literal, cast, get_args

from transformers import GenerationConfig, PretrainedConfig

from pruning.errors import UnsupportedModelError

Family = Literal["llama", "qwen2", "qwen3", "mistral"]

FAMILIES: tuple[str, ...] = get_args(Family)
# The rotary frequencies of these are fixed when the model is built. Those of `dynamic` and `longrope`
# depend on the length of each sequence, which a batch of mixed lengths cannot share.
STATIC_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Architecture:
    """The part of a configuration that pruning works on, and what a network's memory follows from.

    Attributes:
        family: whose decoder it is.
        num_layers: decoder layers, each with one GLU MLP.
        hidden_size: width of the residual stream.
        intermediate_size: MLP neurons in every layer of the dense model.
        num_heads, num_kv_heads: heads of the queries, and of keys and values, in every layer.
        head_dim: width of one head.
    """

    family: Family
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Keys and values of one token, all layers; `itemsize` is the bytes of one number."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * itemsize

    def mlp_weight_names(self, layer: int) -> tuple[str, str, str]:
        """Checkpoint names of the gate [N, D], up [N, D] and down [D, N] matrices of `layer`.

        Neuron `j` is row `j` of the first two and column `j` of the third.
        """
        prefix = f"model.layers.{layer}.mlp"
        return f"{prefix}.gate_proj.weight", f"{prefix}.up_proj.weight", f"{prefix}.down_proj.weight"


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The architecture behind a transformers configuration.

    Raises:
        UnsupportedModelError: the family is not served, or a setting is that would be served wrongly.
    """
    check_family(config.model_type)
    _check_settings(config)
    hidden_size, num_heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    return Architecture(
        family=cast("Family", config.model_type),
        num_layers=_size(config, "num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=_size(config, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=_size(config, "num_key_value_heads"),
        # Families differ in whether they declare it; where it is unset, the heads share the residual stream.
        head_dim=getattr(config, "head_dim", None) or hidden_size // num_heads,
    )


def eos_token_ids(config: GenerationConfig | PretrainedConfig) -> frozenset[int]:
    """The tokens that end an answer, any of them; none where `config` names none."""
    ids = config.eos_token_id
    return frozenset([ids] if isinstance(ids, int) else ids or [])


def check_family(model_type: str) -> None:
    """Raises UnsupportedModelError, listing what is supported, unless `model_type` is served."""
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"the architecture {model_type!r} is not supported; supported are {', '.join(FAMILIES)}"
        )


def _check_settings(config: PretrainedConfig) -> None:
    heads = getattr(config, "architectures", None) or []
    if heads and not any(head.endswith("ForCausalLM") for head in heads):
        raise UnsupportedModelError(
            f"the checkpoint holds {', '.join(heads)}; only language models (…ForCausalLM) are supported"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(
            "the checkpoint is quantised (it has a quantization_config); neurons cannot be sliced out of "
            "packed weights: use the unquantised checkpoint, or a GGUF file, which is dequantised"
        )
    if getattr(config, "mlp_bias", False):
        raise UnsupportedModelError("mlp_bias=true is not supported; only MLPs without biases are")
    if config.hidden_act != "silu":
        _check_activation(config.hidden_act)
    rope = getattr(config, "rope_parameters", None) or {}
    rope_type = rope.get("rope_type", "default")
    if rope_type not in STATIC_ROPE_TYPES:
        raise UnsupportedModelError(
            f"rotary embeddings of type {rope_type!r} are not supported; "
            f"supported are {', '.join(STATIC_ROPE_TYPES)}"
        )


def _check_activation(name: str) -> None:
    # Here, because importing it takes a second and 80 MB, and nearly every model is content with SiLU.
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise UnsupportedModelError(
            f"the activation {name!r} is not supported; supported are {', '.join(sorted(ACT2FN))}"
        )


def _size(config: PretrainedConfig, field: str) -> int:
    value = getattr(config, field, None)
    if not isinstance(value, int) or value < 1:
        raise UnsupportedModelError(
            f"{field} is {value!r} in the configuration; it must be a positive integer"
        )
    return value
