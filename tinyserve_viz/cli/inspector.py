"""The inspector that views are given: box scores and true attention mass from the declared content, and the work list,
each by the kernel's own reference."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from tinyserve_viz.analysis.inspection import ScoreRule, Scores, Shares
from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.core.events import F32, I32
from tinyserve_viz.engine.choosing import Chooser
from tinyserve_viz.engine.content import F16, content_of
from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.numpy_backend import NumpyBackend
from tinyserve_viz.kernels.parameters import default
from tinyserve_viz.kernels.session import HostSession
from tinyserve_viz.recording.header import Header

MOST_TOKENS = 16_384  # a frame waits some 60 ms for so many, with their keys at hand
_KEPT_KEYS = 64 << 20  # bytes of keys that are kept between frames
_KEPT_SCORES = 64  # answers, for steps back and for panels that ask again


class ContentInspector:
    """Makes keys and queries of the recording of `header` again when they are asked for; keeps the latest."""

    rule = ScoreRule(
        complexity=default("selection.weight_complexity"),
        requirement=default("selection.weight_requirement"),
        history=default("selection.weight_history"),
        threshold=default("selection.threshold"),
        medium=default("requirement.medium"),
        high=default("requirement.high"),
    )
    window = default("adaptive.window")

    def __init__(self, header: Header) -> None:
        self._header = header
        self.why_not = ""
        try:
            self._content = content_of(header.content, header.model, header.workload, header.engine.block_size)
        except ConfigError as error:  # a recording opens without the file of captured content
            self.why_not = f"K, V and queries were captured, their file is needed: {error}"
        self._reduction = Chooser(header.engine, header.model, header.content.seed).box_reduction
        self._backend = NumpyBackend()
        self._num_workers = int(header.origin.get("num_workers", HostSession.num_workers))
        self._keys: OrderedDict[tuple[int, int], F16] = OrderedDict()
        self._scores: OrderedDict[tuple[int, int, int], Scores] = OrderedDict()

    def scores(self, seq: int, context: int, layer: int) -> Scores | None:
        """Scores and mass of every block of `seq`, seen from the last of its `context` tokens."""
        workload = self._header.workload
        if workload.num_hashes and not len(workload.hash_flat):
            return None  # recorded before recordings held the prefixes, on which the content depends
        if self.why_not or not 0 < context <= MOST_TOKENS:
            return None
        known = self._scores.get((seq, context, layer))
        if known is None:
            known = self._scores[seq, context, layer] = self._seen(seq, context, layer)
            while len(self._scores) > _KEPT_SCORES:
                self._scores.popitem(last=False)
        return known

    def _seen(self, seq: int, context: int, layer: int) -> Scores:
        model, size = self._header.model, self._header.engine.block_size
        blocks = -(-context // size)
        keys = self._first_keys(seq, context, layer)
        pool = np.zeros((blocks * size, *keys.shape[1:]), dtype=np.float16)
        pool[:context] = keys
        pool[context:] = keys[-1]  # so that the boxes of the last block are those of its tokens alone
        pool = pool.reshape(blocks, size, *keys.shape[1:])
        box = np.stack([pool.min(axis=1), pool.max(axis=1)], axis=2)
        content = self._content
        query = content.queries(np.array([seq], dtype=np.int32), np.array([context - 1], dtype=np.int32), layer)
        table = np.arange(blocks, dtype=np.int32)[None]
        shape = (1, model.num_kv_heads, blocks)
        scale = content.scale
        scored = self._backend.run(
            kernel_named("block_scoring"),
            {
                "query": query,
                "box": box,
                "block_table": table,
                "num_seq_blocks": np.array([blocks], dtype=np.int32),
                "block_score": np.empty(shape, dtype=np.float32),
            },
            {"reduction": self._reduction},
        )
        massed = self._backend.run(
            kernel_named("block_mass"),
            {
                "query": query,
                "key_cache": pool,
                "block_table": table,
                "seq_lens": np.array([context], dtype=np.int32),
                "block_mass": np.empty(shape, dtype=np.float32),
            },
            {"scale": float(scale), "reduction": "mean"},
        )
        score: F32 = scored["block_score"][0] * scale
        return Scores(score=score, mass=massed["block_mass"][0])

    def _first_keys(self, seq: int, context: int, layer: int) -> F16:
        """Keys of the first `context` tokens, float16 [context][num_kv_heads][head_dim]; what is known is kept."""
        known = self._keys.pop((seq, layer), None)
        have = 0 if known is None else len(known)
        if have < context:
            # Twice as many as needed now, as far as there are tokens: the next steps append one each.
            workload = self._header.workload
            request = workload.request_of_seq[seq]
            total = int(workload.prompt_len[request] + workload.output_len[request])
            stop = min(total, max(context, min(2 * context, context + 512)))
            fresh = self._content.keys_and_values(seq, have, stop, layer)[:, 0]
            known = fresh.copy() if known is None else np.concatenate([known, fresh])
        assert known is not None
        self._keys[seq, layer] = known
        while len(self._keys) > 1 and sum(keys.nbytes for keys in self._keys.values()) > _KEPT_KEYS:
            self._keys.popitem(last=False)
        return known[:context]

    def shares(self, lengths: I32, kept: I32 | None) -> Shares:
        """The work list of `dynamic_workload_balancing`, even shares of blocks, beside one worker a sequence."""
        size = self._header.engine.block_size
        arrays = {"seq_lens": lengths} if kept is None else {"seq_lens": lengths, "kept": kept}
        outputs = self._backend.run(
            kernel_named("dynamic_workload_balancing"),
            arrays,
            {
                "num_workers": self._num_workers,
                "max_segments": self._num_workers + len(lengths),
                "block_size": size,
                "mode": "even-blocks",
            },
        )
        blocks = -(-lengths.astype(np.int64) // size)
        before = lengths if kept is None else lengths - (blocks - np.minimum(kept, blocks)) * size
        imbalance = outputs["imbalance_permille"].tolist()
        return Shares(
            before=np.maximum(before, 0).astype(np.int64),
            after=outputs["load"],
            imbalance_before=imbalance[0],
            imbalance_after=imbalance[1],
        )
