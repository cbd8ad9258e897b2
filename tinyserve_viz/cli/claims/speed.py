"""Claims about time: ceilings that follow from the bytes, and what a GPU measured, if a bench file says so."""

from __future__ import annotations

import time

import numpy as np

from tinyserve_viz.analysis.claim import Number, counted
from tinyserve_viz.cli.claims import reference
from tinyserve_viz.cli.claims.counting import Ask
from tinyserve_viz.cli.claims.timed import in_words
from tinyserve_viz.cli.session import Settings, prepare
from tinyserve_viz.engine.replay import Engine
from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.numpy_backend import NumpyBackend
from tinyserve_viz.trace import Request, Trace

Found = tuple[list[Number], str]

LONG = 131_072
_ONE_OVER_TWO = "one launch over two"
INT32 = 2**31


def query_aware(ask: Ask) -> Found:
    """The most that reading a share ρ of the K/V and all boxes can gain, and what was measured."""
    numbers = [
        counted(
            f"ceiling, ρ = {share:g}, pages of {page}",
            1 / (share + 1 / page),
            "×",
            "bytes of full attention / (ρ of the K/V + boxes, 1/page of the K/V); kernel time, not a whole request",
        )
        for share in (0.1, 0.2, 0.3, 0.5)
        for page in (16, 32, 64)
    ]
    numbers.append(counted("ceiling, free metadata", 1 / 0.3, "×", "1 / ρ at ρ = 0.3: boxes cost nothing"))
    needed = 1 / 3.4 - 1 / 16
    numbers.append(counted("ρ needed for 3.4×", needed, "", "1 / 3.4 − 1 / 16, pages of 16"))
    for form in ("query_aware, fused", "query_aware, three launches"):
        numbers += ask.timed.speed_ups("sparse-decode", "flash_paged_attention", form, f"{form} over full")
    return numbers, (
        f"3.4× is beyond the byte ceiling of the published defaults (ρ = 0.3, pages of 16: {1 / (0.3 + 1 / 16):.2f}×); "
        f"it needs ρ of {needed:.2f} or less; {in_words(numbers, 'query_aware, fused over full')}; "
        f"{in_words(numbers, 'query_aware, three launches over full')}"
    )


def average(ask: Ask) -> Found:
    """The published milliseconds as a ratio."""
    ratio = 156.8 / 72.8
    numbers = [counted("their ratio", ratio, "×", "156.8 ms / 72.8 ms, both as published")]
    numbers += ask.timed.speed_ups("sparse-decode", "flash_paged_attention", "query_aware, fused", "fused over full")
    return numbers, f"the published times give {ratio:.2f}×, inside the ceiling; the model's time needs the model"


def flash(ask: Ask) -> Found:
    """One pass against two."""
    numbers = [
        counted("ceiling", 1.5, "×", "bytes of two passes, 2K + V, / of one, K + V, where K does not fit in L2"),
        *ask.timed.speed_ups("decode", "paged_attention", "flash_paged_attention", "one pass over two"),
    ]
    return numbers, (
        "more than 1.5× over two passes is not explained by bytes but by how the two passes were written; "
        f"{in_words(numbers, 'one pass over two')}"
    )


