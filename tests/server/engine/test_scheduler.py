"""The scheduler alone: random sequences of arrivals, steps and aborts; no model."""

import dataclasses

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.engine.config import EngineConfig
from server.engine.kv_cache import BlockPool
from server.engine.request import FinishReason, Request, SamplingParams
from server.engine.scheduler import Scheduler
from server.engine.variant import Variant

EOS = 7
CONFIG = EngineConfig(
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
VARIANTS = [Variant(f"m:s{n}", n / 100, n / 100, (100 - n,), 0, 0) for n in (0, 20)]


def scheduler_and_pool(num_blocks: int = 10, **limits) -> tuple[Scheduler, BlockPool]:
    config = dataclasses.replace(CONFIG, **limits)
    pool = BlockPool(num_blocks, config.block_size, enable_prefix_caching=config.enable_prefix_caching)
    return Scheduler(config, pool, frozenset([EOS])), pool


def request(name: str, length: int, max_tokens: int = 4, variant: int = 0, **sampling) -> Request:
    params = SamplingParams(max_tokens=max_tokens, **sampling)
    return Request(name, [1] * length, VARIANTS[variant], params)


def step(scheduler: Scheduler, token: int = 1) -> list[tuple[str, FinishReason | None]]:
    output = scheduler.schedule()
    sampled = {item.request.request_id: token for item in output.scheduled if item.samples}
    return [(r.request_id, reason) for r, _, reason in scheduler.update(output, sampled, {})]


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever comes, every request gets exactly its tokens, in a pool too small for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler, self.pool = scheduler_and_pool()
        self.count = 0
        self.live: dict[str, Request] = {}

    @rule(length=st.integers(1, 30), max_tokens=st.integers(1, 10), variant=st.integers(0, 1))
    def arrive(self, length: int, max_tokens: int, variant: int) -> None:
        self.count += 1
        new = request(str(self.count), length, max_tokens, variant)
        self.live[new.request_id] = new
        self.scheduler.add(new)

    @precondition(lambda self: self.live)
    @rule()
    def step(self) -> None:
        computed = {name: r.num_computed_tokens for name, r in self.live.items()}
        output = self.scheduler.schedule()
        assert output.scheduled, "requests are unfinished, but nothing is computed"
        assert sum(item.num_tokens for item in output.scheduled) <= CONFIG.max_num_batched_tokens
        assert len(self.scheduler.running) <= CONFIG.max_num_seqs
        names = [item.request.request_id for item in output.scheduled]
        assert len(set(names)) == len(names)
        for item in output.scheduled:
            r = item.request
            assert item.num_tokens > 0
            reached = r.num_computed_tokens + item.num_tokens
            assert reached <= r.num_tokens
            assert len(r.block_table) == self.pool.blocks_for(reached)
            assert r.num_computed_tokens in (computed[r.request_id], r.num_computed_tokens)
        sampled = {item.request.request_id: 1 for item in output.scheduled if item.samples}
        for r, _, reason in self.scheduler.update(output, sampled, {}):
            assert (reason is FinishReason.LENGTH) == (len(r.output_token_ids) == r.sampling.max_tokens)
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

    @invariant()
    def only_equal_prefixes_of_equal_variants_share(self) -> None:
        owners: dict[int, tuple[Variant, int]] = {}
        for r in self.scheduler.running:
            for index, block in enumerate(r.block_table):
                assert owners.setdefault(block, (r.variant, index)) == (r.variant, index)

    def teardown(self) -> None:
        for _ in range(2000):
            if not self.live:
                break
            self.step()
        assert not self.live
        assert self.pool.num_free == self.pool.num_blocks


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
