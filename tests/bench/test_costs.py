"""Costs are counted right: against a real network's matrices, and against each other."""

import pytest
from transformers import AutoModelForCausalLM

from bench.costs import Geometry
from tests.tiny import tiny_checkpoint

GEOMETRY = Geometry(
    hidden_size=8,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=5,
    intermediate_size=16,
    vocab_size=100,
)


def test_a_step_reads_every_matrix_once(tmp_path):
    path = tiny_checkpoint(tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(path)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    weights = sum(p.numel() for p in matrices)
    if not model.config.tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.numel()
    cost = Geometry.read(path).decode([0.0], context=0)
    assert cost.num_bytes == 2 * weights
    assert cost.num_flops == 2 * weights


def test_a_batch_computes_what_its_requests_would_and_reads_the_widest():
    sparsities = [0.0, 0.25, 0.5]
    together = GEOMETRY.decode(sparsities, context=0)
    alone = [GEOMETRY.decode([sparsity], context=0) for sparsity in sparsities]
    assert together.num_flops == sum(cost.num_flops for cost in alone)
    assert together.num_bytes == alone[0].num_bytes


def test_a_prompt_costs_what_its_tokens_would_one_by_one_but_the_head():
    num_tokens = 9
    prefill = GEOMETRY.prefill(num_tokens, sparsity=0.25)
    one_by_one = sum(GEOMETRY.decode([0.25], context).num_flops for context in range(1, num_tokens + 1))
    assert prefill.num_flops == one_by_one - (num_tokens - 1) * GEOMETRY.head(1).num_flops


def test_an_answer_is_a_prompt_and_its_later_tokens():
    prompt, decoded = GEOMETRY.prefill(5, 0.5), [GEOMETRY.decode([0.5, 0.5], n) for n in (6, 7, 8)]
    assert GEOMETRY.answer(2, 5, 4, 0.5) == (prompt, prompt, *decoded)


def test_context_costs_reading_and_computing():
    near, far = GEOMETRY.decode([0.0], context=10), GEOMETRY.decode([0.0], context=11)
    assert far.num_bytes - near.num_bytes == 2 * 3 * 2 * (2 * 5)  # bf16, layers, keys and values, heads
    assert far.num_flops - near.num_flops == 3 * 4 * (4 * 5)


def test_the_least_time_is_that_of_the_tighter_limit():
    cost = GEOMETRY.head(1)
    assert cost.seconds(1e6, 1e9) == pytest.approx(cost.num_bytes / 1e6)
    assert cost.seconds(1e9, 1e6) == pytest.approx(cost.num_flops / 1e6)
