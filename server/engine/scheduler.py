"""Decides which request computes how many tokens in the next step. Knows blocks and counts, no tensors.

A decision is a number of tokens per request, which makes prefill, chunked prefill and decode one thing:
a request computes the tokens it has and has not computed yet, as many as the step's budget allows, and
gets a new token once it has caught up. Widths play no part: requests of all variants share every step,
first come, first served, so no variant waits for another's turn.

When blocks run out, the request that came last gives its blocks back and is computed again later.
"""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from server.engine.config import EngineConfig
from server.engine.kv_cache import BlockPool, hash_block
from server.engine.request import FinishReason, Request


@dataclass(frozen=True)
class ScheduledRequest:
    """`num_tokens` more of this request are computed in this step."""

    request: Request
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether the step brings the request up to date, so that it gets a new token."""
        return self.request.num_computed_tokens + self.num_tokens == self.request.num_tokens


@dataclass(frozen=True)
class SchedulerOutput:
    """One step. The prefix counts are tokens: looked up in, and found in, the prefix cache."""

    scheduled: tuple[ScheduledRequest, ...]
    preemptions: int
    prefix_queries: int
    prefix_hits: int


class Scheduler:
    """Continuous batching under one token budget per step."""

    def __init__(self, config: EngineConfig, pool: BlockPool, eos_token_ids: frozenset[int]) -> None:
        self._config = config
        self._pool = pool
        self._eos_token_ids = eos_token_ids
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def num_unfinished(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, request: Request) -> None:
        """Queues a request that is known to fit the pool when it runs alone."""
        self.waiting.append(request)

    def schedule(self) -> SchedulerOutput:
        """The next step. Allocates its blocks; moves requests between `waiting` and `running`."""
        budget = self._config.max_num_batched_tokens
        scheduled: list[ScheduledRequest] = []
        preemptions = prefix_queries = prefix_hits = 0

        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            num_tokens = min(request.num_tokens - request.num_computed_tokens, budget)
            num_blocks = self._num_missing_blocks(request, num_tokens)
            while num_blocks > self._pool.num_free and request in self.running:
                self._preempt(self.running[-1])
                preemptions += 1
            if request not in self.running:
                break
            request.block_table += self._pool.allocate(num_blocks)
            scheduled.append(ScheduledRequest(request, num_tokens))
            budget -= num_tokens
            index += 1

        while (
            self.waiting and not preemptions and budget > 0 and len(self.running) < self._config.max_num_seqs
        ):
            request = self.waiting[0]
            cached = self._find_prefix(request)
            num_needed = self._pool.blocks_for(request.num_tokens) - len(cached)
            # All of it must fit, not just the first chunk: else it would soon throw others out, or itself.
            if num_needed + self._pool.num_idle(cached) > self._pool.num_free:
                break
            self.waiting.popleft()
            self._pool.take(cached)
            request.block_table = cached
            request.num_computed_tokens = len(cached) * self._pool.block_size
            if request.first_scheduled_time is None:
                request.first_scheduled_time = time.monotonic()
                request.num_cached_tokens = request.num_computed_tokens
            if self._config.enable_prefix_caching:
                prefix_queries += request.num_tokens
                prefix_hits += request.num_computed_tokens
            num_tokens = min(request.num_tokens - request.num_computed_tokens, budget)
            request.block_table += self._pool.allocate(self._num_missing_blocks(request, num_tokens))
            self.running.append(request)
            scheduled.append(ScheduledRequest(request, num_tokens))
            budget -= num_tokens

        return SchedulerOutput(tuple(scheduled), preemptions, prefix_queries, prefix_hits)

    def update(
        self, output: SchedulerOutput, sampled: Mapping[str, int]
    ) -> list[tuple[Request, int, FinishReason | None]]:
        """Takes in what a step computed. `sampled`: request id -> new token.

        Returns the requests that got a token, with it and with the reason if it was their last.
        """
        results = []
        for item in output.scheduled:
            request = item.request
            samples = item.samples
            request.num_computed_tokens += item.num_tokens
            self._remember_full_blocks(request)
            if samples:
                token_id = sampled[request.request_id]
                request.output_token_ids.append(token_id)
                reason = self._finish_reason(request, token_id)
                if reason is not None:
                    self.running.remove(request)
                    self._release(request)
                results.append((request, token_id, reason))
        return results

    def abort(self, request: Request) -> None:
        """Forgets a request and takes its blocks back. Does nothing to one that has finished."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        self._release(request)

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        self.waiting.appendleft(request)

    def _release(self, request: Request) -> None:
        self._pool.release(request.block_table)
        request.block_table = []
        request.num_computed_tokens = 0
        request.num_remembered_blocks = 0

    def _num_missing_blocks(self, request: Request, num_tokens: int) -> int:
        needed = self._pool.blocks_for(request.num_computed_tokens + num_tokens)
        return needed - len(request.block_table)

    def _finish_reason(self, request: Request, token_id: int) -> FinishReason | None:
        sampling = request.sampling
        if token_id in sampling.stop_token_ids:
            return FinishReason.STOP
        if token_id in self._eos_token_ids and not sampling.ignore_eos:
            return FinishReason.STOP
        if len(request.output_token_ids) >= sampling.max_tokens:
            return FinishReason.LENGTH
        return None

    def _find_prefix(self, request: Request) -> list[int]:
        """Cached blocks that `request` begins with; at least one token is left to compute."""
        if not self._config.enable_prefix_caching:
            return []
        usable = (request.num_tokens - 1) // self._pool.block_size
        self._extend_hashes(request, usable)
        return self._pool.find_prefix(request.block_hashes[:usable])

    def _remember_full_blocks(self, request: Request) -> None:
        if not self._config.enable_prefix_caching:
            return
        num_full = request.num_computed_tokens // self._pool.block_size
        self._extend_hashes(request, num_full)
        for index in range(request.num_remembered_blocks, num_full):
            self._pool.remember(request.block_table[index], request.block_hashes[index])
        request.num_remembered_blocks = num_full

    def _extend_hashes(self, request: Request, count: int) -> None:
        size = self._pool.block_size
        hashes = request.block_hashes
        while len(hashes) < count:
            start = len(hashes) * size
            parent = hashes[-1] if hashes else request.variant.kv_key
            hashes.append(hash_block(parent, request.slice_tokens(start, start + size)))
