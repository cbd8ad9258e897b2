"""Claims about memory: utilisation, waste, fragmentation, padding, balance, eviction. Counted from traces."""

from __future__ import annotations

import itertools
import time

import numpy as np

from tinyserve_viz.analysis import utilization as use
from tinyserve_viz.analysis.claim import MEASURED, Number, counted
from tinyserve_viz.analysis.compaction import preview
from tinyserve_viz.analysis.fragmentation import cost_in_words
from tinyserve_viz.cli.claims.counting import BALANCE, WORKERS, Ask, Counted, imbalance
from tinyserve_viz.cli.claims.timed import in_words
from tinyserve_viz.core.config import EVICTIONS, EngineConfig
from tinyserve_viz.trace import Trace

Found = tuple[list[Number], str]

BLOCK_SIZES = (8, 16, 32, 64, 128)
BASELINES = ("contiguous", "pow2", "exact")
CLAIMED_USE, CLAIMED_OTHERS = 0.96, (0.60, 0.80)
_DECODING = "Σ tokens / Σ slots over (sequence, decode step)"


def reservation(trace: Trace) -> int:
    """Token slots that the contiguous baseline reserves: what the trace says, else the next power of two that holds its
    longest request."""
    said = trace.engine.get("max_model_len")
    if said:
        return int(said)
    longest = max(r.prompt_len + r.output_len for r in trace.requests)
    return max(1 << (longest - 1).bit_length(), 1)


def utilisation(ask: Ask) -> Found:
    """Paged and reserved memory on every trace, counted over all its requests."""
    numbers, said = [], []
    for trace in ask.traces:
        prompt, output = ask.lengths(trace)
        mean = use.mean_length(prompt, output)
        if mean is None:
            continue
        reserve = reservation(trace)
        numbers.append(counted("mean length", mean, "tokens", "mean context over (sequence, decode step)", trace.name))
        shares = {}
        for size in BLOCK_SIZES:
            share = use.paged(prompt, output, size)
            assert share is not None
            shares[size] = share
            expected = use.expected_paged(mean, size)
            words = f"{_DECODING}; L / (L + (bs − 1)/2) gives {100 * expected:.2f} %"
            numbers.append(counted(f"paged, blocks of {size}", share, "%", words, trace.name))
        slots = {
            "contiguous": (np.full(len(prompt), reserve, dtype=np.int64), f"reserves {reserve:,} slots a request"),
            "pow2": (use.pow2_slots(prompt, output), "reserves prompt + 2^⌈log2 output⌉"),
            "exact": (prompt + output, "reserves prompt + output, as if the output were known"),
        }
        others = {}
        for name, (reserved, words) in slots.items():
            share = use.reserved(prompt, output, reserved)
            assert share is not None
            others[name] = share
            numbers.append(counted(name, share, "%", f"{_DECODING}; {words}", trace.name))
        said.append(_said(trace.name, shares[16], others))
        numbers += _replayed(ask, trace)
    needed = use.length_needed(CLAIMED_USE, 16)
    numbers.append(
        counted("length needed for 96 %", needed, "tokens", "mean length at which L / (L + 7.5) = .96, blocks of 16")
    )
    return numbers, "; ".join([*said, "waste is 1 − utilisation: a line that says 60–80 % for both contradicts itself"])


def _replayed(ask: Ask, trace: Trace) -> list[Number]:
    """What the allocator itself does with the first requests, sharing and preemption included."""
    run = ask.replay(trace, allocator="paged", max_model_len=reservation(trace))
    found, on = run.totals["utilization"], f"{ask.first(trace)}, replayed in blocks of {run.header.engine.block_size}"
    words = {
        "decode": f"{_DECODING}, a shared block for each of its sequences",
        "physical": "Σ distinct tokens / Σ slots of used blocks over steps, a shared block once",
        "waste": "1 − physical: internal fragmentation",
    }
    return [counted(name, found[name], "%", words[name], on) for name in words if found[name] is not None]


def _said(name: str, paged: float, others: dict[str, float]) -> str:
    claim = "shown" if paged > CLAIMED_USE else "refuted"
    low, high = CLAIMED_OTHERS
    inside = [other for other, share in others.items() if low <= share <= high]
    rest = ", ".join(f"{other} {100 * share:.1f} %" for other, share in others.items())
    kind = f"60–80 % is {' and '.join(inside)}" if inside else "no baseline is at 60–80 %"
    return f"{name}: above 96 % {claim} for blocks of 16 ({100 * paged:.2f} %) against {rest}; {kind}"


