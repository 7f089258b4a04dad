"""The scheduler alone: random sequences of arrivals, steps and aborts; no model."""

import dataclasses
from contextlib import ExitStack
from itertools import chain
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.engine import scheduler as scheduler_module
from server.engine.kv_cache import BlockPool
from server.engine.request import (
    BACKGROUND,
    FinishReason,
    Request,
    SamplingParams,
    ScoringParams,
    TokenLogprobs,
)
from server.engine.scheduler import Scheduler
from server.engine.scheduler_output import SchedulerOutput
from server.engine.variant import Variant
from tests.server.engine.support import SCHEDULING as CONFIG

EOS = 7
# Of CONFIG's size; prompts made of a few agree and differ in the first, in the middle or at the end.
BLOCKS = [[1, 1, 1, 1], [1, 2, 1, 2], [2, 2, 2, 2]]
VARIANTS = [Variant(f"m:s{n}", n / 100, n / 100, (100 - n,), 0, 0) for n in (0, 20)]


def scheduler_and_pool(num_blocks: int = 10, **limits) -> tuple[Scheduler, BlockPool]:
    config = dataclasses.replace(CONFIG, **limits)
    pool = BlockPool(num_blocks, config.block_size, enable_prefix_caching=config.enable_prefix_caching)
    return Scheduler(config, pool, frozenset([EOS])), pool


# Of a size that matters to steps of 16 tokens.
LIMITS = {
    "MAX_SCORED_ROWS": 5,
    "MAX_BACKGROUND_TOKENS_BESIDE_USERS": 4,
    "MAX_BACKGROUND_TOKENS_ALONE": 8,
}


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LIMITS.items():
        monkeypatch.setattr(scheduler_module, name, value)


def request(
    name: str,
    prompt: int | list[int],
    max_tokens: int = 4,
    variant: int = 0,
    priority: int = 0,
    start: int | None = None,
    **sampling,
) -> Request:
    """`prompt`: its tokens, or how many; `start`: of scoring, None for none."""
    token_ids = [1] * prompt if isinstance(prompt, int) else prompt
    params = SamplingParams(max_tokens=max_tokens, **sampling)
    scoring = None if start is None else ScoringParams(start)
    return Request(name, token_ids, VARIANTS[variant], params, priority=priority, scoring=scoring)


def compute(
    scheduler: Scheduler, output: SchedulerOutput, token: int = 1
) -> list[tuple[Request, int | None, FinishReason | None]]:
    """What the model runner would do, without a model: every token is `token`; a score tells its row."""
    sampled = {
        item.request.request_id: [token] * (1 + len(item.guesses))
        for item in output.scheduled
        if item.num_samples
    }
    scored = {
        item.request.request_id: [TokenLogprobs(row, 0.0, ()) for row in item.rows_to_score]
        for item in output.scheduled
    }
    return scheduler.update(output, sampled, scored)


