"""Sampling against distributions worked out by hand, and against transformers' own logits processors."""

import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from server.engine.request import Request, SamplingParams
from server.engine.sampler import sample
from server.engine.variant import Variant

VARIANT = Variant("m:s0", 0.0, 0.0, (1,), 0, 0)


def request(prompt: tuple[int, ...] = (), output: tuple[int, ...] = (), **sampling) -> Request:
    made = Request("r", list(prompt), VARIANT, SamplingParams(max_tokens=1, **sampling))
    made.output_token_ids = list(output)
    return made


def frequencies(logits: torch.Tensor, draws: int, **sampling) -> torch.Tensor:
    """How often each token is drawn."""
    requests = [request(seed=seed, **sampling) for seed in range(draws)]
    tokens = [t.token_id for t in sample(logits.repeat(draws, 1), requests)]
    return torch.bincount(torch.tensor(tokens), minlength=logits.numel()) / draws


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.3},
        {"temperature": 1.5, "top_k": 150, "top_p": 0.8, "min_p": 0.05},
        {"top_p": 0.999},
    ],
    ids=str,
)
def test_distribution_is_that_of_transformers(sampling: dict) -> None:
    logits = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 2
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.get("temperature", 1.0)))])
    if "top_k" in sampling:
        warpers.append(TopKLogitsWarper(sampling["top_k"]))
    if "top_p" in sampling:
        warpers.append(TopPLogitsWarper(sampling["top_p"]))
    if "min_p" in sampling:
        warpers.append(MinPLogitsWarper(sampling["min_p"]))
    expected = warpers(torch.zeros(1, 0, dtype=torch.long), logits[None].clone())[0].softmax(-1)
    draws = 8_000
    found = frequencies(logits, draws, **sampling)
    assert found[expected == 0].sum() == 0
    # Five standard errors, and a few draws of what is too rare for a normal approximation.
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt() + 3 / draws).all()


def test_greedy_takes_the_likeliest_beside_random_neighbours() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 3.0], [5.0, 0.0, 0.0]])
    requests = [request(temperature=0), request(temperature=0), request(temperature=1, top_k=1, seed=0)]
    assert [t.token_id for t in sample(logits, requests)] == [1, 1, 0]


def test_seed_repeats_whoever_else_is_in_the_batch() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    alone = request(seed=5)
    first = [sample(logits[:1].clone(), [alone])[0].token_id for _ in range(10)]
    shared, other = request(seed=5), request(seed=6, top_p=0.5)
    second = [sample(logits[[1, 0]].clone(), [other, shared])[1].token_id for _ in range(10)]
    assert first == second
    assert len(set(first)) > 1


def test_a_tiny_temperature_does_not_overflow() -> None:
    logits = torch.tensor([[0.0, 1000.0, 999.0]])
    assert sample(logits, [request(temperature=1e-6, seed=0)])[0].token_id == 1


def test_extreme_numbers_are_no_others_business() -> None:
    """A temperature that is 0 in float32, and a top_k that no tensor can hold."""
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    assert sample(logits.clone(), [request(temperature=1e-300, seed=0)])[0].token_id in (1, 2)
    assert frequencies(logits, 50, top_k=2**70).sum() == 1
    assert frequencies(logits, 50, top_k=2**70, top_p=0.5)[0] == 0


def test_seeds_of_either_sign_differ() -> None:
    draws = [[request(seed=seed).rng.random() for _ in range(3)] for seed in (1, -1)]
    assert draws[0] != draws[1]


def test_repetition_penalty_is_that_of_transformers() -> None:
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(2))
    seen = torch.tensor([[3, 4, 4, 7]])
    expected = RepetitionPenaltyLogitsProcessor(1.7)(seen, logits.clone())
    changed = logits.clone()
    sample(changed, [request((3, 4), (4, 7), temperature=0, repetition_penalty=1.7)])
    torch.testing.assert_close(changed, expected)


def test_presence_and_frequency_penalties_count_the_output_alone() -> None:
    logits = torch.zeros(1, 5)
    sample(logits, [request((0,), (1, 2, 2), temperature=0, presence_penalty=0.5, frequency_penalty=0.25)])
    assert logits[0].tolist() == [0, -0.75, -1.0, 0, 0]


def test_logit_bias() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    [token] = sample(logits, [request(temperature=0, logit_bias={0: 5.0, 2: -100.0})])
    assert token.token_id == 0
    assert logits[0].tolist() == [6.0, 2.0, -97.0]


def test_logprobs_are_those_of_the_untouched_distribution() -> None:
    logits = torch.tensor([[math.log(0.5), math.log(0.3), math.log(0.2)]])
    asked = request(temperature=0, logprobs=2, logit_bias={2: 100.0})
    [token] = sample(logits, [asked])
    assert token.logprobs is not None
    assert token.logprobs.token_id == token.token_id == 2
    assert token.logprobs.logprob == pytest.approx(math.log(0.2))
    assert [t for t, _ in token.logprobs.top] == [0, 1]
    assert token.logprobs.top[1][1] == pytest.approx(math.log(0.3))
    [silent] = sample(torch.zeros(1, 3), [request(temperature=0)])
    assert silent.logprobs is None


def test_nobody_samples_in_a_step_of_prompts() -> None:
    assert sample(torch.empty(0, 5), []) == []
