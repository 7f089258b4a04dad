"""Tiny random checkpoints of every served family, with a tokenizer that can encode any text, and an order."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from pruning.ranking.ranking import Ranking, rank

CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "mistral": MistralConfig}
FAMILIES = tuple(CONFIGS)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_ranking(layers: int = 3, neurons: int = 192, seed: int = 1) -> Ranking:
    """Any order of such a checkpoint's neurons."""
    scores = torch.rand(layers, neurons, generator=torch.Generator().manual_seed(seed))
    return rank(scores, score="random", profile_digest="none")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, plus the three special tokens of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )


def tiny_checkpoint(path: Path, family: str = "qwen2", *, seed: int = 0, **overrides: Any) -> Path:
    """Writes a Hugging Face checkpoint of about 100,000 parameters under `path`, in float32 or `dtype`."""
    dtype = overrides.pop("dtype", torch.float32)
    tokenizer = byte_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": family in ("qwen2", "qwen3"),
        **({"sliding_window": None} if family == "mistral" else {}),
        **overrides,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](**settings), dtype=dtype)
    # The default initialisation is so small that layers change nothing. Embeddings stay small all the same:
    # where the head is tied to them, large ones make the model repeat its last token.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.2 if "embed" in name else parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
