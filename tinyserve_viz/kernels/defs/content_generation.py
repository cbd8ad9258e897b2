"""`content_generation`: K, V and queries of declared content, the same bits on every backend.

A trace has no tensors. What stands in for them is a pure function of (seed, token identity, position, layer, head,
channel): 64-bit hashes by integer arithmetic, then float32 operations that are rounded one by one. `engine/content.py`
says what the content means and who has which identity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.mixing import U64, mix
from tinyserve_viz.kernels.decision_math import F32
from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Requirement, Scalar, Status
from tinyserve_viz.kernels.layout import F16

NUM_SINKS = 4
# Weights of centre, noise and sink direction. With head_dim 64 a query scores about 5 on its own topic's keys, about
# 3 on the sinks and 0 ± 1 on the rest, after the factor 1/sqrt(head_dim): peaked, but no one-hot softmax.
KEY_CENTRE, KEY_NOISE, SINK = np.float32(0.75), np.float32(0.625), np.float32(0.75)
QUERY_CENTRE, QUERY_NOISE, QUERY_SINK = np.float32(0.875), np.float32(0.5), np.float32(0.5)

STREAM_KEY, STREAM_VALUE, STREAM_QUERY, STREAM_CENTRE, STREAM_SINK, STREAM_TOPIC, STREAM_CHANGE = range(1, 8)

_PER_CHUNK = 1 << 20  # channels made at once: 8 MiB of hashes, so that a long prefill does not fill the memory


def noise(hashes: U64) -> F32:
    """Bell-shaped numbers with mean 0 and variance close to 1: the sum of four 16-bit parts of each hash, exactly."""
    total = np.zeros(hashes.shape, dtype=np.int32)
    for shift in (0, 16, 32, 48):
        total += ((hashes >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int32)
    return (total - 131_070).astype(np.float32) / np.float32(37_837)  # sqrt(4/12) · 2^16


def reference(
    *,
    token: NDArray[np.int64],
    topic: NDArray[np.int32] | None,
    position: NDArray[np.int32],
    centre: F32 | None,
    sink: F32 | None,
    query_token: NDArray[np.int32],
    kv: F16,
    query: F16,
    seed: int,
    layer: int,
) -> Status:
    """kv of every token, and as row r of `query` the query of token query_token[r], zeros where that is -1.

    With topics: key = KEY_CENTRE·centre + KEY_NOISE·noise, plus SINK·sink at the first NUM_SINKS positions; query =
    QUERY_CENTRE·centre + QUERY_NOISE·noise + QUERY_SINK·sink. Without: noise. RANGE: a topic outside `centre` (taken
    for topic 0), or a query_token outside the tokens (zeros).
    """
    num_kv_heads, head_dim = kv.shape[2:]
    num_heads = query.shape[1]
    status = Status.OK
    ids = token.view(np.uint64)
    of = np.zeros(len(token), np.int64)
    if topic is not None and centre is not None:
        inside = (topic >= 0) & (topic < centre.shape[1])
        status |= Status.OK if inside.all() else Status.RANGE
        of = np.where(inside, topic, 0).astype(np.int64)
    head, d = np.arange(num_kv_heads)[:, None], np.arange(head_dim)
    key_prefix = mix(seed, STREAM_KEY, layer, head, d)
    value_prefix = mix(seed, STREAM_VALUE, layer, head, d)
    chunk = max(1, _PER_CHUNK // max(1, num_kv_heads * head_dim))
    for at in range(0, len(token), chunk):
        part = slice(at, at + chunk)
        keys = noise(_mix_on(key_prefix, ids[part, None, None]))
        if centre is not None and sink is not None:
            keys = KEY_CENTRE * centre[:, of[part]].transpose(1, 0, 2) + KEY_NOISE * keys
            first = (position[part] >= 0) & (position[part] < NUM_SINKS)
            keys[first] = keys[first] + SINK * sink
        kv[part, 0] = keys
        kv[part, 1] = noise(_mix_on(value_prefix, ids[part, None, None]))
    query[:] = 0
    rows = np.flatnonzero(query_token != -1)
    asked = query_token[rows].astype(np.int64)
    known = (asked >= 0) & (asked < len(token))
    status |= Status.OK if known.all() else Status.RANGE
    rows, asked = rows[known], asked[known]
    if len(rows):
        heads = np.arange(num_heads)[:, None]
        found = noise(_mix_on(mix(seed, STREAM_QUERY, layer, heads, d), ids[asked, None, None]))
        if centre is not None and sink is not None:
            group = num_heads // num_kv_heads
            own = np.repeat(centre[:, of[asked]].transpose(1, 0, 2), group, axis=1)
            found = QUERY_CENTRE * own + QUERY_NOISE * found + QUERY_SINK * np.repeat(sink, group, axis=0)
        query[rows] = found.astype(np.float16)
    return status


def _mix_on(state: U64, part: Any) -> U64:
    """`mix` continued by one more part."""
    with np.errstate(over="ignore"):
        mixed: U64 = (state ^ part) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


KERNEL = KernelDef(
    name="content_generation",
    summary="Make the declared K and V of new tokens and the query rows of the decoding sequences.",
    source="ours; hash: SplitMix64, Steele et al. 2014; sinks: StreamingLLM, arXiv 2309.17453",
    reference=reference,
    args=(
        Arg("token", "int64", ("num_tokens",), doc="identity, the bits of an unsigned number"),
        Arg("topic", "int32", ("num_tokens",), doc="absent: no topics", optional=True),
        Arg("position", "int32", ("num_tokens",), doc="place in its sequence"),
        Arg("centre", "float32", ("num_kv_heads", "num_clusters", "head_dim"), doc="of each topic", optional=True),
        Arg("sink", "float32", ("num_kv_heads", "head_dim"), doc="direction that every query likes", optional=True),
        Arg("query_token", "int32", ("num_rows",), doc="token whose query the row is, -1 = none"),
        Arg("kv", "float16", ("num_tokens", "2", "num_kv_heads", "head_dim"), "out", "packed K, V"),
        Arg("query", "float16", ("num_rows", "num_heads", "head_dim"), "out"),
    ),
    scalars=(
        Scalar("seed", "int64", "of the content"),
        Scalar("layer", "int32", "layer of the model", 0),
    ),
    launch=Launch(
        layout="one thread block per token for K and V, then one per row for the query; threads over the channels",
        grid=lambda a: (max(1, a["num_tokens"] + a["num_rows"]), 1, 1),
        threads=128,
    ),
    requires=(
        Requirement(
            "topic, centre and sink are given together or not at all",
            lambda _axes, scalars: len({scalars["has_" + name] for name in ("topic", "centre", "sink")}) == 1,
        ),
        Requirement(
            "num_heads must be a multiple of num_kv_heads",
            lambda axes, _scalars: axes["num_kv_heads"] > 0 and axes["num_heads"] % axes["num_kv_heads"] == 0,
        ),
    ),
)