def step(scheduler: Scheduler, token: int = 1) -> list[tuple[str, FinishReason | None]]:
    return [(r.request_id, reason) for r, _, reason in compute(scheduler, scheduler.schedule(), token)]


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever comes, every request gets exactly its tokens and scores, in a pool too small for all."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = ExitStack()
        for name, value in LIMITS.items():
            self.limits.enter_context(mock.patch.object(scheduler_module, name, value))
        self.scheduler, self.pool = scheduler_and_pool()
        self.count = 0
        self.live: dict[str, Request] = {}

    @rule(
        blocks=st.lists(st.sampled_from(BLOCKS), max_size=7),
        rest=st.lists(st.integers(1, 2), min_size=1, max_size=3),
        max_tokens=st.integers(0, 10),
        variant=st.integers(0, 1),
        priority=st.integers(0, 1),
        start=st.none() | st.integers(1, 30),
    )
    def arrive(
        self,
        blocks: list[list[int]],
        rest: list[int],
        max_tokens: int,
        variant: int,
        priority: int,
        start: int | None,
    ) -> None:
        self.count += 1
        prompt = [*chain(*blocks), *rest][:30]
        start = None if start is None else min(start, len(prompt))
        new = request(str(self.count), prompt, max_tokens, variant, priority, start)
        self.live[new.request_id] = new
        self.scheduler.add(new)

    @precondition(lambda self: self.live)
    @rule()
    def step(self) -> None:
        output = self.scheduler.schedule()
        assert output.scheduled, "requests are unfinished, but nothing is computed"
        assert sum(item.num_tokens for item in output.scheduled) <= CONFIG.max_num_batched_tokens
        assert sum(len(item.rows_to_score) for item in output.scheduled) <= LIMITS["MAX_SCORED_ROWS"]
        assert len(self.scheduler.running) <= CONFIG.max_num_seqs
        names = [item.request.request_id for item in output.scheduled]
        assert len(set(names)) == len(names)
        for item in output.scheduled:
            r = item.request
            assert item.num_tokens > 0
            reached = r.num_computed_tokens + item.num_tokens
            assert reached <= r.num_tokens
            assert len(r.block_table) == self.pool.blocks_for(reached)
        for r, token, reason in compute(self.scheduler, output):
            assert (token is None) == (r.sampling.max_tokens == 0)
            assert (reason is FinishReason.LENGTH) == (len(r.output_token_ids) == r.sampling.max_tokens)
            if r.scoring is not None:
                rows = [score.token_id for score in r.scored]
                assert rows == list(range(r.scoring.start - 1, len(r.prompt_token_ids) - 1))
            if reason is not None:
                assert r.block_table == []
                del self.live[r.request_id]

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.scheduler.abort(self.live.pop(data.draw(st.sampled_from(sorted(self.live)))))

    @invariant()
    def blocks_belong_to_running_requests(self) -> None:
        running = self.scheduler.running
        held = {block for r in running for block in r.block_table}
        assert self.pool.num_free == self.pool.num_blocks - len(held)
        assert all(r.block_table == [] for r in self.scheduler.waiting)
        assert {r.request_id for r in [*running, *self.scheduler.waiting]} == set(self.live)
        assert self.scheduler.num_background == sum(r.is_background for r in self.live.values())

    @invariant()
    def only_equal_prefixes_of_equal_variants_share(self) -> None:
        """What is in a block depends on its tokens, and on all before them."""
        owners: dict[int, tuple[Variant, list[int]]] = {}
        for r in self.scheduler.running:
            for index, block in enumerate(r.block_table):
                prefix = r.variant, r.slice_tokens(0, (index + 1) * CONFIG.block_size)
                assert owners.setdefault(block, prefix) == prefix

    def teardown(self) -> None:
        with self.limits:
            for _ in range(2000):
                if not self.live:
                    break
                self.step()
            assert not self.live
            assert self.pool.num_free == self.pool.num_blocks


class PriorityMachine(RuleBasedStateMachine):
    """Users are given in every step what they are given where there is no background.

    Without the prefix cache: what one finds there depends on what others left.
    """

    def __init__(self) -> None:
        super().__init__()
        self.limits = ExitStack()
        for name, value in LIMITS.items():
            self.limits.enter_context(mock.patch.object(scheduler_module, name, value))
        self.mixed, self.mixed_pool = scheduler_and_pool(enable_prefix_caching=False)
        self.alone, _ = scheduler_and_pool(enable_prefix_caching=False)
        self.count = 0
        self.live: dict[str, tuple[Request, ...]] = {}

    @rule(length=st.integers(1, 30), max_tokens=st.integers(0, 10), start=st.none() | st.just(1))
    def user(self, length: int, max_tokens: int, start: int | None) -> None:
        self.count += 1
        name = f"u{self.count}"
        twins = tuple(request(name, length, max_tokens, start=start) for _ in range(2))
        for scheduler, twin in zip((self.mixed, self.alone), twins, strict=True):
            scheduler.add(twin)
        self.live[name] = twins

    @rule(length=st.integers(1, 30), max_tokens=st.integers(0, 10), start=st.none() | st.just(1))
    def background(self, length: int, max_tokens: int, start: int | None) -> None:
        self.count += 1
        new = request(f"b{self.count}", length, max_tokens, priority=BACKGROUND, start=start)
        self.mixed.add(new)
        self.live[new.request_id] = (new,)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        for scheduler, twin in zip(
            (self.mixed, self.alone),
            self.live.pop(data.draw(st.sampled_from(sorted(self.live)))),
            strict=False,
        ):
            scheduler.abort(twin)

    @precondition(lambda self: self.live)
    @rule()
    def step(self) -> None:
        waited = self.mixed.num_waiting_users
        ran = {r.request_id for r in self.mixed.running}
        output = self.mixed.schedule()
        given = [
            (item.request.request_id, item.num_tokens)
            for item in output.scheduled
            if not item.request.is_background
        ]
        background = [item for item in output.scheduled if item.request.is_background]
        most = "BESIDE_USERS" if given else "ALONE"
        assert sum(item.num_tokens for item in background) <= LIMITS[f"MAX_BACKGROUND_TOKENS_{most}"]
        if waited and self.mixed.num_waiting_users:
            assert {item.request.request_id for item in background} <= ran, "let in while a user waits"
        if self.alone.num_unfinished:
            expected = self.alone.schedule()
            assert given == [(item.request.request_id, item.num_tokens) for item in expected.scheduled]
            assert output.preemptions == expected.preemptions
            compute(self.alone, expected)
        for r, _, reason in compute(self.mixed, output):
            if reason is not None:
                del self.live[r.request_id]

    def teardown(self) -> None:
        with self.limits:
            for _ in range(2000):
                if not self.live:
                    break
                self.step()
            assert not self.live
            assert self.mixed_pool.num_free == self.mixed_pool.num_blocks


