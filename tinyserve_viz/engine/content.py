"""What stands in for a model: K, V and queries, a pure function of (seed, token identity, position, layer, head).

A trace has no tensors, so the content is declared. It is made from 64-bit hashes by integer arithmetic and separately
rounded float32 operations, so it has the same bits on every machine, and equal prefixes have equal content.

`topics`: every token belongs to one of `clusters` topics. A run of tokens stays with its topic with probability
`locality` per token, so blocks are about something. A key is its topic's centre plus noise, a query points at the
centre of the topic of its own position, and the first four positions carry a direction that every query likes a little
(attention sinks, StreamingLLM, arXiv 2309.17453). `iid`: keys and queries are noise; the control, in which no block
says anything about its tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.config import ContentConfig, ModelConfig
from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.core.workload import Workload

U64 = NDArray[np.uint64]
F16 = NDArray[np.float16]
F32 = NDArray[np.float32]

NUM_SINKS = 4
# Weights of centre, noise and sink direction. With head_dim 64 a query scores about 5 on its own topic's keys, about
# 3 on the sinks and 0 ± 1 on the rest, after the factor 1/sqrt(head_dim): peaked, but no one-hot softmax.
KEY_CENTRE, KEY_NOISE, SINK = np.float32(0.75), np.float32(0.625), np.float32(0.75)
QUERY_CENTRE, QUERY_NOISE, QUERY_SINK = np.float32(0.875), np.float32(0.5), np.float32(0.5)

_STREAM_KEY, _STREAM_VALUE, _STREAM_QUERY, _STREAM_CENTRE, _STREAM_SINK, _STREAM_TOPIC, _STREAM_CHANGE = range(1, 8)
_OF_HASH, _OF_REQUEST, _OF_SEQ = 11, 12, 13


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


def noise(hashes: U64) -> F32:
    """Bell-shaped numbers with mean 0 and variance close to 1: the sum of four 16-bit parts of each hash, exactly."""
    total = np.zeros(hashes.shape, dtype=np.int32)
    for shift in (0, 16, 32, 48):
        total += ((hashes >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int32)
    return (total - 131_070).astype(np.float32) / np.float32(37_837)  # sqrt(4/12) · 2^16


class Content:
    """K, V and queries of the sequences of a workload.

    Raises:
        ConfigError: the kind of content is not available here.
    """

    def __init__(self, config: ContentConfig, model: ModelConfig, workload: Workload, block_size: int) -> None:
        if config.kind not in ("topics", "iid"):
            raise ConfigError(f"content {config.kind!r} cannot be generated; known: iid, topics")
        self._config, self._model, self._workload, self._block_size = config, model, workload, block_size
        self._seed = config.seed
        self._identity: dict[int, U64] = {}
        self._topic: dict[int, NDArray[np.int64]] = {}
        shape = (model.num_layers, model.num_kv_heads)
        layer, head, cluster, d = np.ix_(*map(np.arange, (*shape, config.clusters, model.head_dim)))
        self._centres = noise(mix(self._seed, _STREAM_CENTRE, layer, head, cluster, d))  # [layer][kv head][cluster][d]
        self._sinks = noise(mix(self._seed, _STREAM_SINK, *np.ix_(*map(np.arange, (*shape, model.head_dim)))))

    def identities(self, seq: int) -> U64:
        """Identity of every token that `seq` can hold, uint64 [prompt_len + output_len].

        A token of a prompt block with a known hash is (hash, place in the block); any other prompt token belongs to its
        request, a generated one to its sequence; what a fork shared belongs to the parent.
        """
        known = self._identity.get(seq)
        if known is not None:
            return known
        w, bs = self._workload, self._block_size
        request = int(w.request_of_seq[seq])
        prompt_len, total = int(w.prompt_len[request]), int(w.prompt_len[request] + w.output_len[request])
        at = np.arange(total, dtype=np.int64)
        ids = np.where(at < prompt_len, mix(_OF_REQUEST, request, at), mix(_OF_SEQ, seq, at))
        hashes = w.hashes_of(request)[: prompt_len // bs]
        hashed = len(hashes) * bs
        if hashed:
            ids[:hashed] = mix(_OF_HASH, np.repeat(hashes.astype(np.int64), bs), at[:hashed] % bs)
        parent = int(w.parent[request])
        if parent >= 0:
            shared = int(w.fork_at[request])
            ids[:shared] = self.identities(int(w.first_seq[parent]))[:shared]
        self._identity[seq] = ids
        return ids

    def topics(self, seq: int) -> NDArray[np.int64]:
        """Topic of every token of `seq`, int64 [prompt_len + output_len]: a function of the tokens up to it alone."""
        known = self._topic.get(seq)
        if known is not None:
            return known
        ids = self.identities(seq)
        draw = (mix(self._seed, _STREAM_CHANGE, ids) >> np.uint64(33)).astype(np.int64)
        changes = draw * 1000 >= self._config.locality_permille << 31
        changes[0] = True
        start = np.maximum.accumulate(np.where(changes, np.arange(len(ids)), 0))
        topic = (mix(self._seed, _STREAM_TOPIC, ids[start]) % np.uint64(self._config.clusters)).astype(np.int64)
        self._topic[seq] = topic
        return topic

    def forget(self, seq: int) -> None:
        """Drop what was kept of a sequence that is over; it would be made again."""
        self._identity.pop(seq, None)
        self._topic.pop(seq, None)

    def keys_and_values(self, seq: int, start: int, end: int, layer: int) -> F16:
        """K and V of the tokens [start, end) of `seq`, float16 [tokens][2][num_kv_heads][head_dim]."""
        model = self._model
        ids = self.identities(seq)[start:end, None, None]
        head, d = np.arange(model.num_kv_heads)[:, None], np.arange(model.head_dim)
        kv = np.empty((end - start, 2, model.num_kv_heads, model.head_dim), dtype=np.float16)
        keys = noise(mix(self._seed, _STREAM_KEY, layer, head, d, ids))
        if self._config.kind == "topics":
            centre = self._centres[layer][:, self.topics(seq)[start:end]].transpose(1, 0, 2)
            keys = KEY_CENTRE * centre + KEY_NOISE * keys
            sinks = max(0, min(end, NUM_SINKS) - start)
            keys[:sinks] = keys[:sinks] + SINK * self._sinks[layer]
        kv[:, 0] = keys
        kv[:, 1] = noise(mix(self._seed, _STREAM_VALUE, layer, head, d, ids))
        return kv

    def queries(self, seqs: list[int], positions: list[int], layer: int) -> F16:
        """Query rows of the tokens at `positions`, float16 [sequences][num_heads][head_dim]."""
        model = self._model
        ids = np.array([self.identities(s)[p] for s, p in zip(seqs, positions, strict=True)], dtype=np.uint64)
        head, d = np.arange(model.num_heads)[:, None], np.arange(model.head_dim)
        rows = noise(mix(self._seed, _STREAM_QUERY, layer, head, d, ids[:, None, None]))
        if self._config.kind == "topics":
            topic = np.array([self.topics(s)[p] for s, p in zip(seqs, positions, strict=True)])
            group = model.num_heads // model.num_kv_heads
            centre = np.repeat(self._centres[layer][:, topic].transpose(1, 0, 2), group, axis=1)
            sink = np.repeat(self._sinks[layer], group, axis=0)
            rows = QUERY_CENTRE * centre + QUERY_NOISE * rows + QUERY_SINK * sink
        return rows.astype(np.float16)
