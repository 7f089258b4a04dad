"""Guessing ahead: what is guessed, and that no answer changes by it. No model but for the last test."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.kv_cache import BlockPool
from server.engine.lookup import Lookup, num_right
from server.engine.request import BACKGROUND, FinishReason, Request, SamplingParams
from server.engine.scheduler import MAX_BACKGROUND_TOKENS_BESIDE_USERS, Scheduler
from server.engine.scheduler_output import SchedulerOutput
from server.engine.variant import Variant
from tests.server.engine.support import GREEDY, SCHEDULING, generate, prompt

EOS = 4
CONFIG = dataclasses.replace(SCHEDULING, max_model_len=80, prompt_lookup_tokens=8)
VARIANT = Variant("m:s0", 0, 0, (100,), 0, 0)


def request(tokens: list[int], max_tokens: int = 20, priority: int = 0, **sampling) -> Request:
    sampling = {"temperature": 0, **sampling}
    params = SamplingParams(max_tokens=max_tokens, **sampling)
    return Request("r", tokens, VARIANT, params, priority=priority)


def network(tokens: list[int]) -> int:
    """A next token that follows from all tokens before, and often repeats what was said."""
    return (3 * tokens[-1] + tokens[-2] + (len(tokens) % 7 == 0)) % 5


def compute(scheduler: Scheduler, output: SchedulerOutput) -> None:
    sampled = {}
    for item in output.scheduled:
        if item.num_samples:
            tokens = [*item.request.prompt_token_ids, *item.request.output_token_ids]
            texts = [tokens + list(item.guesses[:n]) for n in range(1 + len(item.guesses))]
            sampled[item.request.request_id] = [network(text) for text in texts]
    scheduler.update(output, sampled, {})


def test_guesses_what_followed_the_last_time() -> None:
    lookup = Lookup()
    r = request([1, 2, 3, 9, 8, 1, 2, 3, 7, 6, 1, 2, 3])
    assert lookup.guess(r, 1) == (7,)
    assert lookup.guess(r, 4) == (7, 6, 1, 2)
    assert lookup.guess(r, 8) == (7, 6, 1, 2, 3, 7, 6, 1)  # it goes on as it has
    r.output_token_ids.append(5)
    assert lookup.guess(r, 8) == ()
    r.output_token_ids += [1, 2, 3]
    assert lookup.guess(r, 2) == (5, 1)


def test_short_texts_have_nothing_to_go_by() -> None:
    assert Lookup().guess(request([1, 1]), 4) == ()
    assert Lookup().guess(request([1, 1, 1]), 4) == ()


def test_right_guesses_end_at_the_first_wrong_one() -> None:
    assert num_right((1, 2, 3), [1, 2, 3, 4]) == 3
    assert num_right((1, 2, 3), [1, 9, 3, 4]) == 1
    assert num_right((), [1]) == 0


@given(
    prompts=st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=40), min_size=1, max_size=3),
    max_tokens=st.integers(1, 36),
    ignore_eos=st.booleans(),
    spare_blocks=st.integers(0, 20),  # with none, the longest has room alone and throws the others out
)
def test_no_answer_changes(
    prompts: list[list[int]], max_tokens: int, ignore_eos: bool, spare_blocks: int
) -> None:
    answers = []
    for lookup_tokens in (0, 8):
        num_blocks = (max(map(len, prompts)) + max_tokens + 3) // 4 + spare_blocks
        pool = BlockPool(num_blocks, 4, enable_prefix_caching=True)
        config = dataclasses.replace(CONFIG, prompt_lookup_tokens=lookup_tokens)
        scheduler = Scheduler(config, pool, frozenset([EOS]))
        requests = [
            dataclasses.replace(request(tokens, max_tokens, ignore_eos=ignore_eos), request_id=str(i))
            for i, tokens in enumerate(prompts)
        ]
        for r in requests:
            scheduler.add(r)
        while scheduler.num_unfinished:
            output = scheduler.schedule()
            rows = sum(item.num_tokens for item in output.scheduled)
            guesses = sum(len(item.guesses) for item in output.scheduled)
            assert rows + guesses <= max(rows, lookup_tokens)
            for item in output.scheduled:
                last = item.request.num_computed_tokens + item.num_tokens + len(item.guesses)
                assert last < len(item.request.prompt_token_ids) + max_tokens
            sampling = [item.request for item in output.scheduled if item.num_samples]
            compute(scheduler, output)
            for r in scheduler.running:
                assert r not in sampling or r.num_computed_tokens == r.num_tokens - 1
                assert len(r.block_table) == pool.blocks_for(r.num_computed_tokens), (
                    "a wrong guess keeps none"
                )
        assert pool.num_free == pool.num_blocks
        answers.append([r.output_token_ids for r in requests])
    assert answers[0] == answers[1]


def test_background_takes_no_guesses_from_users() -> None:
    scheduler = Scheduler(CONFIG, BlockPool(40, 4, enable_prefix_caching=True), frozenset())
    user = request([1] * 8, max_tokens=30)
    beside = dataclasses.replace(request([2] * 20, max_tokens=30), request_id="b", priority=BACKGROUND)
    scheduler.add(user)
    scheduler.add(beside)
    for _ in range(3):
        output = scheduler.schedule()
        [item] = [item for item in output.scheduled if item.request is user]
        computed = sum(item.num_tokens for item in output.scheduled if item.request is beside)
        assert len(item.guesses) == CONFIG.prompt_lookup_tokens - item.num_tokens
        assert 0 < computed <= MAX_BACKGROUND_TOKENS_BESIDE_USERS - len(item.guesses)
        sampling = [item for item in output.scheduled if item.num_samples]
        scheduler.update(output, {i.request.request_id: [1] * (1 + len(i.guesses)) for i in sampling}, {})


def test_a_repeated_text_takes_fewer_steps() -> None:
    scheduler = Scheduler(CONFIG, BlockPool(24, 4, enable_prefix_caching=True), frozenset())
    r = request([1, 1, 1, 1], max_tokens=21)
    scheduler.add(r)
    steps = 0
    while scheduler.num_unfinished:
        output = scheduler.schedule()
        scheduler.update(output, {"r": [1] * (1 + len(output.scheduled[0].guesses))}, {})
        steps += 1
    assert r.output_token_ids == [1] * 21
    assert steps == 3  # of 5, 8 and 8 tokens


def test_an_answer_ends_within_its_guesses() -> None:
    config = dataclasses.replace(CONFIG, prompt_lookup_tokens=16)
    scheduler = Scheduler(config, BlockPool(24, 4, enable_prefix_caching=True), frozenset([EOS]))
    r = request([1, 2, 3, EOS, 9, 1, 2, 3])
    scheduler.add(r)
    output = scheduler.schedule()
    guesses = output.scheduled[0].guesses
    assert guesses == (EOS, 9, 1, 2, 3, EOS, 9, 1)
    assert scheduler.update(output, {"r": [*guesses, 2]}, {}) == [(r, EOS, FinishReason.STOP)]
    assert r.output_token_ids == [EOS]


@pytest.mark.parametrize(
    "held_back",
    [
        {"temperature": 1.0},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"priority": BACKGROUND},
    ],
)
def test_only_where_a_guess_can_be_checked(held_back: dict) -> None:
    scheduler = Scheduler(CONFIG, BlockPool(24, 4, enable_prefix_caching=True), frozenset())
    scheduler.add(request([1] * 8, **held_back))
    assert [item.guesses for item in scheduler.schedule().scheduled] == [()]


def test_the_engine_says_the_same_with_and_without(load) -> None:
    loaded = load("qwen2")
    narrow = loaded.variant(tuple(w // 2 for w in loaded.dense.widths))
    asked = [(prompt(seed, 20) * 3, variant) for seed in range(3) for variant in (loaded.dense, narrow)]
    plain = generate(loaded.engine(), asked)
    engine = loaded.engine(prompt_lookup_tokens=24)
    assert generate(engine, asked) == plain
    assert engine.num_free_kv_blocks == engine.num_kv_blocks
    assert all(len(answer) == GREEDY.max_tokens for answer in plain)
