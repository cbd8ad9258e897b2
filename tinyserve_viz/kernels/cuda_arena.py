"""Memory of a session that is handed out in turn and taken back at once, and the sizes of arrays in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyserve_viz.kernels.definition import C_TYPES

CHUNK = 16 << 20  # bytes that an arena grows by
_ALIGN = 256  # bytes; the driver's own alignment
_ITEM = {dtype: np.dtype(dtype).itemsize for dtype in C_TYPES}


class Arena:
    """Chunks from `alloc`; what was handed out of them stays where it is."""

    def __init__(self, alloc: Callable[[int], Any]) -> None:
        self._alloc, self._chunks, self._at, self._used = alloc, list[tuple[Any, int]](), 0, 0

    def take(self, size: int) -> tuple[Any, int]:
        """A chunk and the place in it of `size` bytes, aligned."""
        size = rounded(size)
        while self._at < len(self._chunks):
            if self._used + size <= self._chunks[self._at][1]:
                place = self._used
                self._used += size
                return self._chunks[self._at][0], place
            self._at, self._used = self._at + 1, 0
        room = max(CHUNK, size)
        self._chunks.append((self._alloc(room), room))
        self._used = size
        return self._chunks[-1][0], 0

    def reset(self) -> None:
        """Everything may be handed out again."""
        self._at = self._used = 0

    def chunks(self) -> list[Any]:
        """What has to be given back at the end."""
        return [chunk for chunk, _ in self._chunks]


def num_bytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes of an array."""
    return math.prod(shape) * _ITEM[dtype]


def rounded(size: int) -> int:
    """A size that keeps what follows it aligned."""
    return -(-max(size, 1) // _ALIGN) * _ALIGN
