"""Trains math-mini, the model that Secateur ships: `python -m training.math_mini --help`.

Writes a stock Hugging Face checkpoint in bfloat16 that plain transformers loads. The data is generated (see
training/data.py); measuring the result is the job of training/card.py.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from training.data import Batch, batches, turns
from training.tokenizer import train_tokenizer

EMBEDDED = Path(__file__).parent.parent / "server" / "embedded" / "math-mini"
VOCAB_SIZE = 1_024
CONTEXT = 1_024
TOKENIZER_TURNS = 20_000
TRAINING_FILE = "training.json"  # how the checkpoint came about


@dataclass(frozen=True)
class Settings:
    """What decides the outcome of one run. The schedule follows the clock: a faster machine sees more tokens.

    Attributes:
        minutes: of training, warm-up and decay included.
        seed: of data and initialisation.
        batch_tokens: positions per step, at most.
        learning_rate: at its peak.
        weight_decay: of matrices but the embedding, AdamW's.
        prompt_weight: of the loss on prompts at first; falls to zero, so that answers alone count in the end.
        threads: CPU threads.
    """

    minutes: float
    seed: int
    batch_tokens: int
    learning_rate: float
    weight_decay: float
    prompt_weight: float
    threads: int


@dataclass(frozen=True)
class Progress:
    """How far a run has come; `loss` is the mean over the latest answers, in nats a token."""

    steps: int
    tokens: int
    seconds: float
    loss: float


def main() -> None:
    arguments = _parser().parse_args()
    output, initial = arguments.output, arguments.continue_from
    settings = Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)})
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    output.mkdir(parents=True, exist_ok=True)
    if initial is None:
        texts = (
            f"system\nuser\n{prompt}\nassistant\n{answer}"
            for prompt, answer in islice(turns(settings.seed), TOKENIZER_TURNS)
        )
        tokenizer = train_tokenizer(texts, VOCAB_SIZE, CONTEXT)
        model = build_model(tokenizer)
        earlier = []
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(initial)
        model = Qwen2ForCausalLM.from_pretrained(initial, dtype=torch.float32)
        earlier = json.loads((initial / TRAINING_FILE).read_text())["runs"]
    for progress in train(model, tokenizer, settings):
        run = {"settings": asdict(settings), "progress": asdict(progress), "torch": torch.__version__}
        save(model, tokenizer, {"runs": [*earlier, run]}, output)


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 of 4.3 million parameters, float32."""
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=1_024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,  # type: ignore[call-arg]  # undeclared, but transformers reads it and so do others
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    model = Qwen2ForCausalLM(config)
    # Norm 1, not transformers' 0.3: tokens have to be told apart before they can be copied, see `train`.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=config.hidden_size**-0.5)
    return model


def train(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: Settings
) -> Iterator[Progress]:
    """Trains `model` in place; yields every five minutes and at the end, for a checkpoint to be written."""
    embedding = model.model.embed_tokens.weight
    decayed = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    # Decay merges the embeddings of like words before a head has learned to copy them: with 0.1, the model
    # could not tell one noun from another after 1,500 steps.
    others = [embedding, *(p for p in model.parameters() if p.ndim == 1)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    model.train()
    started = saved = time.monotonic()
    steps = tokens = 0
    mean_loss = math.log(VOCAB_SIZE)
    total_seconds = round(60 * settings.minutes)
    bar = tqdm(total=total_seconds, unit="s", desc="training", mininterval=5)
    for batch in batches(tokenizer, settings.seed, settings.batch_tokens, CONTEXT):
        seconds = time.monotonic() - started
        share = seconds / (60 * settings.minutes)
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_factor(steps, share)
        # Weights stay float32, products run in bfloat16: twice as fast where the CPU has AVX-512 BF16.
        with torch.autocast("cpu", torch.bfloat16):
            answer_loss, prompt_loss = losses(model, batch)
        loss = answer_loss + settings.prompt_weight * max(0.0, 1 - share / 0.6) * prompt_loss
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        steps, tokens = steps + 1, tokens + batch.tokens
        mean_loss += (answer_loss.item() - mean_loss) / min(steps, 50)
        bar.update(min(round(seconds), total_seconds) - bar.n)
        bar.set_postfix_str(f"loss {mean_loss:.4f}, step {steps}, {tokens / max(seconds, 1):,.0f} tokens/s")
        if time.monotonic() - saved > 300:
            yield Progress(steps, tokens, seconds, mean_loss)
            saved = time.monotonic()
    bar.close()
    yield Progress(steps, tokens, time.monotonic() - started, mean_loss)


def learning_rate_factor(step: int, share: float) -> float:
    """Linear warm-up over 200 steps, then flat, then a linear decay to zero from 40% of the time on."""
    return min(1.0, (step + 1) / 200, (1 - share) / 0.6)


def losses(model: Qwen2ForCausalLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross entropy over the tokens of answers, and over those of prompts, in nats."""
    hidden = model.model(batch.input_ids).last_hidden_state  # [rows, length, hidden]
    answer_loss, prompt_loss = (
        cross_entropy(model.lm_head(hidden[mask]).float(), batch.next_ids[mask])
        for mask in (batch.in_answer, batch.in_prompt)
    )
    return answer_loss, prompt_loss


def save(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, training: dict[str, Any], output: Path
) -> None:
    """Puts the checkpoint, in bfloat16, into `output` once it is whole: what is there may be served."""
    copy = deepcopy(model).bfloat16()
    copy.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    with TemporaryDirectory(dir=output) as work:
        copy.save_pretrained(work)
        tokenizer.save_pretrained(work)
        (Path(work) / TRAINING_FILE).write_text(json.dumps(training, indent=2) + "\n")
        for file in sorted(Path(work).iterdir(), key=lambda file: file.suffix == ".safetensors"):
            file.replace(output / file.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.math_mini",
        description="Train math-mini on generated arithmetic word problems, from nothing, on a CPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=EMBEDDED, help="folder for the checkpoint")
    parser.add_argument("--minutes", type=float, default=36, help="training time by the clock")
    parser.add_argument("--seed", type=int, default=0, help="of data and initialisation")
    parser.add_argument("--batch-tokens", type=int, default=4_096, help="positions per step, at most")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="AdamW's, at its peak")
    parser.add_argument(
        "--weight-decay", type=float, default=0.05, help="AdamW's, on matrices but the embedding"
    )
    parser.add_argument("--prompt-weight", type=float, default=1, help="of the loss on prompts, at first")
    parser.add_argument("--continue-from", type=Path, help="checkpoint to start from, instead of nothing")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    return parser


if __name__ == "__main__":
    main()
