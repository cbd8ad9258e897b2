"""The prefix hash ids of the replayed trace, kept in the recording so that the trace can be written again from it.

The workload's own content ids are dense numbers of full blocks; these are the file's, partial blocks included.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.recording.codec import decode_value, encode_value


@dataclass(frozen=True, slots=True)
class PrefixIds:
    """`hash_block` tokens an id; `of_request[r]` the ids of request r, head first, None where the trace had none."""

    hash_block: int
    of_request: tuple[list[int] | None, ...]


def encode_prefix_ids(hash_block: int, requests: Iterable[NDArray[np.int64] | Sequence[int] | None]) -> bytes | None:
    """As bytes for the recording's header, None where no request has ids."""
    rows = list(requests)
    known = [np.asarray(ids, dtype=np.int64) for ids in rows if ids is not None]
    if not known:
        return None
    counts = np.array([-1 if ids is None else len(ids) for ids in rows], dtype=np.int64)
    return zlib.compress(encode_value([hash_block, counts, np.concatenate(known)]), 1)


def decode_prefix_ids(data: bytes) -> PrefixIds:
    """What `encode_prefix_ids` was given; raises ValueError or zlib.error when it is damaged."""
    hash_block, counts, flat = decode_value(zlib.decompress(data))
    ends = np.cumsum(np.maximum(counts, 0)).tolist()
    ids = flat.tolist()
    rows = zip(counts.tolist(), ends, strict=True)
    return PrefixIds(hash_block, tuple(None if count < 0 else ids[end - count : end] for count, end in rows))
