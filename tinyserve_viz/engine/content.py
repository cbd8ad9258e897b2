"""What stands in for a model: which identity and topic each token has; K, V and queries are made from those.

A trace has no tensors, so the content is declared. The kernel `content_generation` makes it from 64-bit hashes with
the same bits on every machine and backend; equal prefixes have equal content.

`topics`: every token belongs to one of `clusters` topics. A run of tokens stays with its topic with probability
`locality` per token, so blocks are about something. A key is its topic's centre plus noise, a query points at the
centre of the topic of its own position, and the first four positions carry a direction that every query likes a little
(attention sinks, StreamingLLM, arXiv 2309.17453). `iid`: keys and queries are noise; the control, in which no block
says anything about its tokens. `npz`: captured from a model (`captured.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.config import ContentConfig, ModelConfig
from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.core.events import I32, I64
from tinyserve_viz.core.mixing import U64, mix
from tinyserve_viz.core.workload import Workload
from tinyserve_viz.engine.captured import CapturedContent, read_capture
from tinyserve_viz.kernels.defs import content_generation
from tinyserve_viz.kernels.defs.content_generation import (
    STREAM_CENTRE,
    STREAM_CHANGE,
    STREAM_SINK,
    STREAM_TOPIC,
    noise,
)
from tinyserve_viz.kernels.paging import runs

F16 = NDArray[np.float16]
F32 = NDArray[np.float32]

_OF_HASH, _OF_REQUEST, _OF_SEQ = 11, 12, 13


def content_of(
    config: ContentConfig, model: ModelConfig, workload: Workload, block_size: int
) -> Content | CapturedContent:
    """The content that a replay declares.

    Raises:
        ConfigError: captured content cannot be read, or is another file than the one that was named.
    """
    if config.kind == "npz":
        assert config.path is not None
        return CapturedContent(read_capture(config.path, config.sha256))
    return Content(config, model, workload, block_size)


class Content:
    """Identities and topics of the tokens of a workload, the longest sequence of which has `longest`.

    Raises:
        ConfigError: the kind of content is not available here.
    """

    def __init__(self, config: ContentConfig, model: ModelConfig, workload: Workload, block_size: int) -> None:
        if config.kind not in ("topics", "iid"):
            raise ConfigError(f"content {config.kind!r} cannot be generated; known: iid, topics")
        self._config, self._model, self._workload, self._block_size = config, model, workload, block_size
        self.seed = config.seed
        self.scale = np.float32(1) / np.sqrt(np.float32(model.head_dim))
        shape = (model.num_layers, model.num_kv_heads)
        layer, head, cluster, d = np.ix_(*map(np.arange, (*shape, config.clusters, model.head_dim)))
        self._centres = noise(mix(self.seed, STREAM_CENTRE, layer, head, cluster, d))  # [layer][kv head][cluster][d]
        self._sinks = noise(mix(self.seed, STREAM_SINK, *np.ix_(*map(np.arange, (*shape, model.head_dim)))))
        # A row each for the sequences that were asked for and are not over. The memory is touched where it is filled.
        total = workload.prompt_len + workload.output_len
        self.longest = int(total.max(initial=1))
        self._ids: I64 = np.empty((8, self.longest), dtype=np.int64)
        self._topics: I32 = np.empty((8, self.longest), dtype=np.int32)
        self._row: I32 = np.full(workload.num_seqs, -1, dtype=np.int32)
        self._free = list(range(8))[::-1]

    @property
    def centres(self) -> tuple[F32, F32] | None:
        """Centres of the topics [layers][num_kv_heads][clusters][head_dim] and sinks [layers][num_kv_heads][head_dim];
        None without topics."""
        return (self._centres, self._sinks) if self._config.kind == "topics" else None

    def identities(self, seq: int) -> U64:
        """Identity of every token that `seq` can hold, uint64 [prompt_len + output_len].

        A token of a prompt block with a known hash is (hash, place in the block); any other prompt token belongs to its
        request, a generated one to its sequence; what a fork shared belongs to the parent.
        """
        w, bs = self._workload, self._block_size
        request = int(w.request_of_seq[seq])
        prompt_len, total = int(w.prompt_len[request]), int(w.prompt_len[request] + w.output_len[request])
        if self._row[seq] >= 0:
            return self._ids[self._row[seq], :total].view(np.uint64)
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
        return ids

    def topics(self, seq: int) -> I32:
        """Topic of every token of `seq`, int32 [prompt_len + output_len]: a function of the tokens up to it alone."""
        ids = self.identities(seq)
        if self._row[seq] >= 0:
            return self._topics[self._row[seq], : len(ids)]
        draw = (mix(self.seed, STREAM_CHANGE, ids) >> np.uint64(33)).astype(np.int64)
        changes = draw * 1000 >= self._config.locality_permille << 31
        changes[0] = True
        start = np.maximum.accumulate(np.where(changes, np.arange(len(ids)), 0))
        return (mix(self.seed, STREAM_TOPIC, ids[start]) % np.uint64(self._config.clusters)).astype(np.int32)

    def tokens(self, seqs: I32, starts: I32, ends: I32) -> tuple[I64, I32, I32]:
        """Identity (its bits, int64), topic and position int32 of the tokens [starts, ends) of each of `seqs`."""
        rows = self._row[seqs]
        if (rows < 0).any():
            for seq in seqs[rows < 0].tolist():
                self._keep(seq)
            rows = self._row[seqs]
        if int((ends - starts).sum()) == len(seqs):
            return self._ids[rows, starts], self._topics[rows, starts], starts.astype(np.int32)
        owner, i = runs(ends - starts)
        position = starts[owner] + i
        return self._ids[rows[owner], position], self._topics[rows[owner], position], position.astype(np.int32)

    def _keep(self, seq: int) -> None:
        ids, topics = self.identities(seq), self.topics(seq)
        if not self._free:
            had = len(self._ids)
            for name in ("_ids", "_topics"):
                old = getattr(self, name)
                new = np.empty((2 * had, self.longest), dtype=old.dtype)
                new[:had] = old
                setattr(self, name, new)
            self._free = list(range(had, 2 * had))[::-1]
        row = self._free.pop()
        self._ids[row, : len(ids)] = ids.view(np.int64)
        self._topics[row, : len(ids)] = topics
        self._row[seq] = row

    def forget(self, seq: int) -> None:
        """Drop what was kept of a sequence that is over; it would be made again."""
        row = int(self._row[seq])
        if row >= 0:
            self._row[seq] = -1
            self._free.append(row)

    def keys_and_values(self, seq: int, start: int, end: int, layer: int) -> F16:
        """K and V of the tokens [start, end) of `seq`, float16 [tokens][2][num_kv_heads][head_dim]."""
        seqs, starts, ends = (np.array([value], dtype=np.int32) for value in (seq, start, end))
        return self._made(seqs, starts, ends, layer, False)[0]

    def queries(self, seqs: I32, positions: I32, layer: int) -> F16:
        """Query rows of the tokens at `positions` of `seqs`, float16 [sequences][num_heads][head_dim]."""
        return self._made(seqs, positions, positions + 1, layer, True)[1]

    def _made(self, seqs: I32, starts: I32, ends: I32, layer: int, queries: bool) -> tuple[F16, F16]:
        """K and V of tokens, and their queries if asked for, by the kernel's reference."""
        model = self._model
        topics = self._config.kind == "topics"
        token, topic, position = self.tokens(seqs, starts, ends)
        kv = np.empty((len(token), 2, model.num_kv_heads, model.head_dim), dtype=np.float16)
        query = np.empty((len(token) if queries else 0, model.num_heads, model.head_dim), dtype=np.float16)
        content_generation.reference(
            token=token,
            topic=topic if topics else None,
            position=position,
            centre=self._centres[layer] if topics else None,
            sink=self._sinks[layer] if topics else None,
            query_token=np.arange(len(query), dtype=np.int32),
            kv=kv,
            query=query,
            seed=self.seed,
            layer=layer,
        )
        return kv, query
