"""What only the last tokens need is computed for them alone; and greedy batches without their logits."""

import dataclasses

import pytest
import torch

from server.engine.engine import Engine
from server.engine.model import Decoder
from server.engine.request import Request, SamplingParams, ScoringParams
from tests.server.engine.support import GREEDY, Loaded, generate, logit_gap, on_every_device, prompt
from tests.server.engine.test_laws import NARROW, TIE


def decoder_of(engine: Engine) -> Decoder:
    return engine._decoder


def step_rows(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Fills with (tokens, output rows) of every step."""
    decoder, seen = decoder_of(engine), []
    forward = decoder.forward

    def watched(batch):
        hidden = forward(batch)
        seen.append((len(batch.token_ids), len(hidden)))
        return hidden

    monkeypatch.setattr(decoder, "forward", watched)
    return seen


@on_every_device
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_rows_that_somebody_looks_at_are_computed_to_the_end(
    load, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """One row for each token that is sampled, none for a chunk in the middle of a prompt."""
    loaded = load("qwen2")
    engine = loaded.engine(dtype=dtype, max_num_batched_tokens=40, prompt_lookup_tokens=0)
    seen = step_rows(engine, monkeypatch)
    asked = [(prompt(1, 100), loaded.dense), (prompt(2, 10), loaded.variant(NARROW))]
    outputs = generate(engine, asked)
    assert seen[:4] == [(40, 0), (40, 0), (30, 2), (2, 2)]
    for (token_ids, variant), output in zip(asked, outputs, strict=True):
        assert logit_gap(loaded.reference(variant), token_ids, output) <= (TIE if dtype == "float32" else 0.1)


@on_every_device
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scored_rows_are_computed_to_the_end_too(load, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    loaded = load("qwen2")
    engine = loaded.engine(dtype=dtype, max_num_batched_tokens=64)
    seen = step_rows(engine, monkeypatch)
    token_ids = prompt(3, 50)
    scored = Request("s", token_ids, loaded.dense, GREEDY, scoring=ScoringParams(start=31))
    beside = Request("b", prompt(4, 10), loaded.dense, dataclasses.replace(GREEDY, max_tokens=1))
    for request in (beside, scored):
        engine.add(request)
    while engine.num_unfinished:
        engine.step()
    # Rows 30 to 48 score tokens 31 to 49; row 49 and the other prompt's last are sampled.
    assert seen[0] == (60, 19 + 1 + 1)
    with torch.no_grad():
        logits = loaded.reference(loaded.dense)(torch.tensor([token_ids])).logits[0].float()
    expected = logits.log_softmax(-1)[range(30, 49), token_ids[31:]]
    found = torch.tensor([token.logprob for token in scored.scored])
    assert (found - expected).abs().max() < (1e-3 if dtype == "float32" else 0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_likeliest_tokens_are_those_of_the_logits(
    load, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Exactly: greedy answers do not depend on whether somebody in the batch wants more than the token."""
    loaded = load("llama")

    def answers(*, with_logprobs: bool) -> list[list[int]]:
        engine = loaded.engine(dtype=dtype, max_num_batched_tokens=400)
        decoder, calls = decoder_of(engine), []
        for name in ("logits", "likeliest"):
            function = getattr(decoder, name)
            monkeypatch.setattr(
                decoder, name, lambda h, f=function, n=name: (calls.extend([n] * len(h)), f(h))[1]
            )
        wanted = dataclasses.replace(GREEDY, logprobs=1 if with_logprobs else None)
        requests = [
            Request(str(i), prompt(i, 20 + i), loaded.dense, wanted if i == 0 else GREEDY) for i in range(6)
        ]
        for request in requests:
            engine.add(request)
        while engine.num_unfinished:
            engine.step()
        assert ("likeliest" in calls) != with_logprobs
        return [request.output_token_ids for request in requests]

    assert answers(with_logprobs=True) == answers(with_logprobs=False)


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        ({}, True),
        ({"seed": 3, "stop": ("x",), "top_p": 0.5}, True),
        ({"temperature": 0.1}, False),
        ({"logit_bias": {1: 2.0}}, False),
        ({"logprobs": 0}, False),
        ({"recorded_logprobs": 0}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"presence_penalty": 0.1}, False),
        ({"frequency_penalty": 0.1}, False),
    ],
    ids=str,
)
def test_who_needs_no_logits(change: dict, plain: bool) -> None:
    sampling = SamplingParams(max_tokens=1, **{"temperature": 0.0, **change})
    assert sampling.is_plainly_greedy == plain


def test_a_bias_is_heeded_beside_plainly_greedy_requests(loaded: Loaded) -> None:
    engine = loaded.engine()
    biased = dataclasses.replace(GREEDY, logit_bias={7: 100.0})
    requests = [Request(str(i), prompt(i, 9), loaded.dense, (GREEDY, biased)[i % 2]) for i in range(4)]
    for request in requests:
        engine.add(request)
    while engine.num_unfinished:
        engine.step()
    assert all(set(request.output_token_ids) == {7} for request in requests[1::2])
    assert all(set(request.output_token_ids) != {7} for request in requests[::2])


@on_every_device
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_others_left_in_the_cache_is_not_seen(load, dtype: str) -> None:
    """Not even where it is no number, which a mask does not hide."""
    loaded = load("qwen2")
    asked = [(prompt(n, length), loaded.dense) for n, length in enumerate((3, 20, 41))]
    engine = loaded.engine(dtype=dtype, prompt_lookup_tokens=0, enable_prefix_caching=False)
    expected = generate(engine, asked)
    for kv in decoder_of(engine)._kv:
        kv.keys.fill_(torch.nan)
        kv.values.fill_(torch.nan)
    assert generate(engine, asked) == expected
