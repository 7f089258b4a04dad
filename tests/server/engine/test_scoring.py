"""Scores of prompts against transformers' logits: whole, in chunks, beside others, at every width."""

import dataclasses

import pytest
import torch

from server.engine import scheduler as scheduler_module
from server.engine.engine import Engine
from server.engine.request import BACKGROUND, Request, SamplingParams, ScoringParams, TokenLogprobs
from server.engine.scoring import RowToScore, score
from server.engine.variant import Variant
from tests.server.engine.support import GREEDY, Loaded, on_every_device, prompt

NARROW = (64, 96, 32)
SCORE_ONLY = dataclasses.replace(GREEDY, max_tokens=0)
ROUNDING = 1e-4  # of float32, in nats


def run(engine: Engine, *requests: Request) -> None:
    for request in requests:
        engine.add(request)
    while engine.num_unfinished:
        engine.step()
    assert engine.num_free_kv_blocks == engine.num_kv_blocks


def scored(
    engine: Engine, token_ids: list[int], variant: Variant, scoring: ScoringParams
) -> list[TokenLogprobs]:
    request = Request("r", token_ids, variant, SCORE_ONLY, scoring=scoring)
    run(engine, request)
    assert request.output_token_ids == []
    return request.scored


def reference_logprobs(loaded: Loaded, variant: Variant, token_ids: list[int]) -> torch.Tensor:
    """[tokens - 1, vocabulary]: row p is about token p + 1."""
    with torch.no_grad():
        return loaded.reference(variant)(torch.tensor([token_ids])).logits[0, :-1].log_softmax(-1)


def assert_agree(
    scores: list[TokenLogprobs], logprobs: torch.Tensor, token_ids: list[int], scoring: ScoringParams
) -> None:
    assert [position.token_id for position in scores] == token_ids[scoring.start :]
    for i, (position, row) in enumerate(zip(scores, logprobs[scoring.start - 1 :], strict=True)):
        assert position.logprob == pytest.approx(row[position.token_id].item(), abs=ROUNDING)
        best = row.topk(scoring.top).values.tolist()
        assert [logprob for _, logprob in position.top] == pytest.approx(best, abs=ROUNDING)
        for token_id, logprob in position.top:
            assert logprob == pytest.approx(row[token_id].item(), abs=ROUNDING)
        wanted = list(scoring.candidates[i]) if scoring.candidates else []
        assert list(position.candidates) == pytest.approx(row[wanted].tolist(), abs=ROUNDING)


@on_every_device
@pytest.mark.parametrize(("budget", "rows"), [(400, 400), (96, 128), (23, 128), (96, 7)])
def test_scores_are_those_of_transformers(load, monkeypatch, budget: int, rows: int) -> None:
    """Whole, in chunks of the budget, and in chunks of the rows that may be scored."""
    monkeypatch.setattr(scheduler_module, "MAX_SCORED_ROWS", rows)
    loaded = load("qwen2")
    token_ids = prompt(1, 150)
    logprobs = reference_logprobs(loaded, loaded.dense, token_ids)
    candidates = [[i % 320, 5, 319] for i in range(60)]
    for scoring in (ScoringParams(), ScoringParams(90, top=3, candidates=candidates), ScoringParams(149)):
        engine = loaded.engine(max_num_batched_tokens=budget)
        assert_agree(scored(engine, token_ids, loaded.dense, scoring), logprobs, token_ids, scoring)


@on_every_device
def test_every_family_scores(loaded: Loaded) -> None:
    token_ids = prompt(2, 70)
    for variant in (loaded.dense, loaded.variant(NARROW)):
        logprobs = reference_logprobs(loaded, variant, token_ids)
        scores = scored(loaded.engine(), token_ids, variant, ScoringParams(top=2))
        assert_agree(scores, logprobs, token_ids, ScoringParams(top=2))


