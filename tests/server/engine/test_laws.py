"""What is true of the whole engine at all times (DESIGN, section 5), on every family."""

import dataclasses

import pytest
import torch

from server.engine import weights
from server.engine.errors import EngineConfigError, PromptTooLongError
from server.engine.request import Request, SamplingParams
from tests.server.engine.support import GREEDY, Loaded, generate, logit_gap, on_every_device, prompt

pytestmark = on_every_device

# Deliberately uneven: a width per layer, nested.
NARROW, MIDDLE = (64, 96, 32), (160, 96, 128)

# Float32 sums in another order: a batch of other shape may move a logit by this much, so greedy tokens may
# differ where two logits are closer than that. Nowhere else.
TIE = 1e-3


def test_dense_variant_is_the_model(loaded: Loaded) -> None:
    engine = loaded.engine()
    prompts = [prompt(seed, length) for seed, length in enumerate((1, 7, 8, 9, 60, 150))]
    outputs = generate(engine, [(p, loaded.dense) for p in prompts])
    reference = loaded.reference(loaded.dense)
    for token_ids, output in zip(prompts, outputs, strict=True):
        assert len(output) == GREEDY.max_tokens
        assert logit_gap(reference, token_ids, output) <= TIE


@pytest.mark.parametrize("rows_per_slice", [1024, 50], ids=["read whole", "read in slices"])
def test_a_view_is_the_slice(loaded: Loaded, rows_per_slice: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of three widths in one batch, each against a checkpoint that holds only its neurons."""
    monkeypatch.setattr(weights, "_ROWS_PER_SLICE", rows_per_slice)
    variants = [loaded.dense, loaded.variant(MIDDLE), loaded.variant(NARROW)]
    asked = [(prompt(seed, 20 + 17 * seed), variants[seed % 3]) for seed in range(7)]
    outputs = generate(loaded.engine(), asked)
    references = {variant: loaded.reference(variant) for variant in variants}
    for (token_ids, variant), output in zip(asked, outputs, strict=True):
        assert logit_gap(references[variant], token_ids, output) <= TIE
    # The widths matter: the narrow network is another one.
    assert logit_gap(references[variants[2]], asked[0][0], outputs[0]) > 10 * TIE


def test_widest_variant_bounds_what_is_loaded(loaded: Loaded) -> None:
    """An engine that never saw the other neurons gives the same answers and holds fewer bytes."""
    middle, narrow = loaded.variant(MIDDLE), loaded.variant(NARROW)
    asked = [(prompt(1, 30), middle), (prompt(2, 30), narrow)]
    whole, cut = loaded.engine(), loaded.engine(MIDDLE)
    assert generate(cut, asked) == generate(whole, asked)
    removed = sum(192 - width for width in MIDDLE)
    assert whole.weight_bytes - cut.weight_bytes == removed * 3 * 64 * 4
    assert whole.standalone_bytes(MIDDLE) == cut.weight_bytes
    assert cut.resident_widths == MIDDLE


def test_parameters_are_counted_as_transformers_does(loaded: Loaded) -> None:
    engine = loaded.engine()
    for widths in (loaded.dense.widths, MIDDLE, NARROW):
        reference = loaded.reference(loaded.variant(widths))
        assert engine.parameters(widths) == reference.num_parameters()
        assert engine.standalone_bytes(widths) == 4 * reference.num_parameters()


def test_batch_independence(loaded: Loaded) -> None:
    variants = [loaded.dense, loaded.variant(NARROW), loaded.variant(MIDDLE)]
    asked = [(prompt(10 + seed, 5 + 9 * seed), variants[seed % 3]) for seed in range(6)]
    together = generate(loaded.engine(), asked)
    for one, output in zip(asked, together, strict=True):
        [alone] = generate(loaded.engine(), [one])
        if alone != output:  # only at a tie
            assert logit_gap(loaded.reference(one[1]), one[0], output) <= TIE


@pytest.mark.parametrize("budget", [16, 23, 400])
def test_chunked_prefill_changes_nothing(load, budget: int) -> None:
    loaded = load("qwen2")
    asked = [(prompt(seed, 100), loaded.dense) for seed in range(3)]
    engine = loaded.engine(max_num_batched_tokens=budget)
    reference = loaded.reference(loaded.dense)
    for (token_ids, _), output in zip(asked, generate(engine, asked), strict=True):
        assert logit_gap(reference, token_ids, output) <= TIE


def test_preemption_changes_nothing_and_returns_every_block(load) -> None:
    loaded = load("llama")
    bytes_per_block = 2 * 3 * 2 * 16 * 4 * 8
    engine = loaded.engine(kv_cache_bytes=32 * bytes_per_block)  # of 8 tokens: two of the requests fill it
    sampling = SamplingParams(max_tokens=90, temperature=0, ignore_eos=True)
    asked = [(prompt(seed, 40), loaded.dense) for seed in range(4)]
    requests = [Request(str(i), p, v, sampling) for i, (p, v) in enumerate(asked)]
    for request in requests:
        engine.add(request)
    preemptions = 0
    while engine.num_unfinished:
        _, stats = engine.step()
        preemptions += stats.preemptions
    assert preemptions > 0
    reference = loaded.reference(loaded.dense)
    for request in requests:
        assert len(request.output_token_ids) == 90
        assert logit_gap(reference, request.prompt_token_ids, request.output_token_ids) <= TIE
        assert request.num_cached_tokens == 0, "what it had computed itself was no other's"
    assert engine.num_free_kv_blocks == engine.num_kv_blocks == 32


def test_prefix_is_reused_at_its_own_width_only(load) -> None:
    loaded = load("qwen3")
    engine = loaded.engine()
    narrow = loaded.variant(NARROW)
    shared = prompt(3, 64)

    def cached_tokens(token_ids: list[int], variant) -> int:
        request = Request("r", token_ids, variant, GREEDY)
        engine.add(request)
        while engine.num_unfinished:
            engine.step()
        assert logit_gap(loaded.reference(variant), token_ids, request.output_token_ids) <= TIE
        return request.num_cached_tokens

    assert cached_tokens(shared, loaded.dense) == 0
    assert cached_tokens([*shared, 1, 2, 3], loaded.dense) == 64
    assert cached_tokens(shared, loaded.dense) == 56  # the last token is always computed
    assert cached_tokens([*shared, 1, 2, 3], narrow) == 0
    assert cached_tokens([*shared, 9], narrow) == 64


def test_only_what_is_alike_up_to_a_blocks_end_is_shared(load) -> None:
    """A block whose tokens are another's, after another beginning, is not that block."""
    loaded = load("llama")
    engine = loaded.engine()
    blocks = [prompt(seed, 8) for seed in range(4)]
    first, swapped = [*blocks[0], *blocks[1], *blocks[2], 1], [*blocks[3], *blocks[1], *blocks[2], 1]
    branched = [*blocks[0], *blocks[3], *blocks[2], 1]

    def cached_tokens(token_ids: list[int]) -> int:
        request = Request("r", token_ids, loaded.dense, GREEDY)
        engine.add(request)
        while engine.num_unfinished:
            engine.step()
        assert logit_gap(loaded.reference(loaded.dense), token_ids, request.output_token_ids) <= TIE
        return request.num_cached_tokens

    assert [cached_tokens(ids) for ids in (first, swapped, branched)] == [0, 0, 8]


def test_sliding_windows(load) -> None:
    loaded = load("mistral", sliding_window=20)
    token_ids = prompt(4, 90)
    for budget in (16, 96):  # in chunks and whole
        [output] = generate(loaded.engine(max_num_batched_tokens=budget), [(token_ids, loaded.dense)])
        assert logit_gap(loaded.reference(loaded.dense), token_ids, output) <= TIE
    full = load("mistral")
    assert logit_gap(full.reference(full.dense), token_ids, output) > TIE


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 10_000.0,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10_000.0},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_rotary_embeddings(load, rope: dict) -> None:
    loaded = load("llama", rope_parameters=rope)
    token_ids = prompt(5, 120)
    [output] = generate(loaded.engine(), [(token_ids, loaded.dense)])
    assert logit_gap(loaded.reference(loaded.dense), token_ids, output) <= TIE


