"""Time the kernels on the GPU of this machine: python -m tests.gpu.measure [--only NAME] prints the rows of a table.

Arrays stay on the device. A CUDA graph of launches that rotate over inputs (together larger than the L2 cache) is
replayed; the time is the median replay over its launches. GB/s counts useful bytes; the share is of a device-to-device
copy in the same process. Nothing is timed on zeros.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.cuda_backend import arguments_of, gpu, scratch_axes
from tinyserve_viz.kernels.numpy_backend import NumpyBackend

GPU = gpu()
DRV = GPU.driver
RNG = np.random.default_rng(0)
SIZE, DIM = 16, 128


class On:
    """An array of the device, with the shape and dtype of a host array that need not exist in memory."""

    def __init__(self, array: Any = None, shape: Sequence[int] = (), dtype: Any = np.float16, pointer: int = 0) -> None:
        self.host = np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, (0,) * len(shape))
        if array is not None:
            self.host = array
            self.memory = DRV.mem_alloc(max(16, array.nbytes))
            if array.nbytes:
                DRV.memcpy_htod(self.memory, np.ascontiguousarray(array))
            pointer = int(self.memory)
        self.pointer = pointer


def random_halfs(shape: Sequence[int]) -> On:
    """fp16 normals: 32 MiB made on the host, repeated to fill the array."""
    size = int(np.prod(shape, dtype=np.int64)) * 2
    tile = RNG.standard_normal(1 << 24, np.float32).astype(np.float16)
    memory = DRV.mem_alloc(size)
    for at in range(0, size, tile.nbytes):
        DRV.memcpy_htod(int(memory) + at, tile[: (size - at) // 2])
    found = On(None, shape, np.float16, int(memory))
    found.memory = memory
    return found


@dataclass
class Op:
    """One call on device arrays, ready to launch."""

    plan: Any
    arguments: tuple[Any, ...]
    kept: Any

    def launch(self, stream: Any) -> None:
        self.plan.launch(self.arguments, stream)


def op(name: str, arrays: dict[str, Any], **scalars: Any) -> Op:
    """A call with the definition's defaults; outputs and scratch are made."""
    kernel = kernel_named(name)
    held = {key: value if isinstance(value, On) else On(value) for key, value in arrays.items()}
    axes: dict[str, int] = {}
    for arg in kernel.args:
        if arg.name in held:
            for axis, size in zip(arg.axes, held[arg.name].host.shape, strict=True):
                axes.setdefault(axis, size)
    given = {key: scalars.pop(key) for key in list(scalars) if key in kernel.axes}
    axes = dict.fromkeys(kernel.axes, 0) | axes | given
    axes = scratch_axes(kernel, {key: size for key, size in axes.items() if not key.isdigit()})
    for arg in kernel.args:
        shape = [int(axis) if axis.isdigit() else axes[axis] for axis in arg.axes]
        if arg.name not in held and (arg.role == "out" or (arg.role == "scratch" and all(shape))):
            held[arg.name] = On(np.zeros(shape, arg.dtype))
    values = {scalar.name: scalars.get(scalar.name, scalar.default) for scalar in kernel.scalars}
    for scalar in kernel.scalars:
        if isinstance(values[scalar.name], str):
            values[scalar.name] = scalar.choices.index(values[scalar.name])
    has = {f"has_{arg.name}": arg.name in held for arg in kernel.args}
    status = On(np.zeros(1, np.int32))
    pointers = {key: value.pointer for key, value in held.items()}
    plan = GPU.plan(kernel, axes, has)
    return Op(plan, arguments_of(kernel, pointers, axes, values, status.pointer), (held, status))


def checked(one: Op) -> None:
    """Run it once; a status that is not 0 means that nothing useful would be timed."""
    one.launch(None)
    status = np.zeros(1, np.int32)
    DRV.memcpy_dtoh(status, one.kept[1].memory)
    assert status[0] == 0, f"status {status[0]}"


