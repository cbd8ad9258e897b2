"""Content ids of the blocks of every request: equal id exactly where a block and all before it are equal.

Requests say what their prompt holds either by hash ids of large blocks (Mooncake) or by real token ids; both become
dense int32 ids, numbered by first appearance, so that nothing downstream depends on the numbers in the file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.trace.request import Request, Trace


@dataclass(frozen=True, slots=True, eq=False)
class BlockHashes:
    """Content ids of the hashed blocks of all requests, each request's blocks from its first token on.

    Attributes:
        flat: int32 [num_blocks], each in 0..num_hashes-1
        offsets: int64 [num_requests + 1]; request r has flat[offsets[r]:offsets[r + 1]]
        num_hashes: how many different ids there are
    """

    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]
    num_hashes: int

    def of(self, request: int) -> NDArray[np.int32]:
        """int32 [hashed blocks of `request`]: a view."""
        return self.flat[self.offsets[request] : self.offsets[request + 1]]


def block_hashes(trace: Trace, block_size: int, outputs: bool = False) -> BlockHashes:
    """Content ids of the full blocks of `block_size` tokens whose content the trace tells.

    Without `outputs` these are blocks of prompt tokens only. With `outputs`, where the whole prompt is known, the full
    blocks that reach into the output follow: real tokens are chained on; otherwise, because nobody else can have made
    the same output, each such block has an id of its own. Requests with n > 1 have no output ids (samples differ).

    `prefix_hash_ids[i]` covers hash_block tokens and is split into blocks (id, 0), (id, 1), …; a request that has hash
    ids and tokens is known by its hash ids; one that has neither has no ids here.

    Raises:
        ConfigError: `block_size` does not divide the trace's hash_block, or a request has more ids than its prompt
            fills.
    """
    return _hashes(trace, block_size, outputs, partial=False)


def prefix_references(trace: Trace, block_size: int) -> tuple[BlockHashes, NDArray[np.int64]]:
    """What a prefix cache is asked for, request by request: prompt blocks, and the prompt tokens int64 in each of them.

    These are the blocks of `block_hashes` and, where hash ids cover it, the last and partly filled block of a prompt:
    an id stands for the tokens that there are, so the share of tokens that hit does not depend on the block size.
    """
    hashes = _hashes(trace, block_size, outputs=False, partial=True)
    tokens = np.full(len(hashes.flat), block_size, dtype=np.int64)
    prompt = np.array([request.prompt_len for request in trace.requests], dtype=np.int64)
    beyond = np.diff(hashes.offsets) * block_size - prompt  # positive where the last block is partly filled
    tokens[hashes.offsets[1:][beyond > 0] - 1] -= beyond[beyond > 0]
    return hashes, tokens


def _hashes(trace: Trace, block_size: int, outputs: bool, partial: bool) -> BlockHashes:
    requests = trace.requests
    num_requests = len(requests)
    counts = np.zeros(num_requests, dtype=np.int64)
    from_ids = [index for index, request in enumerate(requests) if request.prefix_hash_ids is not None]
    split = _SplitIds(trace, [requests[index] for index in from_ids], block_size, partial)
    counts[from_ids] = split.counts
    next_id = split.num_hashes

    chains: dict[int, list[int]] = {}
    interned: dict[tuple[int, bytes], int] = {}
    for index, request in enumerate(requests):
        if request.prefix_hash_ids is None and request.prompt_tokens is not None:
            chains[index] = chain = _chain(_known_tokens(request, outputs), block_size, interned, next_id)
            counts[index] = len(chain)
    next_id += len(interned)

    fresh = np.zeros(num_requests, dtype=np.int64)
    if outputs:
        for index, request in enumerate(requests):
            if _prompt_is_known(request, trace.hash_block or block_size) and request.n == 1:
                fresh[index] = max(0, (request.prompt_len + request.output_len) // block_size - counts[index])

    offsets = np.zeros(num_requests + 1, dtype=np.int64)
    np.cumsum(counts + fresh, out=offsets[1:])
    if len(from_ids) == num_requests and not fresh.any():
        return BlockHashes(split.flat, offsets, next_id)
    flat = np.empty(int(offsets[-1]), dtype=np.int32)
    starts = np.cumsum(split.counts) - split.counts
    for index, start, count in zip(from_ids, starts.tolist(), split.counts.tolist(), strict=True):
        flat[offsets[index] : offsets[index] + count] = split.flat[start : start + count]
    for index, chain in chains.items():
        flat[offsets[index] : offsets[index] + len(chain)] = chain
    for index in np.flatnonzero(fresh).tolist():
        flat[offsets[index] + counts[index] : offsets[index + 1]] = np.arange(next_id, next_id + fresh[index])
        next_id += int(fresh[index])
    return BlockHashes(flat, offsets, next_id)


class _SplitIds:
    """The blocks of all requests that have hash ids: `flat` int32, `counts` int64 [len(requests)], `num_hashes`."""

    def __init__(self, trace: Trace, requests: list[Request], block_size: int, partial: bool) -> None:
        hash_block = trace.hash_block or block_size
        if requests and hash_block % block_size:
            raise ConfigError(
                f"block_size is {block_size}, expected a divisor of {trace.name}'s hash_block {hash_block} "
                "(one prefix hash id covers that many tokens)"
            )
        parts = [request.prefix_hash_ids for request in requests if request.prefix_hash_ids is not None]
        num_ids = np.array([len(ids) for ids in parts], dtype=np.int64)
        prompt = np.array([request.prompt_len for request in requests], dtype=np.int64)
        if (too_many := np.flatnonzero(num_ids > -(-prompt // hash_block))).size:
            request = requests[too_many[0]]
            most = -(-request.prompt_len // hash_block)
            raise ConfigError(
                f"{trace.name}: request {request.id!r} has {num_ids[too_many[0]]} prefix_hash_ids, expected at most "
                f"ceil({request.prompt_len} / {hash_block}) = {most}; hash_block sets how many tokens an id covers"
            )
        per_id = hash_block // block_size
        self.counts = np.minimum(-(-prompt // block_size) if partial else prompt // block_size, num_ids * per_id)
        if not parts:
            self.flat, self.num_hashes = np.empty(0, dtype=np.int32), 0
            return
        # Per reference of an id: its rank by first appearance, and how many blocks of it this request fills.
        rank = _rank_by_appearance(np.concatenate(parts))
        blocks = np.full(len(rank), per_id, dtype=np.int64)
        last = np.cumsum(num_ids) - 1
        has_ids = num_ids > 0
        blocks[last[has_ids]] = (self.counts - (num_ids - 1) * per_id)[has_ids]
        # An id occupies as many numbers as the fullest of its references needs.
        widest = np.zeros(int(rank.max(initial=-1)) + 1, dtype=np.int64)
        np.maximum.at(widest, rank, blocks)
        first = np.cumsum(widest) - widest
        self.num_hashes = int(widest.sum())
        total = int(blocks.sum())
        shift = first[rank] - (np.cumsum(blocks) - blocks)
        self.flat = np.repeat(shift.astype(np.int32), blocks)
        self.flat += np.arange(total, dtype=np.int32)


def _rank_by_appearance(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 like `ids`: 0 for the id that appears first, 1 for the next new one, and so on."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _known_tokens(request: Request, outputs: bool) -> NDArray[np.int32]:
    assert request.prompt_tokens is not None
    if outputs and request.output_tokens is not None and request.n == 1:
        return np.concatenate([request.prompt_tokens, request.output_tokens])
    return request.prompt_tokens


def _chain(
    tokens: NDArray[np.int32], block_size: int, interned: dict[tuple[int, bytes], int], first_id: int
) -> list[int]:
    """Ids of the full blocks of `tokens`, each found by (id of the block before, own tokens) or added to `interned`."""
    data = np.ascontiguousarray(tokens, dtype=np.int32).tobytes()
    width = 4 * block_size
    chain = []
    parent = -1
    for start in range(0, len(data) - width + 1, width):
        parent = interned.setdefault((parent, data[start : start + width]), first_id + len(interned))
        chain.append(parent)
    return chain


def _prompt_is_known(request: Request, hash_block: int) -> bool:
    if request.prefix_hash_ids is not None:
        return len(request.prefix_hash_ids) * hash_block >= request.prompt_len
    return request.prompt_tokens is not None
