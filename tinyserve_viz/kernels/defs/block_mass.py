"""`block_mass`: the softmax mass of every block, in the fixed order that lets it steer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.decision_math import F32, LOG2_E, decision_exp2, lane_dots, lane_sum, reduce_group
from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Scalar, Stage, Status, ceil_div
from tinyserve_viz.kernels.defs.block_scoring import REDUCTION, SCORING_HEADS
from tinyserve_viz.kernels.defs.paged_attention import GROUPED
from tinyserve_viz.kernels.layout import F16, POOL, blocks_of
from tinyserve_viz.kernels.paging import resident

_PER_CHUNK = 1 << 21  # logits made at once: 8 MiB of fp32, so that a long context does not fill the memory


def reference(
    *,
    query: F16,
    key_cache: F16,
    block_table: NDArray[np.int32],
    seq_lens: NDArray[np.int32],
    block_mass: F32,
    block_peak: F32 | None,
    scale: np.float32,
    reduction: int,
) -> Status:
    """softmax(scale·q·k) summed per block, in fp32; dot products and sums in lane order, 2**y by polynomial.

    y = (s - max s)·log2(e) with each step rounded. A NaN logit weighs 0 (NOT_A_NUMBER); a head whose
    largest logit is infinite has masses 0, flagged too. Unmapped blocks have mass 0 (UNMAPPED, RANGE).
    `block_peak` takes the largest logit of each block, for every query head; -inf where there is none. It is rounded as
    block_scoring rounds (same order, same products or larger ones), so scale·score is never below it, not by a bit.
    """
    num_blocks, size, num_kv_heads, head_dim = key_cache.shape
    num_heads = query.shape[1]
    held = resident(block_table, seq_lens, size, num_blocks)
    status = held.status
    block_mass[:] = 0
    if block_peak is not None:
        block_peak[:] = -np.inf
    bounds = np.searchsorted(held.seq, np.arange(len(query) + 1))
    for seq in range(len(query)):
        part = slice(bounds[seq], bounds[seq + 1])
        if part.start == part.stop:
            continue
        keys = np.moveaxis(blocks_of(key_cache, held.block[part]), 2, 0).astype(np.float32)  # [kv heads][blocks]…
        valid = np.arange(size) < held.tokens[part, None]
        mass: F32 = np.zeros((num_kv_heads, num_heads // num_kv_heads, block_table.shape[1]), np.float32)
        peaks: F32 = np.empty((num_kv_heads, mass.shape[1], keys.shape[1]), np.float32)
        q = query[seq].reshape(num_kv_heads, -1, head_dim).astype(np.float32)
        together = max(1, min(num_kv_heads, _PER_CHUNK // (keys.shape[1] * size * q.shape[1])))
        for first in range(0, num_kv_heads, together):
            some = slice(first, first + together)
            dots = [lane_dots(k.reshape(-1, head_dim), group) for k, group in zip(keys[some], q[some], strict=True)]
            logits = np.concatenate(dots).reshape(-1, keys.shape[1], size) * scale
            parts, tops, flags = _shares(logits, valid)
            status |= flags
            peaks[some] = tops.reshape(peaks[some].shape)
            mass[some][:, :, held.logical[part]] = parts.reshape(peaks[some].shape)
        peaks = peaks.reshape(num_heads, -1)
        if block_peak is not None:
            block_peak[seq][:, held.logical[part]] = peaks
        shares = _normalised(mass)
        if block_mass.shape[1] == num_heads:
            block_mass[seq] = shares.reshape(num_heads, -1)
        else:
            block_mass[seq] = reduce_group(shares, reduction, axis=1)
    return status


def _shares(logits: F32, valid: NDArray[np.bool_]) -> tuple[F32, F32, Status]:
    """Unnormalised mass and largest logit, [group][blocks], of the logits [group][blocks][slots]."""
    undefined = np.isnan(logits) & valid
    counted = np.where(valid & ~undefined, logits, np.float32(-np.inf))
    peaks: F32 = counted.max(axis=2) + np.float32(0)
    top = peaks.max(axis=1)[:, None, None]
    finite = np.isfinite(top)
    weight = decision_exp2((counted - np.where(finite, top, np.float32(0))) * LOG2_E)
    weight[np.broadcast_to(~finite, weight.shape)] = 0
    return lane_sum(weight), peaks, Status.NOT_A_NUMBER if undefined.any() or not finite.all() else Status.OK


def _normalised(mass: F32) -> F32:
    """Each head's masses over the sum of all its blocks."""
    total = lane_sum(mass)[..., None]
    total[total == 0] = 1
    shares: F32 = mass / total
    return shares


KERNEL = KernelDef(
    name="block_mass",
    summary="Share of the attention that each block receives; the same bits on every backend.",
    source="ours, for the policies oracle and snapkv (SnapKV, arXiv 2404.14469) and for mass_entropy",
    reference=reference,
    args=(
        Arg("query", "float16", ("num_seqs", "num_heads", "head_dim")),
        Arg("key_cache", "float16", POOL),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), doc="-1 = no block"),
        Arg("seq_lens", "int32", ("num_seqs",)),
        Arg(
            "block_mass", "float32", ("num_seqs", "num_score_heads", "max_blocks_per_seq"), "out", "0 past the sequence"
        ),
        Arg(
            "block_peak",
            "float32",
            ("num_seqs", "num_heads", "max_blocks_per_seq"),
            "out",
            "largest logit of the block, -inf where there is none",
            optional=True,
        ),
        Arg(
            "token_weight",
            "float32",
            ("num_seqs", "num_heads", "max_tokens"),
            "scratch",
            optional=True,
            doc="logits, then weights",
        ),
    ),
    scalars=(
        Scalar("scale", "float32", "factor of q·k, usually 1/sqrt(head_dim)"),
        Scalar("reduction", "int32", "mass of a KV head from its query heads; the mean adds up to 1", 1, REDUCTION),
    ),
    launch=Launch(
        layout="a warp per 32 tokens for the logits; then one thread block per (sequence, kv head), lanes over slots",
        grid=lambda a: (max(1, a["num_seqs"]), max(1, a["num_kv_heads"]), 1),
        threads=512,
        before=(
            Stage(
                "logits",
                lambda a: (
                    max(1, ceil_div(a["max_blocks_per_seq"] * a["block_size"], 256)),
                    max(1, a["num_seqs"]),
                    max(1, a["num_kv_heads"]),
                ),
                256,
            ),
        ),
        scratch_axes=lambda a: {"max_tokens": a["max_blocks_per_seq"] * a["block_size"]},
    ),
    requires=(GROUPED, SCORING_HEADS),
)