@pytest.mark.parametrize(("dtype", "tie"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_half_precision(load, dtype: str, tie: float) -> None:
    """Rounding to 8 (11) bits moves these logits, of size 1 to 4, by up to `tie`."""
    loaded = load("qwen2")
    variants = [loaded.dense, loaded.variant(NARROW)]
    asked = [(prompt(seed, 50), variants[seed % 2]) for seed in range(4)]
    outputs = generate(loaded.engine(dtype=dtype), asked)
    for (token_ids, variant), output in zip(asked, outputs, strict=True):
        assert logit_gap(loaded.reference(variant), token_ids, output) <= tie


def test_untied_head_and_tied_head_are_counted_once(load) -> None:
    tied, untied = load("llama", tie_word_embeddings=True), load("llama")
    assert untied.engine().weight_bytes - tied.engine().weight_bytes == 320 * 64 * 4


def test_a_request_that_cannot_finish_is_refused(load) -> None:
    loaded = load("qwen2")
    engine = loaded.engine()
    sampling = dataclasses.replace(GREEDY, max_tokens=100)
    engine.add(Request("fits", prompt(0, 156), loaded.dense, sampling))
    with pytest.raises(
        PromptTooLongError, match=r"157 tokens and the answer up to 100; .* 256 \(max_model_len\)"
    ):
        engine.add(Request("does not", prompt(0, 157), loaded.dense, sampling))


def test_a_device_without_room_is_refused(load, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a full GPU, which raises what torch raises there."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB. See documentation")

    monkeypatch.setattr("server.engine.engine.load_weights", full)
    with pytest.raises(
        EngineConfigError, match=r"no room for .* and 0\.00391 GiB .*kv_cache_gib.*4\.00 GiB$"
    ):
        load("qwen2").engine()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"kv_cache_bytes": 100_000}, "KV cache hold .* but max_model_len is 256"),
        ({"max_model_len": 513}, "positions end at 512"),
        ({"max_num_seqs": 200}, "below max_num_seqs"),
    ],
)
def test_contradicting_limits_are_refused(load, limits: dict, message: str) -> None:
    with pytest.raises(EngineConfigError, match=message):
        load("qwen2").engine(**limits)