def concurrency(ask: Ask) -> Found:
    """How many sequences run at once, and how many engine steps the same requests take, under one memory budget."""
    numbers, said = [], []
    for trace in ask.traces:
        config = {"max_model_len": reservation(trace)}
        runs = {kind: ask.replay(trace, "burst", allocator=kind, **config) for kind in ("paged", *BASELINES)}
        size = runs["paged"].header.engine
        slots = size.num_blocks * size.block_size
        on = f"{ask.first(trace)}, all waiting from the start, {slots:,} token slots, {size.max_num_seqs} seats"
        for kind, run in runs.items():
            fit = run.totals["requests"]["completed"]
            words = f"mean running sequences a step; {fit:,} requests completed in {run.steps:,} steps"
            numbers.append(counted(f"{kind}, running", run.running / max(run.steps, 1), "sequences", words, on))
        paged = runs["paged"]
        for kind in BASELINES:
            run = runs[kind]
            if run.totals["requests"]["completed"] != paged.totals["requests"]["completed"]:
                continue  # it did less, so its steps say nothing
            ratio = run.steps / paged.steps
            words = f"steps of {kind} / steps of paged for the same requests ({run.steps:,} / {paged.steps:,})"
            numbers.append(counted(f"paged over {kind}", ratio, "×", words, on))
            said.append(f"{trace.name}: {ratio:.2f}× fewer steps than {kind}")
    numbers += ask.timed.rates("decode", "flash_paged_attention", "attention of a step")
    return numbers, (
        f"{'; '.join(said) or 'nothing to compare'}; a ratio of engine steps, no throughput: no model runs here"
    )


def fragmentation(ask: Ask) -> Found:
    """External fragmentation under each allocator; scatter and span before and after a compaction."""
    numbers = []
    for trace in ask.traces:
        on = ask.first(trace)
        for kind in ("paged", *BASELINES):
            run = ask.replay(trace, allocator=kind, max_model_len=reservation(trace))
            if run.external:
                mean = float(np.mean(run.external))
                words = f"1 − longest free run / free, mean of {len(run.external)} states; {cost_in_words(kind)}"
                numbers.append(counted(f"external, {kind}", mean, "%", words, on))
        paged = ask.replay(trace, allocator="paged", max_model_len=reservation(trace))
        numbers += _compacted(paged, on)
        if paged.scatter:
            mean = float(np.mean(paged.scatter))
            words = "consecutive logical blocks that do not lie side by side"
            numbers.append(counted("scatter, paged", mean, "%", words, on))
    numbers += ask.timed.rates("compaction-move", "memory_compaction", "moving blocks")
    numbers += ask.timed.speed_ups("decode-layout", "blocks scattered", "blocks in order", "attention, in order")
    long, short = scattered_reads(4096), scattered_reads(64)
    numbers += [long, short]
    return numbers, (
        "external fragmentation costs a paged pool no capacity, so there is nothing to save by best fit; what scatter "
        f"costs depends on how long a block is: on this host random places took {long.value:.2f}× the time of reading "
        f"in order for blocks of 4 KiB, {short.value:.2f}× for pieces of 64 bytes; "
        f"{in_words(numbers, 'attention, in order')}"
    )


def _compacted(run: Counted, on: str) -> list[Number]:
    if run.worst is None:
        return []
    shown = preview(run.header, run.worst, "plain")
    place = f"{on}, step {run.worst.step}, the sampled state with the most to move"
    found = []
    for name in ("external", "frag_ratio", "scatter", "stranded"):
        before, after = getattr(shown.before, name), getattr(shown.after, name)
        if before is None or after is None:
            continue
        unit = "×" if name == "frag_ratio" else "%"
        text = f"{100 * before:.1f} %" if unit == "%" else f"{before:.2f} ×"
        words = f"after plain compaction of {len(shown.plan.src):,} blocks; before {text}"
        found.append(counted(f"{name}, compacted", after, unit, words, place))
    return found


