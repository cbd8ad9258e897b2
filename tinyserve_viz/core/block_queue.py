"""An ordered set of block ids as arrays: push at either end, take from the front, remove from anywhere, all in batches.

An entry of the ring is alive while `pos[block]` still names its place, so removing from the middle is one assignment
and the dead entry is passed over when the front reaches it (the lazy deletion of array heaps, on a queue).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

NOWHERE = np.iinfo(np.int64).min
_SCALAR_BATCH = 8  # below this a Python loop over scalars beats NumPy's per-call cost (measured: about 1 µs a call)


class BlockQueue:
    """Blocks of a pool of `num_blocks` in order; each block at most once.

    `pos` int64 [num_blocks]: absolute place of a block in the order, NOWHERE when it is not in the queue; places only
    say what comes before what. `head` is at or before the first live entry, `tail` is behind the last.
    """

    __slots__ = ("head", "pos", "ring", "size", "tail")

    def __init__(self, num_blocks: int) -> None:
        self.pos: I64 = np.full(num_blocks, NOWHERE, dtype=np.int64)
        self.ring: I32 = np.zeros(2 * num_blocks + 2, dtype=np.int32)
        self.head = 0
        self.tail = 0
        self.size = 0

    def push_back(self, blocks: I32 | I64) -> None:
        """Append `blocks`, in this order, behind all others; none of them may be in the queue."""
        count = len(blocks)
        if self.tail + count - self.head > len(self.ring):
            self._renumber()
        self._place(self.tail, blocks)
        self.tail += count
        self.size += count

    def push_front(self, blocks: I32 | I64) -> None:
        """Put `blocks` before all others so that `blocks[0]` is the new front."""
        count = len(blocks)
        if self.tail + count - self.head > len(self.ring):
            self._renumber()
        self.head -= count
        self._place(self.head, blocks)
        self.size += count

    def remove(self, blocks: I32 | I64) -> None:
        """Take `blocks`, all of which are in the queue, out of it."""
        count = len(blocks)
        if count <= _SCALAR_BATCH:
            for block in blocks.tolist():
                self.pos[block] = NOWHERE
        else:
            self.pos[blocks] = NOWHERE
        self.size -= count
        self._advance_head()

    def front(self, count: int) -> I32:
        """The first `count` blocks, or all if there are fewer; changes nothing."""
        if count <= _SCALAR_BATCH:
            return self._few(count)
        return self._many(count)

    def _many(self, count: int) -> I32:
        window = count + 16
        while True:
            places = np.arange(self.head, min(self.head + window, self.tail), dtype=np.int64)
            blocks = self.ring[places % len(self.ring)]
            alive: I32 = blocks[self.pos[blocks] == places]
            if len(alive) >= count or self.head + window >= self.tail:
                return alive[:count]
            window *= 4

    def _few(self, count: int) -> I32:
        """`front` for a handful of blocks, one by one while live entries stand close together."""
        ring, pos, tail, length = self.ring, self.pos, self.tail, len(self.ring)
        found: list[int] = []
        place = self.head
        while len(found) < count and place < tail:
            if place - self.head > 64:  # a hole of dead entries: look at many at once
                return self._many(count)
            block = ring[place % length]
            if pos[block] == place:
                found.append(block)
            place += 1
        return np.array(found, dtype=np.int32)

    def order(self) -> I32:
        """All blocks, front first."""
        return self.front(self.size)

    def copy(self) -> BlockQueue:
        """An independent queue with the same blocks in the same places."""
        other = object.__new__(BlockQueue)
        other.pos = self.pos.copy()
        other.ring = self.ring.copy()
        other.head, other.tail, other.size = self.head, self.tail, self.size
        return other

    @classmethod
    def from_places(cls, pos: I64) -> BlockQueue:
        """The queue whose blocks stand at these places (as a snapshot stores them)."""
        queue = cls(len(pos))
        queue.pos = pos
        alive = np.flatnonzero(pos != NOWHERE).astype(np.int32)
        if len(alive):
            places = pos[alive]
            queue.head, queue.tail = int(places.min()), int(places.max()) + 1
            queue.size = len(alive)
            queue.ring[places % len(queue.ring)] = alive
        return queue

    def _place(self, start: int, blocks: I32 | I64) -> None:
        if len(blocks) <= _SCALAR_BATCH:
            for place, block in enumerate(blocks.tolist(), start):
                self.ring[place % len(self.ring)] = block
                self.pos[block] = place
            return
        places = np.arange(start, start + len(blocks), dtype=np.int64)
        self.ring[places % len(self.ring)] = blocks
        self.pos[blocks] = places

    def _advance_head(self) -> None:
        """Pass dead entries at the front: a few one by one, a long run of them in one look."""
        head, tail, ring, pos = self.head, self.tail, self.ring, self.pos
        for _ in range(2 * _SCALAR_BATCH):  # what was just taken may be a batch, and more lie behind it
            if head >= tail or pos[ring[head % len(ring)]] == head:
                self.head = head
                return
            head += 1
        while head < tail:
            places = np.arange(head, min(head + 1024, tail), dtype=np.int64)
            alive = pos[ring[places % len(ring)]] == places
            first = int(alive.argmax())
            if alive[first]:
                self.head = head + first
                return
            head += len(places)
        self.head = tail

    def _renumber(self) -> None:
        """Drop dead entries so that the ring has room again; the order stays. Amortised: every 2·num_blocks pushes."""
        blocks = self.order()
        self.head, self.tail = 0, len(blocks)
        self._place(0, blocks)
