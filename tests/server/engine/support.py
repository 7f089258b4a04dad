"""What the engine's tests are made of: loaded tiny checkpoints, prompts, greedy runs, a comparison."""

import dataclasses
from collections.abc import Iterable

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pruning.checkpoints.checkpoint import Checkpoint
from pruning.ranking.ranking import Ranking
from pruning.ranking.widths import exact_sparsity
from pruning.slicing import slice_model
from server.engine.config import EngineConfig
from server.engine.engine import Engine, load_engine
from server.engine.request import Request, SamplingParams
from server.engine.variant import Variant

CONFIG = EngineConfig(
    device="cpu",
    dtype="float32",
    block_size=8,
    kv_cache_bytes=4 << 20,
    max_model_len=256,
    max_num_seqs=16,
    max_num_batched_tokens=96,
    max_waiting=8,
    enable_prefix_caching=True,
)

# For the scheduler alone: pools and steps that a few short requests fill.
SCHEDULING = EngineConfig(
    device="cpu",
    dtype="float32",
    block_size=4,
    kv_cache_bytes=0,
    max_model_len=40,
    max_num_seqs=4,
    max_num_batched_tokens=16,
    max_waiting=8,
    enable_prefix_caching=True,
)

# For tests of engines that `load` and `loaded` give.
on_every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """One checkpoint, its ranking, and everything that is made from them."""

    checkpoint: Checkpoint
    ranking: Ranking
    device: str = "cpu"

    @property
    def dense(self) -> Variant:
        return self.variant(
            (self.checkpoint.architecture.intermediate_size,) * self.ranking.permutation.shape[0]
        )

    @staticmethod
    def variant(widths: tuple[int, ...]) -> Variant:
        return Variant(f"tiny:{widths}", 0.0, exact_sparsity(widths, 192), widths, 0, 0)

    def engine(self, widths: tuple[int, ...] | None = None, **limits: object) -> Engine:
        config = dataclasses.replace(CONFIG, **{"device": self.device, **limits})
        return load_engine(self.checkpoint, self.ranking, widths or self.dense.widths, config)

    def reference(self, variant: Variant) -> PreTrainedModel:
        """transformers' own network, physically cut to the variant's widths."""
        model = AutoModelForCausalLM.from_pretrained(self.checkpoint.path, dtype=torch.float32)
        return slice_model(model, self.ranking, variant.widths).eval()


def prompt(seed: int, length: int) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def generate(engine: Engine, asked: Iterable[tuple[list[int], Variant]]) -> list[list[int]]:
    """The new tokens of each (prompt, variant), greedily; all are queued before the first step."""
    requests = [Request(str(i), token_ids, variant, GREEDY) for i, (token_ids, variant) in enumerate(asked)]
    for request in requests:
        engine.add(request)
    while engine.num_unfinished:
        engine.step()
    return [request.output_token_ids for request in requests]


def logit_gap(model: PreTrainedModel, token_ids: list[int], output: list[int]) -> float:
    """How far below `model`'s likeliest token the worst of `output` is, in logits; 0 if it is greedy."""
    with torch.no_grad():
        logits = model(torch.tensor([token_ids + output])).logits[0, len(token_ids) - 1 : -1].float()
    chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
    return float((logits.amax(-1) - chosen).max())