TestPriority = PriorityMachine.TestCase
TestPriority.settings = settings(stateful_step_count=40)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(stateful_step_count=40)


def test_decodes_go_on_while_a_long_prompt_is_computed_in_chunks() -> None:
    scheduler, _ = scheduler_and_pool(num_blocks=20)
    scheduler.add(request("short", 3, max_tokens=10))
    step(scheduler)
    scheduler.add(request("long", 30))
    assert step(scheduler) == [("short", None)]  # 1 + 15 of the 16 tokens
    assert step(scheduler) == [("short", None), ("long", None)]


def test_first_come_first_served_across_variants() -> None:
    scheduler, _ = scheduler_and_pool(max_num_seqs=2)
    for name, variant in (("a", 0), ("b", 1), ("c", 0)):
        scheduler.add(request(name, 4, max_tokens=2, variant=variant))
    assert [name for name, _ in step(scheduler)] == ["a", "b"]
    assert [name for name, _ in step(scheduler)] == ["a", "b"]
    assert [name for name, _ in step(scheduler)] == ["c"]


def test_the_last_to_come_is_preempted_and_computed_again() -> None:
    scheduler, _ = scheduler_and_pool(num_blocks=4, enable_prefix_caching=False)
    first, second = request("first", 8, 8), request("second", 8, 8)
    scheduler.add(first)
    scheduler.add(second)
    step(scheduler)  # all four blocks are full; both need a fifth
    output = scheduler.schedule()
    assert output.preemptions == 1
    assert [item.request for item in output.scheduled] == [first]
    assert scheduler.waiting[0] is second
    assert second.output_token_ids == [1]
    assert second.num_computed_tokens == 0


def test_a_prompt_is_looked_up_once_however_often_it_comes_in() -> None:
    scheduler, _ = scheduler_and_pool(num_blocks=6)
    prompts = [1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4, 3, 2]
    for name, tokens in zip("ab", prompts, strict=True):
        scheduler.add(request(name, tokens, max_tokens=12, ignore_eos=True))
    looked_up = found = preemptions = 0
    while scheduler.num_unfinished:
        output = scheduler.schedule()
        looked_up, found = looked_up + output.prefix_queries, found + output.prefix_hits
        preemptions += output.preemptions
        compute(scheduler, output)
    assert preemptions
    assert (looked_up, found) == (16, 0)


def test_end_of_sequence_and_stop_tokens() -> None:
    def reason_for(token: int, **sampling) -> FinishReason | None:
        scheduler, _ = scheduler_and_pool()
        scheduler.add(request("r", 2, max_tokens=2, **sampling))
        [(_, reason)] = step(scheduler, token)
        return reason

    assert reason_for(EOS) is FinishReason.STOP
    assert reason_for(EOS, ignore_eos=True) is None
    assert reason_for(3) is None
    assert reason_for(3, stop_token_ids=frozenset([3])) is FinishReason.STOP
    assert reason_for(EOS, ignore_eos=True, stop_token_ids=frozenset([EOS])) is FinishReason.STOP