def long_context(ask: Ask) -> Found:
    """Attention over 131,072 tokens against float64, and where 32-bit indices would have ended."""
    heads, kv_heads, dim, size = 8, 2, 64, 16
    ask.say("attending over 131,072 tokens (NumPy reference)")
    rng = np.random.default_rng(131_072)
    blocks = LONG // size
    table = rng.permutation(blocks).astype(np.int32)[None]
    keys, values = (rng.standard_normal((blocks, size, kv_heads, dim), np.float32).astype(np.float16) for _ in range(2))
    query = rng.standard_normal((1, heads, dim)).astype(np.float16)
    started = time.perf_counter()
    outputs = NumpyBackend().run(
        kernel_named("flash_paged_attention"),
        {
            "query": query,
            "key_cache": keys,
            "value_cache": values,
            "block_table": table,
            "seq_lens": np.array([LONG], dtype=np.int32),
        },
        {"scale": dim**-0.5},
    )
    spent = time.perf_counter() - started
    worst = 0.0
    for head in (0, 3, heads - 1):
        kv = head // (heads // kv_heads)
        k = keys[table[0], :, kv].reshape(-1, dim).astype(np.float64)
        v = values[table[0], :, kv].reshape(-1, dim).astype(np.float64)
        logits = k @ query[0, head].astype(np.float64) * dim**-0.5
        share = np.exp(logits - logits.max())
        expected = share @ v / share.sum()
        worst = max(worst, float(np.abs(outputs["output"][0, head] - expected).max()))
    on = f"B = 1, {heads} / {kv_heads} heads of {dim}, blocks of {size}, iid"
    hidden = 4096
    numbers = [
        counted("largest error", worst, "", "|output − float64 softmax| over 3 sampled heads of 8", on),
        counted("pool", keys.nbytes + values.nbytes, "bytes", "K and V of 131,072 tokens, fp16, one layer", on),
        counted("NumPy reference", spent, "s", "wall time of the reference on this CPU: no kernel time", on),
        counted("elements at B = 4", 4 * LONG * hidden, "", f"4 × 131,072 × hidden {hidden:,}; int32 ends at 2³¹ − 1"),
        counted("batch that overflows", INT32 // (LONG * hidden), "", "smallest B at which a 32-bit index wraps"),
        *ask.timed.times("decode", "flash_paged_attention", "one decode step", f"L={LONG}"),
    ]
    return numbers, (
        f"131,072 tokens work and agree with float64 to {worst:.1e} on the reference; the published 32-bit indices "
        "wrap at batch 4 with hidden 4,096, ours are 64-bit"
    )


def fused_write(ask: Ask) -> Found:
    """One launch for K, V and boxes, against a reshape and a write."""
    numbers = [
        counted("launches", 1, "", "K, V and boxes of all sequences"),
        counted("ceiling", 2.0, "×", "bytes: a reshape of its own reads and writes the new rows, the write again"),
        *ask.timed.rates("kv-write", "fused_reshape_and_block_write", "fused write"),
        *ask.timed.speed_ups("kv-write-apart", "reshape, then write", "one launch", _ONE_OVER_TWO),
    ]
    if not ask.timed.rows:
        numbers += reference.writes(ask)
    return numbers, (
        "written apart, new rows are read and written once more; of a few tokens that is a launch and no bytes; "
        f"{in_words(numbers, _ONE_OVER_TWO)}"
    )


def batched_copies(ask: Ask) -> Found:
    """One launch of n copies."""
    numbers = [
        *ask.timed.speed_ups("copy-apart", "a launch each", "one launch", "one launch over n"),
        *ask.timed.speed_ups("copy-apart", "three memcpys each", "one launch", "one launch over memcpys"),
        *ask.timed.rates("block-copy", "fused_block_copy", "one launch of n copies"),
    ]
    return numbers, (
        "both ways move the same bytes, so batching can save launches only; "
        f"{in_words(numbers, 'one launch over n')}; {in_words(numbers, 'one launch over memcpys')}"
    )


def bandwidth(ask: Ask) -> Found:
    """GB/s of every kernel that has useful bytes."""
    numbers = []
    for op, impl in dict.fromkeys((row.op, row.impl) for row in ask.timed.rows if row.gbs):
        numbers += ask.timed.rates(op, impl, impl)
    return numbers or ask.timed.missing("GB/s of each kernel"), "a share of what a copy reaches in the same process"


def metadata(ask: Ask) -> Found:
    """Bytes of boxes over bytes of K/V."""
    numbers = [
        counted(f"boxes, pages of {page}", 1 / page, "%", "2 · D values a page and KV head / 2 · page · D of K and V")
        for page in (4, 16, 64)
    ]
    numbers += ask.timed.rates("page-score", "block_scoring", "scoring")
    return numbers, "6.25 % of the K/V at pages of 16, read in every step: small, not free; at pages of 4 a quarter"


def users(ask: Ask) -> Found:
    """Step latencies of 1,024 requests that arrive every 50 ms on average."""
    rng = np.random.Generator(np.random.PCG64(1024))
    gaps = np.maximum(1, np.round(-50_000 * np.log1p(-rng.random(1024)))).astype(int)
    arrivals = np.cumsum(gaps) - gaps[0]
    lengths = (rng.random((1024, 2)) * 400).astype(int) + 100
    requests = tuple(
        Request(f"u{i}", int(at), int(p), int(o)) for i, (at, (p, o)) in enumerate(zip(arrivals, lengths, strict=True))
    )
    header = prepare(Trace("users", "json", requests, seed=1024), Settings(kernels="none"))
    ask.say("replaying 1,024 users")
    spent: list[int] = []
    engine = Engine(header.workload, header.engine, header.rules, lambda _step, _event: None)
    before = 0
    while engine.step():
        spent.append(engine.state.time_us - before)
        before = engine.state.time_us
    steps = np.array(spent, dtype=np.float64) / 1e3
    end_to_end = (engine.state.finished_us - header.workload.arrival_us[header.workload.request_of_seq]) / 1e3
    on = "1,024 requests, prompt and output uniform 100 … 499, Poisson 50 ms, PCG64 seed 1024, model clock"
    clock = "20 ms + 20 µs a prefilled token + 50 µs a decoding sequence"
    numbers = [
        counted("engine step, P50", float(np.percentile(steps, 50)), "ms", f"{clock}; linear percentile", on),
        counted("engine step, P99", float(np.percentile(steps, 99)), "ms", f"{clock}; linear percentile", on),
        counted("request, P50", float(np.percentile(end_to_end, 50)), "ms", "from arrival to its last token", on),
        counted("offered load", 1e3 / 50, "requests/s", "1 / 50 ms, if that is the mean over all users together"),
        *ask.timed.times("step", "", "kernels of a step"),
    ]
    return numbers, (
        "no comparison with the paper: 32 ms cannot be a whole request of hundreds of tokens, and 28.6 requests/s is "
        "more than one every 50 ms offers, so what was measured there is open"
    )


def eight_gpus(_ask: Ask) -> Found:
    """Their arithmetic."""
    return [
        counted("their ratio", 6.221 / 0.81, "×", "6.221 / 0.81 tokens per ms, both as published"),
        counted("their efficiency", 6.221 / 0.81 / 8, "%", "that ratio / 8 GPUs"),
    ], "the arithmetic is consistent; several GPUs are out of this tool's scope"
