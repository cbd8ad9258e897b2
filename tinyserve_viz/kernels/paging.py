"""Which blocks a batch of sequences holds: the walk over block tables that the references share, as flat arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.definition import Status

Int = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """The mapped blocks of a batch, sequence by sequence in logical order; unmapped ones are left out and flagged."""

    seq: Int
    logical: Int
    block: Int
    tokens: Int  # valid tokens in the block
    num_seq_blocks: Int  # [num_seqs], mapped or not
    status: Status


def blocks_in(seq_lens: Any, block_size: int, max_blocks: int) -> tuple[Int, Int, Status]:
    """Lengths within [0, max_blocks·block_size] and the blocks they need; RANGE when a length had to be cut."""
    given = np.asarray(seq_lens, np.int64)
    lens = np.clip(given, 0, max_blocks * block_size)
    return lens, -(-lens // block_size), Status.RANGE if np.any(lens != given) else Status.OK


def resident(block_table: NDArray[np.int32], seq_lens: Any, block_size: int, num_blocks: int) -> Resident:
    """Walk the tables [num_seqs][max_blocks_per_seq] up to each length in tokens. UNMAPPED: -1; RANGE: no id."""
    lens, needed, status = blocks_in(seq_lens, block_size, block_table.shape[1])
    seq, logical = np.nonzero(np.arange(block_table.shape[1]) < needed[:, None])
    block = block_table[seq, logical].astype(np.int64)
    held, flags = mapped(block, num_blocks)
    seq, logical, block = seq[held], logical[held], block[held]
    tokens = np.minimum(lens[seq] - logical * block_size, block_size)
    return Resident(seq, logical, block, tokens, needed, status | flags)


def mapped(block: NDArray[Any], num_blocks: int) -> tuple[NDArray[np.bool_], Status]:
    """Which entries name a block of the pool; UNMAPPED: one is -1, RANGE: one is no id at all."""
    held = (block >= 0) & (block < num_blocks)
    status = Status.OK
    if not held.all():
        missing = block == -1
        status |= Status.UNMAPPED if missing.any() else Status.OK
        status |= Status.RANGE if (~held & ~missing).any() else Status.OK
    return held, status


def runs(lengths: NDArray[Any]) -> tuple[Int, Int]:
    """Flatten ragged rows: the row of each element and its place in the row."""
    lengths = np.asarray(lengths, np.int64)
    row = np.repeat(np.arange(len(lengths)), lengths)
    start = np.cumsum(lengths) - lengths
    return row, np.arange(len(row)) - start[row]


def first_of_each(keys: NDArray[Any]) -> NDArray[np.bool_]:
    """True where a key occurs for the first time, in the order of the array."""
    first = np.zeros(len(keys), np.bool_)
    first[np.unique(keys, return_index=True)[1]] = True
    return first
