"""The dense model's own answers, asked of the engine.

A padded batch computes on until its longest answer ends; the engine gives the place to the next prompt at
once, and has the compiled kernels. Answers are kept on disk one by one, so that nobody asks twice:
profiles, orders, corrections and trainings of one model and task begin with the same prompts. What they are
for is not known here.
"""

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from pruning.calibration.answers import Answers
from pruning.calibration.calibration import check_lengths
from pruning.calibration.memory import spare_bytes
from pruning.chat_prompts import prompt_token_ids
from pruning.checkpoints.checkpoint import Checkpoint
from pruning.errors import ProfileError
from pruning.ranking.ranking import unranked
from server.engine.config import Dtype, EngineConfig
from server.engine.engine import load_engine
from server.engine.request import Request, SamplingParams
from server.engine.variant import Variant

KV_BYTES = 2**30
BLOCK_TOKENS = 16
MAX_ROWS = 64
MAX_STEP_TOKENS = 512
_NAMES: Mapping[torch.dtype, Dtype] = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
}


def dense_answers(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    cache_dir: Path,
    max_memory_bytes: int | None = None,
) -> Answers:
    """What the whole model answers to every prompt, greedily; shows a bar with the time left, on stderr.

    Args:
        prompts: user messages.
        cache_dir: where answers are kept. An answer of an interrupted call is there for the next one.
        max_memory_bytes: that weights and KV may take; None: as much as they like.

    Raises:
        ModelError: the checkpoint is damaged.
        ProfileError: a prompt is empty or does not fit the context; answers cannot be kept.
        MemoryBoundError: more memory is needed than allowed.
    """
    tokenizer = checkpoint.tokenizer()
    asked = [prompt_token_ids(tokenizer, prompt) for prompt in prompts]
    check_lengths(checkpoint, asked, max_new_tokens)
    ends = sorted(checkpoint.eos_token_ids)  # may be set right without a change of anything else
    key = json.dumps([checkpoint.fingerprint, str(dtype), max_new_tokens, ends])
    name = f"{checkpoint.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.jsonl"
    known = AnswerFile(cache_dir / "answers" / name)
    missing = [list(prompt) for prompt in dict.fromkeys(map(tuple, asked)) if prompt not in known]
    if missing:
        config = _config(checkpoint, missing, max_new_tokens, device, dtype)
        if max_memory_bytes is not None:
            weight_bytes = checkpoint.num_parameters * dtype.itemsize
            parts = {"the model": weight_bytes, "keys and values": config.kv_cache_bytes}
            spare_bytes("answering the prompts", parts, max_memory_bytes, "use --dtype bfloat16")
        there = len(prompts) - len(missing)
        with tqdm(total=len(prompts), initial=there, desc="answers", unit="prompt") as bar:
            for prompt, answer in _ask(checkpoint, config, missing, max_new_tokens):
                known.add(prompt, answer)
                bar.update()
        gc.collect()  # whoever measures the model loads it again
    answers = [known[prompt] for prompt in asked]
    return Answers(answers, sum(answer[-1] not in checkpoint.eos_token_ids for answer in answers))


class AnswerFile:
    """Answers by prompt, one JSON object a line; a line that cannot be read is an answer that is not known.

    Several processes may add to it.

    Raises:
        ProfileError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise self._unusable(error) from error
        self._answers = dict(_readable(content))

    def __contains__(self, prompt: Sequence[int]) -> bool:
        return _digest(prompt) in self._answers

    def __getitem__(self, prompt: Sequence[int]) -> list[int]:
        return self._answers[_digest(prompt)]

    def add(self, prompt: Sequence[int], answer: list[int]) -> None:
        """Out of this process's hands when it returns. Raises ProfileError."""
        line = json.dumps({"prompt": _digest(prompt), "answer": answer})
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                # Begins with a line's end, too: the last writer may have been killed within a line.
                file.write(f"\n{line}\n".encode())
        except OSError as error:
            raise self._unusable(error) from error
        self._answers[_digest(prompt)] = answer

    def _unusable(self, error: OSError) -> ProfileError:
        return ProfileError(
            f"cannot keep the dense model's answers in {self._path} ({error}): make room, or name another "
            "--cache-dir"
        )


def _readable(content: bytes) -> Iterator[tuple[str, list[int]]]:
    for line in content.splitlines():
        try:
            found = json.loads(line)
            yield found["prompt"], found["answer"]
        except (ValueError, KeyError, TypeError):
            continue


def _digest(prompt: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(prompt)).encode()).hexdigest()


def _config(
    checkpoint: Checkpoint,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
) -> EngineConfig:
    longest = max(map(len, prompts)) + max_new_tokens
    block_bytes = BLOCK_TOKENS * checkpoint.architecture.kv_bytes_per_token(dtype.itemsize)
    blocks = -(-longest // BLOCK_TOKENS)  # of the longest answer; the least that works
    rows = min(MAX_ROWS, len(prompts))
    return EngineConfig(
        device=str(device),
        dtype=_NAMES[dtype],
        block_size=BLOCK_TOKENS,
        kv_cache_bytes=block_bytes * max(blocks, min(rows * blocks, KV_BYTES // block_bytes)),
        max_model_len=longest,
        max_num_seqs=rows,
        max_num_batched_tokens=MAX_STEP_TOKENS,
        max_waiting=len(prompts),
        enable_prefix_caching=False,
    )


def _ask(
    checkpoint: Checkpoint, config: EngineConfig, prompts: Sequence[list[int]], max_new_tokens: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Every prompt with its answer, in the order in which they end."""
    architecture = checkpoint.architecture
    whole = (architecture.intermediate_size,) * architecture.num_layers
    ranking = unranked(architecture.num_layers, architecture.intermediate_size)
    engine = load_engine(checkpoint, ranking, whole, config)
    variant = Variant("dense", 0.0, 0.0, whole, engine.parameters(whole), engine.standalone_bytes(whole))
    sampling = SamplingParams(max_tokens=max_new_tokens, temperature=0)
    # The longest first: what is left at the end, when the batch is no longer full, is short.
    for number, prompt in enumerate(sorted(prompts, key=len, reverse=True)):
        engine.add(Request(str(number), prompt, variant, sampling))
    while engine.num_unfinished:
        outputs, _ = engine.step()
        for output in outputs:
            if output.finish_reason is not None:
                yield output.request.prompt_token_ids, output.request.output_token_ids
