from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM

from pruning.checkpoints import gguf_conversion
from pruning.checkpoints.checkpoint import open_checkpoint
from pruning.errors import ModelError, UnsupportedModelError
from tests.tiny import CHATML, byte_tokenizer, tiny_checkpoint

TOKENS = torch.tensor([[5, 80, 81, 40, 7, 9]])


def write_gguf(
    file: Path,
    model: Any,
    *,
    kind: Type = Type.F32,
    skip: str = "",
    extra: dict[str, np.ndarray] | None = None,
    rope_scaling: gguf.RopeScalingType | None = None,
) -> None:
    """Writes `model` as llama.cpp's converter does, and rounds its weights to what the file then holds."""
    config, family = model.config, model.config.model_type
    writer = gguf.GGUFWriter(file, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if family == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    if rope_scaling is not None:
        writer.add_rope_scaling_type(rope_scaling)
    _write_tokenizer(writer, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if name == skip:
            continue
        data, packed = parameter.data.numpy(), None
        if kind != Type.F32 and data.ndim == 2:
            packed = gguf.quantize(data, kind)
            parameter.data = torch.from_numpy(gguf.dequantize(packed, kind).astype(np.float32))
        elif family == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            halves = data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:])
            data = halves.swapaxes(1, 2).reshape(data.shape)  # llama.cpp rotates neighbours, not halves
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(
            written, data if packed is None else packed, raw_dtype=None if packed is None else kind
        )
    for name, data in (extra or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    tokenizer = byte_tokenizer()
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocab] + ["ab"]
    special = set(tokenizer.all_special_tokens)
    types = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    padding = vocab_size - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens + [f"[PAD{place}]" for place in range(padding)])
    writer.add_token_types(types + [gguf.TokenType.UNUSED] * padding)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHATML)


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path).eval().requires_grad_(False)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return load(tiny_checkpoint(tmp_path / "original", "qwen2"))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_converted_file_computes_what_its_tensors_say(family: str, tmp_path: Path) -> None:
    model = load(tiny_checkpoint(tmp_path / "original", family))
    write_gguf(tmp_path / "tiny.gguf", model)
    checkpoint = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "cache")

    assert checkpoint.name == "tiny"
    assert checkpoint.architecture.family == family
    converted = load(checkpoint.path)
    assert converted.dtype == torch.float32
    assert converted.generation_config.eos_token_id == model.generation_config.eos_token_id
    torch.testing.assert_close(converted(TOKENS).logits, model(TOKENS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16, Type.Q8_0])
def test_a_packed_file_is_dequantised(
    kind: Type, model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_gguf(tmp_path / "tiny.gguf", model, kind=kind)  # `model` now holds what the file does
    converted = load(open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "cache").path)

    assert converted.dtype == (torch.float16 if kind == Type.F16 else torch.bfloat16)
    assert ("unpacking Q8_0 to bfloat16" in caplog.text) == (kind == Type.Q8_0)
    for name, parameter in model.named_parameters():
        assert torch.equal(converted.get_parameter(name), parameter.to(converted.dtype)), name


def test_a_file_is_converted_once(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf", model)
    first = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "cache")

    def again(file: Path, directory: Path) -> None:
        raise AssertionError("converted twice")

    monkeypatch.setattr(gguf_conversion, "_convert", again)
    assert open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "cache").path == first.path

    with torch.no_grad():
        model.model.norm.weight += 1
    write_gguf(tmp_path / "tiny.gguf", model)
    with pytest.raises(AssertionError, match="converted twice"):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "cache")


def test_the_tokenizer_comes_along(model: Any, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", model)
    tokenizer = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "cache").tokenizer()
    message = [{"role": "user", "content": "xyz ab"}]

    ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(ids) == "<|im_start|>user\nxyz ab<|im_end|>\n<|im_start|>assistant\n"
    assert len(tokenizer("ab").input_ids) == 1  # merged
    assert tokenizer.eos_token == "<|im_end|>"


def test_llama3_rope_scaling_is_put_back(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    path = tiny_checkpoint(
        tmp_path / "original", "llama", rope_parameters=rope, max_position_embeddings=16_384
    )
    model = load(path)
    plain = 500_000.0 ** (-np.arange(8) / 8)
    factors = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    write_gguf(tmp_path / "tiny.gguf", model, extra={"rope_freqs.weight": factors})
    converted = load(open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "cache").path)

    assert factors.max() == pytest.approx(32.0)
    assert converted.config.rope_parameters == pytest.approx(rope)
    far = torch.tensor([[0, 1, 2, 500, 4000, 9000]])
    torch.testing.assert_close(
        converted(TOKENS, position_ids=far).logits,
        model(TOKENS, position_ids=far).logits,
        rtol=1e-4,
        atol=1e-4,
    )


def test_rope_scaling_of_another_kind_is_refused(tmp_path: Path) -> None:
    model = load(tiny_checkpoint(tmp_path / "original", "llama"))
    odd = np.linspace(1, 9, 8, dtype=np.float32)
    write_gguf(tmp_path / "factors.gguf", model, extra={"rope_freqs.weight": odd})
    write_gguf(tmp_path / "yarn.gguf", model, rope_scaling=gguf.RopeScalingType.YARN)

    with pytest.raises(UnsupportedModelError, match="not the scaling of a Llama 3 model"):
        open_checkpoint(str(tmp_path / "factors.gguf"), tmp_path / "cache")
    with pytest.raises(UnsupportedModelError, match="scaling 'yarn' are not supported in GGUF"):
        open_checkpoint(str(tmp_path / "yarn.gguf"), tmp_path / "cache")


@pytest.mark.parametrize(
    "tensor", ["model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias"]
)
def test_a_file_that_lacks_a_tensor_is_refused(tensor: str, model: Any, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", model, skip=tensor)

    with pytest.raises(ModelError, match=f"lacks {tensor}"):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "cache")


def test_a_tensor_that_the_architecture_has_no_place_for_is_not_dropped(tmp_path: Path) -> None:
    model = load(tiny_checkpoint(tmp_path / "original", "llama"))
    write_gguf(tmp_path / "tiny.gguf", model, extra={"blk.0.attn_q.bias": np.ones(64, dtype=np.float32)})

    with pytest.raises(ModelError, match="1 of its tensors have no place"):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "cache")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "gpt2")
    writer.add_tensor("token_embd.weight", np.ones((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(UnsupportedModelError, match="'gpt2' is not supported; supported are llama"):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "cache")


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.999])
def test_a_damaged_file_leaves_nothing_behind(kept: float, model: Any, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, model)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])

    with pytest.raises(ModelError, match=r"tiny\.gguf cannot be read as a GGUF model"):
        open_checkpoint(str(file), tmp_path / "cache")
    assert list((tmp_path / "cache" / "converted").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(model: Any, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", model)
    (tmp_path / "cache").write_text("a file, not a directory")

    with pytest.raises(ModelError, match=r"cannot keep .*tiny\.gguf as a checkpoint in .*SECATEUR_CACHE_DIR"):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "cache")


def test_missing_packages_are_named_with_the_extra(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "tiny.gguf", model)
    monkeypatch.setattr(gguf_conversion, "find_spec", lambda name: None)

    with pytest.raises(ModelError, match=r"needs gguf and accelerate: pip install 'secateur\[gguf\]'"):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "cache")
