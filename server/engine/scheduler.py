"""Decides which request computes how many tokens in the next step. Knows blocks and counts, no tensors.

A decision is a number of tokens per request, which makes prefill, chunked prefill and decode one thing:
a request computes the tokens it has and has not computed yet, as many as the step's budget allows, and
gets a new token once it has caught up. Widths play no part: requests of all variants share every step,
first come, first served, so no variant waits for another's turn.

When blocks run out, the request that came last gives its blocks back and is computed again later.

Background requests take what users leave: tokens after all users', a seat and blocks only while no user
waits, and they give both back as soon as a user needs them. What users are given, step by step, is what they
would be given if there were no background, but for what each finds in the prefix cache.

A step of few tokens costs about what a step of one does: the weights are read once. It is filled up with
guesses at what requests say next (server/engine/lookup.py); no request gives up anything for them.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from server.engine.config import EngineConfig
from server.engine.kv_cache import BlockPool, hash_block
from server.engine.lookup import Lookup, num_right
from server.engine.request import FinishReason, Request, TokenLogprobs
from server.engine.scheduler_output import ScheduledRequest, SchedulerOutput

# A step's logits take this many rows more than it has requests: 78 MB for a vocabulary of 152,000.
MAX_SCORED_ROWS = 128
# A step of more tokens takes longer. Beside users that delays their next tokens, alone the first of the next
# to come: by about 13 and 55 ms where a model prefills 1,200 tokens/s.
MAX_BACKGROUND_TOKENS_BESIDE_USERS = 16
MAX_BACKGROUND_TOKENS_ALONE = 64


@dataclass(frozen=True)
class _Queue:
    """Requests of one priority; `running` in the order in which they came in."""

    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)


@dataclass
class _Step:
    """The step being put together, and what room is left in it."""

    num_tokens: int
    num_scored_rows: int
    scheduled: list[ScheduledRequest] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)
    prefix_queries: int = 0
    prefix_hits: int = 0

    def room_for(self, request: Request) -> int:
        """How many tokens of `request` the step can still take."""
        start = request.num_computed_tokens
        num_tokens = min(request.num_tokens - start, self.num_tokens)
        rows = request.rows_to_score(start, start + num_tokens)
        if len(rows) > self.num_scored_rows:
            return rows[self.num_scored_rows] - start  # up to the first row too many
        return num_tokens

    def take(self, item: ScheduledRequest) -> None:
        self.scheduled.append(item)
        self.num_tokens -= item.num_tokens
        self.num_scored_rows -= len(item.rows_to_score)


class Scheduler:
    """Continuous batching under one token budget per step."""

    def __init__(self, config: EngineConfig, pool: BlockPool, eos_token_ids: frozenset[int]) -> None:
        self._config = config
        self._pool = pool
        self._eos_token_ids = eos_token_ids
        self._users = _Queue()
        self._background = _Queue()
        self._lookups: WeakKeyDictionary[Request, Lookup] = WeakKeyDictionary()

    @property
    def running(self) -> Sequence[Request]:
        """Users first."""
        return [*self._users.running, *self._background.running]

    @property
    def waiting(self) -> Sequence[Request]:
        """Users first, the next to come in at the head of each."""
        return [*self._users.waiting, *self._background.waiting]

    @property
    def num_unfinished(self) -> int:
        return self.num_running + self.num_waiting_users + len(self._background.waiting)

    @property
    def num_running(self) -> int:
        return len(self._users.running) + len(self._background.running)

    @property
    def num_waiting_users(self) -> int:
        return len(self._users.waiting)

    @property
    def num_background(self) -> int:
        """Background requests that run or wait."""
        return len(self._background.running) + len(self._background.waiting)

    def add(self, request: Request) -> None:
        """Queues a request that is known to fit the pool when it runs alone."""
        self._queue_of(request).waiting.append(request)

    def schedule(self) -> SchedulerOutput:
        """The next step. Allocates its blocks; moves requests between `waiting` and `running`."""
        step = _Step(self._config.max_num_batched_tokens, MAX_SCORED_ROWS)
        self._continue(self._users, step)
        if not any(not request.is_background for request in step.preempted):
            self._admit(self._users, step)
        num_guesses = self._guess(step)
        most = MAX_BACKGROUND_TOKENS_BESIDE_USERS if self._users.running else MAX_BACKGROUND_TOKENS_ALONE
        step.num_tokens = min(step.num_tokens, max(0, most - num_guesses))
        self._continue(self._background, step)
        if not self._users.waiting and not step.preempted:
            self._admit(self._background, step)
        return SchedulerOutput(
            tuple(step.scheduled),
            sum(not request.is_background for request in step.preempted),
            step.prefix_queries,
            step.prefix_hits,
        )

    def update(
        self,
        output: SchedulerOutput,
        sampled: Mapping[str, Sequence[int]],
        scored: Mapping[str, Sequence[TokenLogprobs]],
    ) -> list[tuple[Request, int | None, FinishReason | None]]:
        """Takes in what a step computed. Request id -> the tokens chosen, and -> the scores of its rows.

        Tokens are chosen after the request's last token and after each guess; those after a wrong guess mean
        nothing. Returns each new token with its request, and with the reason if it was the last; a request
        that ends without a token comes with None.
        """
        results: list[tuple[Request, int | None, FinishReason | None]] = []
        for item in output.scheduled:
            request = item.request
            chosen = sampled.get(request.request_id, ())
            assert len(chosen) == item.num_samples
            request.scored += scored.get(request.request_id, ())
            request.num_computed_tokens += item.num_tokens
            if not item.catches_up:
                self._remember_full_blocks(request)
                continue
            new = self._new_tokens(item, chosen)
            request.num_computed_tokens += max(0, len(new) - 1)  # the guesses among them
            if item.guesses:
                self._return_surplus(request)
            self._remember_full_blocks(request)
            reason = new[-1][1] if new else self._finish_reason(request, None)
            if reason is not None:
                self._queue_of(request).running.remove(request)
                self._release(request)
            results += [(request, *token) for token in new] or [(request, None, reason)]
        return results

    def _new_tokens(
        self, item: ScheduledRequest, chosen: Sequence[int]
    ) -> list[tuple[int, FinishReason | None]]:
        """Adds to the output what was chosen, up to the first wrong guess or the end of the answer."""
        request = item.request
        right = num_right(item.guesses, chosen)
        new: list[tuple[int, FinishReason | None]] = []
        for token_id in chosen[: right + 1]:
            request.output_token_ids.append(token_id)
            new.append((token_id, self._finish_reason(request, token_id)))
            if new[-1][1] is not None:
                break
        return new

    def abort(self, request: Request) -> None:
        """Forgets a request and takes its blocks back. Does nothing to one that has finished."""
        queue = self._queue_of(request)
        if request in queue.running:
            queue.running.remove(request)
        elif request in queue.waiting:
            queue.waiting.remove(request)
        self._release(request)

    def _queue_of(self, request: Request) -> _Queue:
        return self._background if request.is_background else self._users

    def _continue(self, queue: _Queue, step: _Step) -> None:
        """Tokens for those that run already, in order."""
        index = 0
        while index < len(queue.running) and step.num_tokens > 0:
            request = queue.running[index]
            index += 1
            num_tokens = step.room_for(request)
            if num_tokens == 0:  # all rows that may be scored are
                continue
            num_blocks = self._num_missing_blocks(request, num_tokens)
            while num_blocks > self._pool.num_free and request in queue.running:
                self._preempt_last(step)
            if request not in queue.running:
                break
            request.block_table += self._pool.allocate(num_blocks)
            step.take(ScheduledRequest(request, num_tokens))

    def _admit(self, queue: _Queue, step: _Step) -> None:
        """Lets those in that wait, in order, while there is room.

        Rows that may be scored run out before all else does: who wants them waits, and holds up no one.
        """
        index = 0
        while index < len(queue.waiting) and step.num_tokens > 0:
            request = queue.waiting[index]
            cached = self._find_room(request, step)
            if cached is None:
                break
            request.num_computed_tokens = len(cached) * self._pool.block_size
            num_tokens = step.room_for(request)
            if num_tokens == 0:
                request.num_computed_tokens = 0
                index += 1
                continue
            del queue.waiting[index]
            self._pool.take(cached)
            request.block_table = cached
            if request.first_scheduled_time is None:
                request.first_scheduled_time = time.monotonic()
                request.num_cached_tokens = request.num_computed_tokens
                if self._config.enable_prefix_caching and not request.is_background:
                    step.prefix_queries += request.num_tokens
                    step.prefix_hits += request.num_computed_tokens
            request.block_table += self._pool.allocate(self._num_missing_blocks(request, num_tokens))
            queue.running.append(request)
            step.take(ScheduledRequest(request, num_tokens))

    def _find_room(self, request: Request, step: _Step) -> list[int] | None:
        """The cached blocks that `request` begins with, None if it cannot come in; background makes way."""
        while True:
            if self.num_running < self._config.max_num_seqs:
                cached = self._find_prefix(request)
                num_needed = self._pool.blocks_for(request.num_tokens) - len(cached)
                # All of it must fit, not just the first chunk: else it would soon throw others out.
                if num_needed + self._pool.num_idle(cached) <= self._pool.num_free:
                    return cached
            if request.is_background or not self._background.running:
                return None
            self._preempt_last(step)

    def _guess(self, step: _Step) -> int:
        """Fills users' step up with guesses, as far as blocks are free; returns how many."""
        most = room = self._config.prompt_lookup_tokens - sum(item.num_tokens for item in step.scheduled)
        for index, item in enumerate(step.scheduled):
            if room <= 0:
                break
            request = item.request
            sampling = request.sampling
            if not item.num_samples or not sampling.is_predictable:
                continue
            start = request.num_computed_tokens + item.num_tokens
            in_blocks = len(request.block_table) * self._pool.block_size - start
            free = in_blocks + self._pool.num_free * self._pool.block_size
            to_come = sampling.max_tokens - len(request.output_token_ids) - 1
            guesses = self._lookups.setdefault(request, Lookup()).guess(request, min(room, to_come, free))
            if guesses:
                num_tokens = item.num_tokens + len(guesses)
                request.block_table += self._pool.allocate(self._num_missing_blocks(request, num_tokens))
                step.scheduled[index] = replace(item, guesses=guesses)
                room -= len(guesses)
        return most - room

    def _preempt_last(self, step: _Step) -> None:
        queue = self._background if self._background.running else self._users
        request = queue.running.pop()
        self._release(request)
        queue.waiting.appendleft(request)
        step.preempted.append(request)

    def _release(self, request: Request) -> None:
        self._pool.release(request.block_table)
        request.block_table = []
        request.num_computed_tokens = 0
        request.num_remembered_blocks = 0

    def _return_surplus(self, request: Request) -> None:
        """Gives back the blocks that only wrong guesses needed."""
        needed = self._pool.blocks_for(request.num_computed_tokens)
        self._pool.release(request.block_table[needed:])
        del request.block_table[needed:]

    def _num_missing_blocks(self, request: Request, num_tokens: int) -> int:
        needed = self._pool.blocks_for(request.num_computed_tokens + num_tokens)
        return needed - len(request.block_table)

    def _finish_reason(self, request: Request, token_id: int | None) -> FinishReason | None:
        sampling = request.sampling
        if token_id in sampling.stop_token_ids:
            return FinishReason.STOP
        if token_id in self._eos_token_ids and not sampling.ignore_eos:
            return FinishReason.STOP
        if len(request.output_token_ids) >= sampling.max_tokens:
            return FinishReason.LENGTH
        return None

    def _find_prefix(self, request: Request) -> list[int]:
        """Cached blocks that `request` begins with; what is wanted of it beyond them is left to compute."""
        if not self._config.enable_prefix_caching:
            return []
        rows = request.rows_to_score(0, request.num_tokens)
        usable = (rows[0] if rows else request.num_tokens - 1) // self._pool.block_size
        self._extend_hashes(request, usable)
        return self._pool.find_prefix(request.block_hashes[:usable])

    def _remember_full_blocks(self, request: Request) -> None:
        if not self._config.enable_prefix_caching:
            return
        num_full = request.num_computed_tokens // self._pool.block_size
        if num_full == request.num_remembered_blocks:
            return
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