@on_every_device
def test_scoring_beside_others_of_other_widths(load) -> None:
    """Users and background, scoring and answering, dense and narrow in one batch; each as if alone."""
    loaded = load("qwen2")
    variants = [loaded.dense, loaded.variant(NARROW)]
    scoring = ScoringParams(11, top=2)
    asked = [
        Request(
            str(i),
            prompt(i, 40 + 13 * i),
            variants[i % 2],
            GREEDY if i % 3 else SCORE_ONLY,
            priority=BACKGROUND if i > 3 else 0,
            scoring=scoring if i != 1 else None,
        )
        for i in range(7)
    ]
    run(loaded.engine(), *asked)
    for request in asked:
        if request.scoring is None:
            assert request.scored == []
            continue
        logprobs = reference_logprobs(loaded, request.variant, request.prompt_token_ids)
        assert_agree(request.scored, logprobs, request.prompt_token_ids, scoring)
        alone = Request("r", request.prompt_token_ids, request.variant, request.sampling)
        run(loaded.engine(), alone)
        assert request.output_token_ids == alone.output_token_ids


def test_a_cached_prefix_serves_up_to_the_first_scored_row(load) -> None:
    loaded = load("qwen2")
    engine = loaded.engine()
    token_ids = prompt(3, 64)
    logprobs = reference_logprobs(loaded, loaded.dense, token_ids)
    run(engine, Request("warm", token_ids, loaded.dense, GREEDY))
    for start, cached in ((1, 0), (33, 32), (64, 56)):
        request = Request("r", token_ids, loaded.dense, SCORE_ONLY, scoring=ScoringParams(start))
        run(engine, request)
        assert request.num_cached_tokens == cached
        assert_agree(request.scored, logprobs, token_ids, ScoringParams(start))


def test_a_single_token_has_nothing_to_score(load) -> None:
    loaded = load("qwen2")
    assert scored(loaded.engine(), [7], loaded.dense, ScoringParams()) == []


@on_every_device
def test_an_answer_scored_again_by_the_variant_that_gave_it(load) -> None:
    """What shadow scoring rests on: at equal width the recorded and the re-scored numbers are the same."""
    loaded = load("qwen2")
    engine, variant = loaded.engine(), loaded.variant(NARROW)
    sampling = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True, recorded_logprobs=64)
    answer = Request("answer", prompt(4, 20), variant, sampling)
    engine.add(answer)
    recorded = []
    while engine.num_unfinished:
        outputs, _ = engine.step()
        recorded += [output.logprobs for output in outputs]
    scoring = ScoringParams(20, candidates=[[token for token, _ in position.top] for position in recorded])
    again = scored(engine, answer.prompt_token_ids + answer.output_token_ids, variant, scoring)
    for first, second in zip(recorded, again, strict=True):
        assert first.token_id == second.token_id
        assert first.logprob == pytest.approx(second.logprob, abs=ROUNDING)
        assert [logprob for _, logprob in first.top] == pytest.approx(second.candidates, abs=ROUNDING)
        assert second.top[0][1] == pytest.approx(first.top[0][1], abs=ROUNDING)


def test_the_compiled_decoder_scores_as_torch_does(load) -> None:
    """Where the machine has the kernels; bfloat16 moves a log-probability by up to 0.1."""
    loaded = load("qwen2")
    token_ids = prompt(5, 120)
    scoring = ScoringParams(top=1)
    engines = [loaded.engine(dtype="bfloat16", kernels=kernels) for kernels in ("auto", "torch")]
    logprobs = reference_logprobs(loaded, loaded.dense, token_ids)
    for engine in engines:
        for i, position in enumerate(scored(engine, token_ids, loaded.dense, scoring)):
            assert position.logprob == pytest.approx(logprobs[i, position.token_id].item(), abs=0.1)


def test_rows_may_ask_for_different_things() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.25, 0.5, 0.25]]).log() + 3
    rows = [RowToScore(2, 0, []), RowToScore(0, 2, [1, 2]), RowToScore(1, 1, [0])]
    first, second, third = score(logits, rows)
    assert first.logprob == pytest.approx(torch.tensor(0.2).log().item())
    assert first.top == first.candidates == ()
    assert second.top[0][0] == 2
    assert len(second.top) == 2
    assert second.candidates == pytest.approx(torch.tensor([0.1, 0.8]).log().tolist())
    assert third.top[0] == pytest.approx((1, torch.tensor(0.5).log().item()))
    assert third.candidates == pytest.approx([torch.tensor(0.25).log().item()])
    assert score(torch.empty(0, 3), []) == []