def test_a_user_takes_the_seat_of_the_background_request_that_came_last() -> None:
    scheduler, _ = scheduler_and_pool(num_blocks=20, max_num_seqs=2)
    for name in ("b1", "b2"):
        scheduler.add(request(name, 4, max_tokens=10, priority=BACKGROUND))
    assert [name for name, _ in step(scheduler)] == ["b1", "b2"]
    scheduler.add(request("user", 4, max_tokens=2))
    assert [name for name, _ in step(scheduler)] == ["user", "b1"]
    assert [r.request_id for r in scheduler.waiting] == ["b2"]
    assert [name for name, _ in step(scheduler)] == ["user", "b1"]  # its last
    assert [name for name, _ in step(scheduler)] == ["b1", "b2"]  # b2 goes on with what it had
    assert [len(r.output_token_ids) for r in scheduler.running] == [4, 2]


def test_background_gives_its_blocks_to_a_user_that_grows() -> None:
    scheduler, _ = scheduler_and_pool(num_blocks=4, enable_prefix_caching=False)
    scheduler.add(request("user", 8, 8))
    scheduler.add(request("background", 7, 8, priority=BACKGROUND))
    step(scheduler)
    output = scheduler.schedule()  # all four blocks are held, and the user needs a third
    assert [item.request.request_id for item in output.scheduled] == ["user"]
    assert output.preemptions == 0  # of users
    assert [r.request_id for r in scheduler.waiting] == ["background"]


def test_scored_rows_are_computed_and_only_those(small_limits: None) -> None:
    """A prefix in the cache serves up to the first row that is scored; a chunk ends where rows run out."""
    scheduler, _ = scheduler_and_pool(num_blocks=40)
    scheduler.add(request("first", 24, max_tokens=0))
    while scheduler.num_unfinished:
        step(scheduler)
    scoring = request("scoring", 24, max_tokens=0, start=14)
    scheduler.add(scoring)
    chunks = []
    while scheduler.num_unfinished:
        output = scheduler.schedule()
        [item] = output.scheduled
        chunks.append((scoring.num_computed_tokens, item.num_tokens, item.rows_to_score))
        compute(scheduler, output)
    assert chunks == [(12, 6, range(13, 18)), (18, 6, range(18, 23))]


def test_who_waits_for_scored_rows_holds_up_no_one(small_limits: None) -> None:
    scheduler, _ = scheduler_and_pool(num_blocks=40)
    for name in ("a", "b", "c"):
        scheduler.add(request(name, 12, max_tokens=0, start=1))
    scheduler.add(request("user", 4))
    first = [item.request.request_id for item in scheduler.schedule().scheduled]
    assert first == ["a", "user"]
    assert [waiting.request_id for waiting in scheduler.waiting] == ["b", "c"], "in their order"


def test_scores_survive_a_preemption(small_limits: None) -> None:
    scheduler, _ = scheduler_and_pool(max_num_seqs=1)
    scoring = request("scoring", 12, max_tokens=1, priority=BACKGROUND, start=1)
    scheduler.add(scoring)
    step(scheduler)
    assert [score.token_id for score in scoring.scored] == [0, 1, 2, 3, 4]
    scheduler.add(request("user", 2, max_tokens=1))
    while scheduler.num_unfinished:
        step(scheduler)
    assert [score.token_id for score in scoring.scored] == list(range(11))
    assert scoring.output_token_ids == [1]


def test_a_preempted_request_comes_before_those_that_wait() -> None:
    scheduler, _ = scheduler_and_pool(num_blocks=20, max_num_seqs=2)
    for name in ("b1", "b2", "b3"):
        scheduler.add(request(name, 4, max_tokens=10, priority=BACKGROUND))
    step(scheduler)
    for name in ("u1", "u2"):
        scheduler.add(request(name, 4, max_tokens=1))
    assert [name for name, _ in step(scheduler)] == ["u1", "u2"]
    assert [r.request_id for r in scheduler.waiting] == ["b1", "b2", "b3"]
