"""Accounts for KV blocks: who holds which, what they contain, what may be thrown away. Never sees a tensor.

A block holds the keys and values of `block_size` consecutive tokens in every layer. Blocks are shared by
reference count; a full block whose content is known by hash stays findable after its last reader has left,
until its memory is needed again (least recently used first).

The first parent hash of a chain is the variant's `kv_key`, so a block computed at one width is never found
by a request of another.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence


def hash_block(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Names the KV of `token_ids` after everything that `parent` names."""
    return hashlib.sha256(parent + array("I", token_ids).tobytes()).digest()


class BlockPool:
    """A fixed number of KV blocks, numbered from 0."""

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._caching = enable_prefix_caching
        self._references = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # next to go first
        self._block_of_hash: dict[bytes, int] = {}
        self._hash_of_block: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._free)

    @property
    def usage_ratio(self) -> float:
        return 1 - self.num_free / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def find_prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """The longest run of cached blocks from the start of `hashes`. Takes no reference."""
        found: list[int] = []
        for block_hash in hashes:
            block = self._block_of_hash.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` nobody holds: taking them uses up that many free ones."""
        return sum(self._references[block] == 0 for block in blocks)

    def take(self, blocks: Iterable[int]) -> None:
        """One more reference to each of `blocks`, found by `find_prefix`."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` blocks of unknown content, one reference each. The caller has looked at `num_free`."""
        assert count <= self.num_free, f"{count} blocks asked for, {self.num_free} free"
        blocks = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def remember(self, block: int, block_hash: bytes) -> None:
        """Makes a full, computed block findable. The first block of a content keeps the name."""
        if self._caching and block_hash not in self._block_of_hash and block not in self._hash_of_block:
            self._block_of_hash[block_hash] = block
            self._hash_of_block[block] = block_hash

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less to each. The ends of chains are reused before their beginnings."""
        for block in reversed(blocks):
            assert self._references[block] > 0, f"block {block} released once too often"
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if block not in self._hash_of_block:  # nobody can find it again: reuse it first
                    self._free.move_to_end(block, last=False)

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of_block.pop(block, None)
        if block_hash is not None:
            del self._block_of_hash[block_hash]
