"""BlockPool against a model of what it should know, over random sequences of operations."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.engine.kv_cache import BlockPool, hash_block

BLOCKS = 12


class PoolMachine(RuleBasedStateMachine):
    """Holders take and give back chains of blocks; the model remembers what was written where."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, 4, enable_prefix_caching=True)
        self.holders: list[list[int]] = []
        self.content: dict[int, bytes] = {}

    @rule(count=st.integers(1, 5))
    def allocate(self, count: int) -> None:
        if count > self.pool.num_free:
            return
        blocks = self.pool.allocate(count)
        held = {block for holder in self.holders for block in holder}
        assert len(set(blocks)) == count
        assert held.isdisjoint(blocks)
        for block in blocks:
            self.content.pop(block, None)
        self.holders.append(blocks)

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), salt=st.integers(0, 3))
    def fill(self, data: st.DataObject, salt: int) -> None:
        """Computes a holder's blocks: a chain of contents, all different along the chain."""
        parent = bytes([salt])
        for block in data.draw(st.sampled_from(self.holders)):
            if block in self.content:  # a shared, full block is never written again
                parent = self.content[block]
                continue
            parent = self.content[block] = hash_block(parent, [1, 2, 3, 4])
            self.pool.remember(block, parent)

    @rule(salt=st.integers(0, 3), length=st.integers(1, 5))
    def share(self, salt: int, length: int) -> None:
        hashes, parent = [], bytes([salt])
        for _ in range(length):
            parent = hash_block(parent, [1, 2, 3, 4])
            hashes.append(parent)
        found = self.pool.find_prefix(hashes)
        assert [self.content[block] for block in found] == hashes[: len(found)]
        if found:
            self.pool.take(found)
            self.holders.append(found)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        self.pool.release(self.holders.pop(index))

    @invariant()
    def free_blocks_are_those_nobody_holds(self) -> None:
        held = {block for holder in self.holders for block in holder}
        assert self.pool.num_free == BLOCKS - len(held)
        assert self.pool.usage_ratio == pytest.approx(len(held) / BLOCKS)
        assert self.pool.num_idle(range(BLOCKS)) == self.pool.num_free

    def teardown(self) -> None:
        for holder in self.holders:
            self.pool.release(holder)
        assert self.pool.num_free == BLOCKS


TestPool = PoolMachine.TestCase


def chain(length: int) -> list[bytes]:
    hashes = [hash_block(b"root", [0])]
    while len(hashes) < length:
        hashes.append(hash_block(hashes[-1], [0]))
    return hashes


def test_ends_of_chains_are_evicted_before_their_beginnings() -> None:
    pool = BlockPool(4, 1, enable_prefix_caching=True)
    hashes = chain(4)
    blocks = pool.allocate(4)
    for block, block_hash in zip(blocks, hashes, strict=True):
        pool.remember(block, block_hash)
    pool.release(blocks)
    pool.allocate(2)
    assert pool.find_prefix(hashes) == blocks[:2]


def test_blocks_that_nobody_can_find_go_first() -> None:
    pool = BlockPool(4, 1, enable_prefix_caching=True)
    known, unknown = pool.allocate(2), pool.allocate(2)
    hashes = chain(2)
    for block, block_hash in zip(known, hashes, strict=True):
        pool.remember(block, block_hash)
    pool.release(known)
    pool.release(unknown)
    assert set(pool.allocate(2)) == set(unknown)
    assert pool.find_prefix(hashes) == known


def test_nothing_is_found_where_caching_is_off() -> None:
    pool = BlockPool(2, 1, enable_prefix_caching=False)
    [block] = pool.allocate(1)
    pool.remember(block, b"content")
    assert pool.find_prefix([b"content"]) == []


def test_tokens_and_parents_change_the_hash() -> None:
    assert hash_block(b"a", [1, 2]) != hash_block(b"a", [2, 1])
    assert hash_block(b"a", [1, 2]) != hash_block(b"b", [1, 2])
    assert hash_block(b"a", [258]) != hash_block(b"a", [2, 1])
