"""The published claims, one entry each: what is said where, what is open about it, and the function that answers.

`S:` is a line of TinyServe's README, the paper is arXiv 2509.12211 (read up to its introduction; its numbers come from
a secondary summary, marked 2nd), `tinyserve-vllm` the public repository of that name.
"""

from __future__ import annotations

from collections.abc import Callable

from tinyserve_viz.analysis.claim import Claim, Number, not_measured
from tinyserve_viz.cli.claims import memory, selection, speed
from tinyserve_viz.cli.claims.counting import Ask

Measure = Callable[[Ask], tuple[list[Number], str]]


def _claimed_only(why: str, verdict: str) -> Measure:
    return lambda _ask: ([not_measured("here", why)], verdict)


CLAIMS: tuple[tuple[Claim, Measure], ...] = (
    (
        Claim(
            "utilisation",
            "memory utilisation above 96 %, waste below 4 %, against 60–80 %",
            "S:243, S:245, S:584, S:587",
            "60–80 % is called utilisation in one line and waste in another; the example prints the 96 % as a literal",
        ),
        memory.utilisation,
    ),
    (
        Claim(
            "throughput",
            "up to 30× throughput",
            "S:244, S:585",
            "no baseline, model or hardware is named; the example prints it as a literal",
        ),
        memory.concurrency,
    ),
    (
        Claim(
            "hit-rate",
            "cache hit rate +15–25 % with query-aware selection",
            "S:586",
            "which hit rate, over which baseline, in per cent or points?",
        ),
        selection.hit_rate,
    ),
    (
        Claim(
            "context",
            "context of up to 131,072 tokens",
            "S:246, S:588",
            "all published indices are 32-bit",
        ),
        speed.long_context,
    ),
    (
        Claim(
            "fragmentation",
            "fragmentation −40–60 %, best fit saves 20–30 %",
            "README of tinyserve-vllm, later commented out",
            "the measure is not defined, its kernel computes utilisation",
        ),
        memory.fragmentation,
    ),
    (
        Claim("flash", "FlashAttention gives 2–3×", "README of tinyserve-vllm", "over which baseline?"),
        speed.flash,
    ),
    (
        Claim("lengths", "efficient handling of variable-length sequences", "S:26, S:247, S:589", "undefined"),
        memory.variable_lengths,
    ),
    (
        Claim("fused-write", "reshape fused with block writing minimises launch overhead", "S:32", "no baseline"),
        speed.fused_write,
    ),
    (Claim("block-copies", "batching of multiple block copies", "S:170", "no baseline"), speed.batched_copies),
    (
        Claim("bandwidth", "coalescing for maximum bandwidth, warp-level reductions", "S:532, S:533", "undefined"),
        speed.bandwidth,
    ),
    (
        Claim(
            "balancing",
            "dynamic workload balancing",
            "S:534",
            "the published split is static and even, and no kernel consumes it",
        ),
        memory.balancing,
    ),
    (
        Claim(
            "eviction",
            "LRU cache management with access-pattern learning",
            "S:535",
            "the published priority never advances: its LRU is always the first free block",
        ),
        memory.eviction,
    ),
    (
        Claim(
            "speed-up",
            "up to 3.4× speed-up",
            "paper, abstract",
            "attention or whole request, at which ratio and page size?",
        ),
        speed.query_aware,
    ),
    (
        Claim(
            "average",
            "2.1–3.4× on average to 32 K; LLaMA-1.3B at 32 K 156.8 → 72.8 ms",
            "paper, 2nd",
            "end to end on a model that is not here",
        ),
        speed.average,
    ),
    (
        Claim(
            "memory-savings",
            "more than 2× memory saved; 15.8 → 7.2 GB",
            "paper, abstract; 2nd",
            "selection keeps all pages resident; the batch is not known to us",
        ),
        selection.resident,
    ),
    (
        Claim(
            "page-size",
            "pages of 4 → 64: latency 17.6 → 6.2 ms, perplexity 24.3 → 32.5, KV hit 98.4 → 79.3 %",
            "paper, 2nd",
            "KV hit is not defined in what can be read; public code returns the constant 0.95",
        ),
        selection.page_size,
    ),
    (Claim("ratio", "selection ratio 0.1–0.5, default 0.3", "paper, 2nd", "a setting, no result"), selection.ratio),
    (
        Claim(
            "longbench",
            "LongBench average 68.9 → 70.2, single tasks −0.4 … −0.9",
            "paper, 2nd",
            "an average above full attention is not explained",
        ),
        _claimed_only("needs a model and its tasks", "claimed only; captured Q/K/V show mass kept, no score of a task"),
    ),
    (
        Claim(
            "users",
            "1,024 users: P50 45.2 → 32.1 ms, P99 128.7 → 89.3 ms, 18.4 → 28.6 requests/s (vLLM → TinyServe)",
            "paper, 2nd",
            "32 ms of what? 28.6 requests/s is more than a global mean of one every 50 ms offers",
        ),
        speed.users,
    ),
    (
        Claim("eight-gpus", "8 GPUs 7.68×, 96 % efficiency (0.81 → 6.221 tokens/ms)", "paper, 2nd", "hardware unknown"),
        speed.eight_gpus,
    ),
    (Claim("metadata", "metadata is small, stays in L2 or shared memory", "paper, 2nd", "how small?"), speed.metadata),
    (
        Claim("fused-selection", "the fused kernel beats separate launches", "paper, abstract", "no number"),
        selection.fused_choice,
    ),
    (
        Claim("reuse", "pages are reused from step to step", "paper, 2nd", "depends wholly on the content"),
        selection.reuse,
    ),
    (
        Claim(
            "early-exit",
            "early exit when the softmax entropy is below 0.5 after 10 tokens; token pruning; approximate attention",
            "paper's authors' code, veScale pull request 66",
            "the other plugins return their input",
        ),
        _claimed_only("needs logits, which no trace holds", "claimed only"),
    ),
)
