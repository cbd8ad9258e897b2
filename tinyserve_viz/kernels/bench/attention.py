"""Rows of attention over whole contexts: one pass, split over work lists, and the readable two passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.bench.device import Device, DeviceArray, DeviceCall, Noise
from tinyserve_viz.kernels.bench.grid import BLOCK_SIZE, LLAMA3_8B, MODELS, SEED, Model, decode_shapes
from tinyserve_viz.kernels.bench.timing import sets_for
from tinyserve_viz.kernels.bench.work import Bench, Call, Work, WrongResultError, close
from tinyserve_viz.kernels.numpy_backend import NumpyBackend

READABLE = [1024] * 64  # what the two passes are timed at in the quick grid
FEW = (32, 16)
EVEN = (128, 64)  # thread blocks that a power of two of equal sequences share without a rest
WAVES = (2, 1, 3)  # thread blocks per SM of the work lists that are tried; two are resident
I32 = NDArray[np.int32]
Inputs = dict[str, DeviceArray | NDArray[Any]]


def decode(bench: Bench) -> Iterator[Work]:
    """Decode attention: every model × every shape of the grid."""
    if not bench.wants("flash_paged_attention", "paged_attention", "dynamic_workload_balancing"):
        return
    for model in (*MODELS, SEED):
        for label, lens in decode_shapes(model, bench.grid):
            if bench.wants("flash_paged_attention", "dynamic_workload_balancing"):
                yield from one_pass(bench, model, label, lens, "decode")
            readable = bench.grid == "full" or (lens == READABLE and model is LLAMA3_8B)
            if bench.wants("paged_attention") and readable:
                yield from _two_pass(bench, model, label, lens)


def one_pass(bench: Bench, model: Model, label: str, lens: Sequence[int], op: str) -> Iterator[Work]:
    """`flash_paged_attention` without a work list and with several; the row is the fastest, its plan is timed apart."""
    inputs = decode_inputs(bench, model, label, lens)
    if not inputs:
        return
    lengths = np.array(lens, np.int32)
    variants: dict[str, list[list[DeviceCall]]] = {}
    plans: dict[str, list[list[DeviceCall]]] = {}
    if len(lens) * model.num_kv_heads >= bench.device.num_sms // 2:
        variants["no work list"] = [[flash(bench, given, model)] for given in inputs]
    for workers in worker_counts(bench.device, model):
        name = f"{workers} workers"
        variants[name] = [[flash(bench, given | work_list(lengths, workers), model)] for given in inputs]
        plans[name] = [[balance(bench, lengths, workers)]]
    yield Work(
        op, "flash_paged_attention", label, attention_bytes(model, lens), variants,
        partial(_check, bench, model, lengths),
        plans=plans, baseline="paged_attention" if op == "decode" else None, facts=facts(model, lens),
    )  # fmt: skip


def _two_pass(bench: Bench, model: Model, label: str, lens: Sequence[int]) -> Iterator[Work]:
    inputs = decode_inputs(bench, model, label, lens)
    if inputs:
        calls = [[bench.call("paged_attention", given, scale=model.head_dim**-0.5)] for given in inputs]
        yield Work(
            "decode", "paged_attention", label, attention_bytes(model, lens), {"": calls},
            partial(_check, bench, model, np.array(lens, np.int32)),
            facts=facts(model, lens),
        )  # fmt: skip


def decode_inputs(bench: Bench, model: Model, label: str, lens: Sequence[int]) -> list[Inputs]:
    """Arguments of a decode call for each rotating set of sequences; none, and a line, where the pool is too small."""
    num_blocks, per_set = bench.num_blocks(model), sum(-(-n // BLOCK_SIZE) for n in lens)
    if not bench.fits(f"decode {label}", per_set, model):
        return []
    pool = (num_blocks, BLOCK_SIZE, model.num_kv_heads, model.head_dim)
    rng = bench.rng(len(lens), sum(lens))
    sets = sets_for(bench.device, attention_bytes(model, lens), num_blocks // per_set)
    query = [rng.standard_normal((len(lens), model.num_heads, model.head_dim)).astype(np.float16) for _ in range(sets)]
    return [
        {
            "query": rows, "key_cache": bench.noise("keys").view(pool), "value_cache": bench.noise("values").view(pool),
            "block_table": table, "seq_lens": np.array(lens, np.int32),
        }
        for rows, table in zip(query, tables(rng, lens, num_blocks, sets), strict=True)
    ]  # fmt: skip


def tables(rng: np.random.Generator, lens: Sequence[int], num_blocks: int, sets: int) -> list[I32]:
    """Block tables of `sets` sets of sequences, each on random blocks of its own, -1 behind a sequence's end."""
    per_seq = [-(-n // BLOCK_SIZE) for n in lens]
    ids = rng.permutation(num_blocks).astype(np.int32)
    found, at = [], 0
    for _ in range(sets):
        table = np.full((len(lens), max(per_seq)), -1, np.int32)
        for seq, count in enumerate(per_seq):
            table[seq, :count] = ids[at : at + count]
            at += count
        found.append(table)
    return found


def worker_counts(device: Device, model: Model) -> list[int]:
    """Lengths of the work lists that are tried: 2, 1 or 3 thread blocks for each SM, what a replay takes, even and few.

    The last thread block of a sequence puts its parts together: where there is little to read, few parts are best.
    """
    counts = [*(device.num_sms * waves // model.num_kv_heads for waves in WAVES), 2 * device.num_sms, *FEW]
    counts += [blocks // model.num_kv_heads for blocks in EVEN]
    return list(dict.fromkeys(max(1, count) for count in counts))


def work_list(
    lens: I32, workers: int, kept: I32 | None = None, mode: str = "even-blocks", block_size: int = BLOCK_SIZE
) -> Inputs:
    """The list that dynamic_workload_balancing makes; `kept` blocks of each sequence only."""
    sizes = {"num_workers": workers, "max_segments": workers + len(lens), "block_size": block_size, "mode": mode}
    kernel = kernel_named("dynamic_workload_balancing")
    made = NumpyBackend().run(kernel, {"seq_lens": lens} | ({} if kept is None else {"kept": kept}), sizes)
    return {name: made[name] for name in ("segments", "segment_range", "seq_segments")}


def balance(bench: Bench, lens: I32, workers: int, mode: str = "even-blocks", **arrays: I32) -> DeviceCall:
    """The call that makes such a list on the device."""
    sizes = {"num_workers": workers, "max_segments": workers + len(lens), "block_size": BLOCK_SIZE}
    return bench.call("dynamic_workload_balancing", {"seq_lens": lens, **arrays}, mode=mode, **sizes)


def flash(bench: Bench, given: Inputs, model: Model) -> DeviceCall:
    """Attention in one pass with these arguments."""
    return bench.call("flash_paged_attention", given, scale=model.head_dim**-0.5)


def attention_bytes(model: Model, lens: Sequence[int]) -> int:
    """K and V of every token, query and output rows, and the block tables, each once; no workspace."""
    kv = 4 * sum(lens) * model.num_kv_heads * model.head_dim
    return kv + 4 * len(lens) * model.num_heads * model.head_dim + 4 * sum(-(-n // BLOCK_SIZE) for n in lens)


def facts(model: Model, lens: Sequence[int]) -> dict[str, str | int]:
    """Fields that name the shape in numbers."""
    return {"model": model.name, "batch": len(lens), "tokens": int(sum(lens))}


def _check(bench: Bench, model: Model, lens: I32, calls: Sequence[Call]) -> float:
    return check_attention(bench, model, calls[0], lens)


def check_attention(bench: Bench, model: Model, call: Call, lens: I32) -> float:
    """Up to three (sequence, KV head) pairs, with every query head of the group, against float64.

    Raises:
        WrongResultError: output or log-sum-exp departs.
    """
    read = bench.device.read
    query, table, output, lse = (read(call.arrays[name]) for name in ("query", "block_table", "output", "lse"))
    group = model.num_heads // model.num_kv_heads
    found, expected, sums = [], [], []
    long = int(lens.max()) > 16_384
    for seq in {int(np.argmax(lens))} if long else sorted({0, len(lens) // 2, len(lens) - 1}):
        kv_head = seq * 7 % model.num_kv_heads
        heads = slice(kv_head * group, (kv_head + 1) * group)
        blocks = table[seq, : -(-lens[seq] // BLOCK_SIZE)]
        pools = bench.noise("keys"), bench.noise("values")
        one, total = attend(*pools, model, query[seq, heads], blocks, int(lens[seq]), kv_head)
        found.append(output[seq, heads])
        expected.append(one)
        sums.append(np.abs(lse[seq, heads] - total).max())
    if (worst := max(sums)) > 2e-3:
        raise WrongResultError(f"lse is {worst:.1e} away from float64")
    return close("output", np.concatenate(found), np.concatenate(expected))


def attend(
    keys: Noise, values: Noise, model: Model, query: NDArray[np.float16], blocks: I32, length: int, kv_head: int,
    block_size: int = BLOCK_SIZE,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Output [group][head_dim] and log-sum-exp [group] of one KV head over the first `length` tokens, in float64."""
    token = np.arange(length)
    block, slot = blocks[token // block_size].astype(np.int64), token % block_size
    starts = ((block * block_size + slot) * model.num_kv_heads + kv_head) * model.head_dim
    k, v = (noise.rows(starts, model.head_dim).astype(np.float64) for noise in (keys, values))
    scores = query.astype(np.float64) @ k.T * np.float64(np.float32(model.head_dim**-0.5))
    top = scores.max(axis=1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(axis=1, keepdims=True)
    return weights @ v / total, (top + np.log(total))[:, 0]
