"""One 64-bit hash of integers, with the same bits on every machine: the source of everything seeded here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]


def mix(*parts: Any) -> U64:
    """One 64-bit hash of integers that broadcast against each other (SplitMix64's finalizer, Steele et al. 2014)."""
    state: U64 = np.uint64(0x9E3779B97F4A7C15) + np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = (state ^ np.asarray(part).astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
            state = state ^ (state >> np.uint64(30))
            state = state * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state