def scattered_reads(piece: int) -> Number:
    """Time to gather pieces of so many bytes from random places over the time to gather them in order, on this host."""
    total, repeats = 64 << 20, 5
    pool = np.arange(total // 8, dtype=np.int64).reshape(-1, piece // 8)
    target = np.empty_like(pool)
    orders = np.arange(len(pool)), np.random.default_rng(0).permutation(len(pool))
    spent = []
    for order in orders:
        np.take(pool, order, axis=0, out=target, mode="clip")
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            np.take(pool, order, axis=0, out=target, mode="clip")
            times.append(time.perf_counter() - started)
        spent.append(float(np.median(times)))
    words = "time of a gather of 64 MiB in random order / in order, medians of 5"
    name = f"scattered reads, {piece:,} bytes each"
    return Number(name, spent[1] / spent[0], "×", MEASURED, words, "the memory of this host, which is no GPU")


def variable_lengths(ask: Ask) -> Found:
    """Slots of a padded batch against slots of blocks, on the same steps."""
    numbers, said = [], []
    for trace in ask.traces:
        run = ask.replay(trace, allocator="paged", max_model_len=reservation(trace))
        if not run.padded:
            continue
        on = ask.first(trace)
        padded, paged = run.tokens / run.padded, run.tokens / run.paged
        words = "Σ tokens / Σ (decoding sequences × the longest of them), every step"
        numbers += [
            counted("padded batch", padded, "%", words, on),
            counted("paged", paged, "%", "Σ tokens / Σ slots of their blocks, the same steps", on),
        ]
        said.append(f"{trace.name}: a padded batch holds {paged / padded:.2f}× the slots")
    numbers += ask.timed.times("decode-lists", "even-blocks", "attention, the same tokens")
    return numbers, "; ".join(said) or "no trace decodes"


def balancing(ask: Ask) -> Found:
    """Most loaded worker over the mean, by way of sharing out, on the batches of the traces and two made up."""
    numbers: list[Number] = []
    worst: dict[str, list[float]] = {}
    batches = [
        ("64 sequences of 4,096", np.full(64, 4096)),
        ("one of 65,536 and 31 of 1,024", np.array([65_536] + [1024] * 31)),
    ]
    for name, lengths in batches:
        for mode, value in imbalance(lengths, 16).items():
            words = f"most tokens of a worker / mean of {WORKERS} workers"
            numbers.append(counted(f"max/mean, {mode}", value, "×", words, name))
            worst.setdefault(mode, []).append(value)
    for trace in ask.traces:
        run = ask.replay(trace, allocator="paged", max_model_len=reservation(trace))
        for mode in BALANCE:
            if run.imbalance[mode]:
                mean = float(np.mean(run.imbalance[mode]))
                words = f"the same, mean of {len(run.imbalance[mode])} decode batches"
                numbers.append(counted(f"max/mean, {mode}", mean, "×", words, ask.first(trace)))
                worst.setdefault(mode, []).append(mean)
    for mode in ("even-blocks", "lpt"):
        numbers += ask.timed.speed_ups("decode-lists", "per-seq", mode, f"{mode} over per-seq")
    per_seq, even = max(worst["per-seq"]), max(worst["even-blocks"])
    return numbers, (
        f"whole sequences leave a worker with up to {per_seq:.1f}× the mean, equal cuts of the blocks {even:.2f}×; "
        "the published kernel cuts evenly and nothing consumes its ranges; "
        f"{in_words(numbers, 'even-blocks over per-seq')}"
    )


def eviction(ask: Ask) -> Found:
    """Prefix hits and evictions of each policy at one pool size, beside what foresight would reach."""
    numbers, said = [], []
    for trace in ask.traces:
        if not any(r.prefix_hash_ids is not None or r.prompt_tokens is not None for r in trace.requests):
            said.append(f"{trace.name} does not tell which prompts share a prefix")
            continue
        size = {} if "num_blocks" in trace.engine else _pool_under_pressure(trace, ask)
        rates = {}
        for policy in (*EVICTIONS, "belady"):
            run = ask.replay(trace, "trace", eviction=policy, **size)
            prefix, evicted = run.totals["prefix"], run.totals["blocks"]["evictions"]
            rates[policy] = prefix["token_hit_rate"] or 0.0
            engine = run.header.engine
            on = f"{ask.first(trace)}, {engine.num_blocks:,} blocks of {engine.block_size}"
            words = f"prompt tokens found in the prefix cache; {evicted:,} blocks evicted"
            numbers.append(counted(policy, rates[policy], "%", words, on))
        said.append(
            f"{trace.name}: {_ranked(rates)}; seed finds {100 * (rates['seed'] - rates['lru']):+.2f} points of lru's"
        )
    return numbers, "; ".join(said)


def _ranked(rates: dict[str, float]) -> str:
    """`belady > lru = fifo`, best first."""
    order = sorted(rates, key=lambda policy: -rates[policy])
    text = order[0]
    for before, after in itertools.pairwise(order):
        text += f" {'=' if rates[before] == rates[after] else '>'} {after}"
    return text


def _pool_under_pressure(trace: Trace, ask: Ask) -> dict[str, int]:
    """A pool that holds about a quarter of the prompt blocks of the replayed requests, and any one request."""
    block = trace.hash_block or EngineConfig().block_size
    block = block if block <= 1024 else EngineConfig().block_size
    first = trace.requests[: ask.requests]
    total = sum(-(-r.prompt_len // block) for r in first)
    largest = max(-(-(r.prompt_len + r.output_len) // block) for r in first)
    return {"block_size": block, "num_blocks": max(total // 4, 2 * largest)}