class Graph:
    """Launches captured on a stream, through the driver API, which PyCUDA does not wrap."""

    def __init__(self, launch: Callable[[Any], None]) -> None:
        self.lib = ctypes.CDLL("libcuda.so.1")
        self.stream = DRV.Stream()
        handle, graph, self.ready = ctypes.c_void_p(self.stream.handle), ctypes.c_void_p(), ctypes.c_void_p()
        self._do("cuStreamBeginCapture_v2", handle, 2)
        launch(self.stream)
        self._do("cuStreamEndCapture", handle, ctypes.byref(graph))
        self._do("cuGraphInstantiateWithFlags", ctypes.byref(self.ready), graph, ctypes.c_ulonglong(0))

    def _do(self, name: str, *arguments: Any) -> None:
        if error := getattr(self.lib, name)(*arguments):
            raise RuntimeError(f"{name}: CUresult {error}")

    def replay(self) -> float:
        """µs of one replay."""
        start, end = DRV.Event(), DRV.Event()
        start.record(self.stream)
        self._do("cuGraphLaunch", self.ready, ctypes.c_void_p(self.stream.handle))
        end.record(self.stream)
        end.synchronize()
        return float(start.time_till(end)) * 1000


def median_us(ops: Sequence[Sequence[Op]], replays: int = 15) -> float:
    """Median µs of one group of launches; the groups rotate."""
    for group in ops:
        for one in group:
            checked(one)
    rounds = max(1, 16 // len(ops))

    def launch(stream: Any) -> None:
        for _ in range(rounds):
            for group in ops:
                for one in group:
                    one.launch(stream)

    graph = Graph(launch)
    graph.replay()
    return float(np.median([graph.replay() for _ in range(replays)])) / (rounds * len(ops))


COPY = 0.0


def copy_gbs() -> float:
    """Best of several copies of 2 GiB between two buffers, read + written."""
    size = 1 << 31
    a, b = random_halfs((size // 2,)), DRV.mem_alloc(size)
    times = []
    for _ in range(8):
        start, end = DRV.Event(), DRV.Event()
        start.record()
        DRV.memcpy_dtod_async(int(b), a.pointer, size)
        end.record()
        end.synchronize()
        times.append(start.time_till(end) * 1e6)
    return 2 * size / min(times)


def row(name: str, shape: str, microseconds: float, useful: float = 0.0) -> None:
    rate = useful / microseconds / 1000
    tail = f"{rate:.0f} | {100 * rate / COPY:.0f}" if useful else " | "
    print(f"| {name} | {shape} | {microseconds:.1f} | {tail} |", flush=True)


# --- attention --------------------------------------------------------------------------------------------------------


def tables(lens: Sequence[int], num_blocks: int) -> list[np.ndarray]:
    """Block tables of as many sets of sequences as the pool holds, at most 8, on disjoint random blocks."""
    per = [-(-length // SIZE) for length in lens]
    sets = max(1, min(8, num_blocks // sum(per)))
    ids, found, at = RNG.permutation(num_blocks).astype(np.int32), [], 0
    for _ in range(sets):
        table = np.full((len(lens), max(per)), -1, np.int32)
        for seq, count in enumerate(per):
            table[seq, :count] = ids[at : at + count]
            at += count
        found.append(table)
    return found


def work_list(lens: np.ndarray, workers: int, kept: np.ndarray | None = None) -> dict[str, Any]:
    plan = NumpyBackend().run(
        kernel_named("dynamic_workload_balancing"),
        {"seq_lens": lens} | ({} if kept is None else {"kept": kept}),
        {"num_workers": workers, "max_segments": workers + len(lens), "block_size": SIZE},
    )
    return {name: plan[name] for name in ("segments", "segment_range", "seq_segments")}


def attention(heads: int, kv_heads: int, cases: Sequence[tuple[str, list[int]]], name: str, two_pass: bool) -> None:
    num_blocks = (1 << 29) // (SIZE * kv_heads * DIM)
    keys, values = (random_halfs((num_blocks, SIZE, kv_heads, DIM)) for _ in range(2))
    for shape, lens in cases:
        lengths = np.array(lens, np.int32)
        query = RNG.standard_normal((len(lens), heads, DIM)).astype(np.float16)
        useful = 4 * sum(lens) * kv_heads * DIM + 4 * len(lens) * heads * DIM + 4 * sum(-(-n // SIZE) for n in lens)
        base = [
            {"query": query, "key_cache": keys, "value_cache": values, "block_table": table, "seq_lens": lengths}
            for table in tables(lens, num_blocks)
        ]
        for workers in (0, *(132 * k // kv_heads for k in (3, 6, 12))):
            if not workers and len(lens) * kv_heads < 64:
                continue
            work = work_list(lengths, workers) if workers else {}
            ops = [[op("flash_paged_attention", {**arrays, **work}, scale=DIM**-0.5)] for arrays in base]
            how = f"{workers} workers" if workers else "no list"
            row("flash_paged_attention", f"{name} {shape}, {how}", median_us(ops), useful)
        if two_pass:
            ops = [[op("paged_attention", arrays, scale=DIM**-0.5)] for arrays in base]
            row("paged_attention", f"{name} {shape}", median_us(ops, 3), useful)


def attentions() -> None:
    llama3 = [
        ("B=1 L=8192", [8192]), ("B=1 L=131072", [131_072]), ("B=8 L=8192", [8192] * 8),
        ("B=16 L=4096", [4096] * 16), ("B=64 L=4096", [4096] * 64), ("B=256 L=1024", [1024] * 256),
        ("B=32, one of 65536 and 31 of 1024", [65_536] + [1024] * 31),
        ("B=64, uniform 256..8192", RNG.integers(256, 8193, 64).tolist()),
    ]  # fmt: skip
    attention(32, 8, llama3, "32/8", False)
    attention(32, 8, [("B=64 L=1024", [1024] * 64)], "32/8", True)
    attention(32, 32, [("B=1 L=8192", [8192]), ("B=64 L=1024", [1024] * 64)], "32/32", False)
    attention(8, 1, [("B=1 L=8192", [8192]), ("B=64 L=4096", [4096] * 64)], "8/1", False)


def selection() -> None:
    heads, kv_heads, num_blocks = 32, 8, 32_768
    keys, values = (random_halfs((num_blocks, SIZE, kv_heads, DIM)) for _ in range(2))
    box = random_halfs((num_blocks, kv_heads, 2, DIM))
    for shape, lens in (("B=1 L=131072", [131_072]), ("B=16 L=32768", [32_768] * 16)):
        blocks = np.array([length // SIZE for length in lens], np.int32)
        query = RNG.standard_normal((len(lens), heads, DIM)).astype(np.float16)
        scoring, choosing, attending, fused = [], [], [], []
        for table in tables(lens, num_blocks):
            score = op(
                "block_scoring",
                {"query": query, "box": box, "block_table": table, "num_seq_blocks": blocks},
                num_score_heads=kv_heads,
            )
            scores = score.kept[0]["block_score"]
            ratio = 2048 // SIZE * 1000 // int(blocks[0]) + 1
            choice = op(
                "cache_selection",
                {
                    "complexity": np.zeros(len(lens), np.float32), "requirement": np.zeros(len(lens), np.int32),
                    "block_score": scores, "num_seq_blocks": blocks, "history": np.zeros_like(table),
                },
                num_select_heads=kv_heads, max_selected=256, ratio_permille=ratio, clock=0,
            )  # fmt: skip
            call = {
                "query": query, "key_cache": keys, "value_cache": values, "block_table": table,
                "seq_lens": np.array(lens, np.int32), "selected": choice.kept[0]["selected"],
                "count": choice.kept[0]["count"],
            }  # fmt: skip
            checked(score)
            checked(choice)
            count = np.zeros((len(lens), kv_heads), np.int32)
            DRV.memcpy_dtoh(count, choice.kept[0]["count"].memory)
            work = work_list(call["seq_lens"], 132 * 3 // kv_heads, np.ascontiguousarray(count[:, 0]))
            scoring.append([score])
            choosing.append([choice])
            attending.append([op("query_aware_paged_attention", {**call, **work}, scale=DIM**-0.5)])
            own = {**call, "selected": np.full((len(lens), kv_heads, 256), -1, np.int32), "count": count, "box": box}
            fused.append([op("query_aware_paged_attention", own, scale=DIM**-0.5, ratio_permille=ratio)])
        box_bytes = int(blocks.sum()) * kv_heads * (4 * DIM + 4)
        read = int(count.sum()) * SIZE * DIM * 4
        row("block_scoring", shape, median_us(scoring), box_bytes)
        row("cache_selection", f"{shape}, {count[0, 0]} kept per head", median_us(choosing))
        row("query_aware_paged_attention", f"{shape}, {count[0, 0]} blocks kept", median_us(attending), read)
        chain = [[*a, *b, *c] for a, b, c in zip(scoring, choosing, attending, strict=True)]
        row("score, select, attend", shape, median_us(chain), box_bytes + read)
        row("the same, fused", shape, median_us(fused, 5), box_bytes + read)


# --- movement ---------------------------------------------------------------------------------------------------------


def movement() -> None:
    kv_heads, num_blocks = 8, 32_768
    keys, values = (random_halfs((num_blocks, SIZE, kv_heads, DIM)) for _ in range(2))
    box = random_halfs((num_blocks, kv_heads, 2, DIM))
    one = np.ones(num_blocks, np.int32)
    for rows, new, start in ((64, 1, 100), (8, 1024, 0), (32, 4096, 0)):
        kv = random_halfs((rows * new, 2, kv_heads, DIM))
        ops = []
        for table in tables([start + new] * rows, num_blocks):
            positions = np.full(rows, start, np.int32)
            touched = -(-(start + new) // SIZE) - start // SIZE
            arrays = {
                "kv": kv, "token_start": np.arange(rows, dtype=np.int64) * new, "start_pos": positions,
                "seq_lens": positions + np.int32(new), "block_table": table, "ref": one, "key_cache": keys,
                "value_cache": values, "box": box, "work_start": np.arange(rows, dtype=np.int64) * touched,
            }  # fmt: skip
            ops.append([op("fused_reshape_and_block_write", arrays, num_work=rows * touched)])
        row("fused_reshape_and_block_write", f"{rows} x {new} tokens", median_us(ops), 8 * rows * new * kv_heads * DIM)
    layered = {"key_cache": On(None, (1, *keys.host.shape), np.float16, keys.pointer)}
    layered["value_cache"] = On(None, (1, *values.host.shape), np.float16, values.pointer)
    layered["box"] = On(None, (1, *box.host.shape), np.float16, box.pointer)
    block_bytes = 2 * 2 * SIZE * kv_heads * DIM
    for count in (256, 4096):
        ids = RNG.permutation(num_blocks).astype(np.int32)
        ops = []
        for i in range(min(4, num_blocks // (2 * count))):
            pairs = ids[2 * count * i : 2 * count * (i + 1)].reshape(2, count)
            plan = np.stack([pairs[0], pairs[1], np.full(count, SIZE, np.int32)], axis=1)
            ops.append([op("fused_block_copy", {"ops": plan, "ref": one, **layered})])
        row("fused_block_copy", f"{count} blocks of 64 KiB", median_us(ops), 2 * count * block_bytes)
    count = 4096
    ids = RNG.permutation(num_blocks).astype(np.int32)
    plan = ids[: 2 * count].reshape(count, 2).copy()
    ref = np.zeros(num_blocks, np.int32)
    ref[plan[:, 0]] = 1
    table = np.full((256, 64), -1, np.int32)
    table.reshape(-1)[:count] = plan[:, 0]
    state = {"block_table": On(table), "ref": On(ref), "gen": On(one), "cached": On(np.zeros(num_blocks, np.uint8))}
    there_and_back = []
    for moves in (plan, plan[:, ::-1]):
        old_to_new = np.arange(num_blocks, dtype=np.int32)
        old_to_new[moves[:, 0]] = moves[:, 1]
        arrays = {"moves": np.ascontiguousarray(moves), "num_moves": np.array([count], np.int32)}
        there_and_back.append(op("memory_compaction", {**arrays, "old_to_new": old_to_new, **layered, **state}))
    row("memory_compaction", f"{count} moves of 64 KiB", median_us([there_and_back]) / 2, 2 * count * block_bytes)


# --- the rest ---------------------------------------------------------------------------------------------------------


def small() -> None:
    ops = [
        [op("query_analysis", {"query": random_halfs((4096, 32, DIM))}, mode=0, scale=1.0)] for _ in range(4)
    ]  # fmt: skip
    row("query_analysis", "4096 x 4096, energy", median_us(ops), 2 * 4096 * 4096)
    blocks = 1 << 20

    def ints(high: int) -> np.ndarray:
        return RNG.integers(0, high, blocks).astype(np.int32)

    ref, cached = (ints(10) < 7).astype(np.int32), (ints(10) == 9).astype(np.uint8)
    names = ("hits", "lookups", "freq", "level")
    ops = [[op("adaptive_cache_management", {"ref": ref, "cached": cached, **{k: ints(5) for k in names}})]]
    row("adaptive_cache_management", "1 M blocks", median_us(ops * 4), blocks * (4 * 7 + 2))
    plan = {"ref": ref, "cached": cached, "uses": ints(3), "level": ints(3)}
    row(
        "intelligent_memory_compaction",
        "1 M blocks",
        median_us([[op("intelligent_memory_compaction", plan, max_moves=4096)]], 3),
    )
    table = RNG.permutation(blocks).astype(np.int32)[: 64 * 256].reshape(64, 256)
    fragments = {"ref": ref, "cached": cached, "block_table": table, "seq_lens": np.full(64, 4096, np.int32)}
    row(
        "fragmentation_analysis", "1 M blocks", median_us([[op("fragmentation_analysis", fragments, block_size=16)]], 3)
    )
    for rows, workers, mode in ((64, 132, "even-blocks"), (256, 528, "even-blocks"), (256, 132, "lpt")):
        lens = {"seq_lens": RNG.integers(1, 8193, rows).astype(np.int32)}
        sizes = {"num_workers": workers, "max_segments": rows + workers, "block_size": 16}
        row("dynamic_workload_balancing", f"B={rows}, {workers} workers, {mode}",
            median_us([[op("dynamic_workload_balancing", lens, mode=mode, **sizes)]]))  # fmt: skip
    for num_rows, width in ((32, 8192), (256, 8192)):
        choice = {
            "complexity": np.zeros(num_rows, np.float32), "requirement": np.zeros(num_rows, np.int32),
            "block_score": RNG.standard_normal((num_rows, 1, width), np.float32),
            "num_seq_blocks": np.full(num_rows, width, np.int32), "history": np.zeros((num_rows, width), np.int32),
        }  # fmt: skip
        call = op("cache_selection", choice, num_select_heads=1, max_selected=128, ratio_permille=15, clock=0)
        row("cache_selection", f"{num_rows} rows of {width}, 122 kept", median_us([[call]]))
    for asked, mode in ((1000, "scan"), (100_000, "scan"), (1000, "cas")):
        rows = 1024
        cells = RNG.permutation(rows * 128)[:asked]
        state = {"block_table": On(np.full((rows, 128), -1, np.int32)), "ref": On(np.zeros(blocks, np.int32))}
        reqs = np.stack(np.divmod(cells, 128), axis=1).astype(np.int32)
        order = RNG.permutation(blocks).astype(np.int32)
        take = op("block_allocation", {"reqs": reqs, "free_order": order, "gen": ref, **state}, mode=mode)
        give = op("block_deallocation", {"reqs": reqs, **state})
        pair = median_us([[take, give]], 3)
        times = []
        for _ in range(5):
            checked(take)
            events = [DRV.Event() for _ in range(2)]
            events[0].record()
            give.launch(None)
            events[1].record()
            events[1].synchronize()
            times.append(events[0].time_till(events[1]) * 1000)
        row("block_deallocation", f"{asked} of 1 M, eager", float(np.median(times)))
        row("block_allocation", f"{asked} of 1 M, {mode}", pair - float(np.median(times)))


def main() -> None:
    global COPY
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append", default=[])
    wanted = parser.parse_args().only
    with GPU.current():
        COPY = copy_gbs()
        print(f"{GPU.name}, {GPU.arch}, CUDA {DRV.get_driver_version()}; copy {COPY:.0f} GB/s (read + written)")
        print("| kernel | shape | µs | GB/s | % of copy |\n| --- | --- | --- | --- | --- |")
        for part in (attentions, selection, movement, small):
            if not wanted or part.__name__ in wanted:
                try:
                    part()
                except AssertionError as error:
                    print(f"{part.__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
