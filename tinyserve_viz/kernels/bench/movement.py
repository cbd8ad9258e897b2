"""Rows of what moves K and V: writes, block copies, compaction moves. They overwrite the pools of the inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.bench.attention import tables
from tinyserve_viz.kernels.bench.device import DeviceArray, DeviceCall, Noise
from tinyserve_viz.kernels.bench.grid import BLOCK_SIZE, Model, copy_shapes, write_shapes
from tinyserve_viz.kernels.bench.timing import sets_for
from tinyserve_viz.kernels.bench.work import Bench, Call, Work, WrongResultError, same

I32 = NDArray[np.int32]


_POOLS = {"key_cache": "keys", "value_cache": "values", "box": "boxes"}


def pools_of(bench: Bench, model: Model) -> dict[str, DeviceArray]:
    """K, V and boxes of as many blocks as the memory for inputs holds, as they were before anything was moved."""
    for name in _POOLS.values():
        bench.noise(name).renew()
    num_blocks = bench.num_blocks(model)
    pool = (num_blocks, BLOCK_SIZE, model.num_kv_heads, model.head_dim)
    return {
        "key_cache": bench.noise("keys").view(pool),
        "value_cache": bench.noise("values").view(pool),
        "box": bench.noise("boxes").view((num_blocks, model.num_kv_heads, 2, model.head_dim)),
    }


@dataclass(frozen=True, slots=True, eq=False)
class Writing:
    """One shape of a write: `fresh` has the new rows, `arguments` those of the call for each rotating set."""

    bench: Bench
    model: Model
    rows: int
    new: int
    context: int
    fresh: Noise
    arguments: list[dict[str, Any]]

    @property
    def label(self) -> str:
        """The shape, as the field's tables write it."""
        return _write_label(self.model, self.rows, self.new, self.context)

    def call(self, given: dict[str, Any], kv: DeviceArray | None = None) -> DeviceCall:
        """The write of one set, of its new rows or of those in `kv`."""
        touched = -(-self.context // BLOCK_SIZE) - (self.context - self.new) // BLOCK_SIZE
        arrays = given if kv is None else {**given, "kv": kv}
        return self.bench.call("fused_reshape_and_block_write", arrays, num_work=self.rows * touched)

    def work(self, op: str, impl: str, calls: Sequence[Sequence[Call]], baseline: str | None = None) -> Work:
        """The row; the last call of each launch is the write."""
        num_tokens = self.rows * self.new
        return Work(
            op, impl, self.label, 8 * num_tokens * self.model.num_kv_heads * self.model.head_dim, {"": calls},
            partial(_check_write, self), baseline=baseline,
            facts={"model": self.model.name, "batch": self.rows, "new": self.new, "ctx": self.context,
                   "tokens": num_tokens},
        )  # fmt: skip


def _write_label(model: Model, rows: int, new: int, context: int) -> str:
    return f"{model.name} B={rows} new={new} ctx={context}"


def writings(bench: Bench) -> Iterator[Writing]:
    """Every shape of the grid that the memory holds: one token a sequence as in decode, many as in prefill."""
    for model, rows, new, context in write_shapes(bench.grid):
        num_blocks, per_set = bench.num_blocks(model), rows * -(-context // BLOCK_SIZE)
        if not bench.fits(f"kv-write {_write_label(model, rows, new, context)}", per_set, model):
            continue
        pools = pools_of(bench, model)
        num_bytes = 8 * rows * new * model.num_kv_heads * model.head_dim
        sets = sets_for(bench.device, num_bytes, min(64, num_blocks // per_set))
        row = 2 * model.num_kv_heads * model.head_dim
        fresh = Noise(bench.device, rows * new * row * min(sets, 8), bench.seed + 40)
        start = context - new
        touched = -(-context // BLOCK_SIZE) - start // BLOCK_SIZE
        positions = np.full(rows, start, np.int32)
        ref = bench.device.put(np.ones(num_blocks, np.int32))
        arguments: list[dict[str, Any]] = [
            {
                **pools, "ref": ref, "block_table": table, "start_pos": positions,
                "kv": fresh.view((rows * new, 2, model.num_kv_heads, model.head_dim), at=i % 8 * rows * new * row),
                "token_start": np.arange(rows, dtype=np.int64) * new, "seq_lens": np.full(rows, context, np.int32),
                "work_start": np.arange(rows, dtype=np.int64) * touched,
            }
            for i, table in enumerate(tables(bench.rng(rows, new, context), [context] * rows, num_blocks, sets))
        ]  # fmt: skip
        yield Writing(bench, model, rows, new, context, fresh, arguments)


def writes(bench: Bench) -> Iterator[Work]:
    """New K and V rows into their slots, boxes kept."""
    if bench.wants("fused_reshape_and_block_write"):
        for one in writings(bench):
            calls = [[one.call(given)] for given in one.arguments]
            yield one.work("kv-write", "fused_reshape_and_block_write", calls)


def _check_write(one: Writing, calls: Sequence[Call]) -> None:
    """First, middle and last token of three sequences where the table says, inside their blocks' boxes."""
    read, arrays = one.bench.device.read, calls[-1].arrays
    model, rows, new, context, fresh = one.model, one.rows, one.new, one.context, one.fresh
    table = read(arrays["block_table"])
    width = model.num_kv_heads * model.head_dim
    for seq in sorted({0, rows // 2, rows - 1}):
        for token in sorted({0, new // 2, new - 1}):
            position = context - new + token
            block, slot = int(table[seq, position // BLOCK_SIZE]), position % BLOCK_SIZE
            given = fresh.rows(np.array([(seq * new + token) * 2 * width]), 2 * width)[0].reshape(2, -1, model.head_dim)
            for name, expected in (("key_cache", given[0]), ("value_cache", given[1])):
                same(f"{name}[{block}, {slot}]", read(arrays[name].part(block).part(slot)), expected)
            low, high = np.moveaxis(read(arrays["box"].part(block)), 1, 0)
            if not ((low <= given[0]) & (given[0] <= high)).all():
                raise WrongResultError(f"box[{block}] does not hold the key of token {token} of sequence {seq}")


def copied_bytes(model: Model, count: int) -> int:
    """Useful bytes of copying blocks: K, V and the box (a minimum and a maximum, as large as two keys), in and out."""
    return 2 * 2 * count * (2 * BLOCK_SIZE + 2) * model.num_kv_heads * model.head_dim


def moved_bytes(model: Model, count: int) -> int:
    """The same, and the boxes that are left, emptied."""
    return copied_bytes(model, count) + 2 * count * 2 * model.num_kv_heads * model.head_dim


def _sets_of_blocks(
    bench: Bench, most_sets: int, key: int
) -> Iterator[tuple[Model, int, dict[str, DeviceArray], I32]]:
    """For each shape of a copy: model, blocks, pools of one layer, and 2 · blocks ids for each set."""
    for model, count in copy_shapes(bench.grid):
        if not bench.fits(f"copies or moves, {block_label(model, count)}", 2 * count, model):
            continue
        layered = {name: pool.of_one_layer() for name, pool in pools_of(bench, model).items()}
        num_blocks = layered["box"].shape[1]
        sets = sets_for(bench.device, copied_bytes(model, count), min(most_sets, num_blocks // (2 * count)))
        ids = bench.rng(count, key).permutation(num_blocks).astype(np.int32)[: 2 * count * sets]
        yield model, count, layered, ids


def copies(bench: Bench) -> Iterator[Work]:
    """Whole blocks, K, V and boxes, from random places to random places."""
    if not bench.wants("fused_block_copy"):
        return
    for model, count, layered, blocks in _sets_of_blocks(bench, 64, 3):
        num_blocks = layered["box"].shape[1]
        ids = blocks.reshape(-1, 2, count)
        ref = bench.device.put(np.ones(num_blocks, np.int32))
        full = np.full(count, BLOCK_SIZE, np.int32)
        plans = [np.stack([source, target, full], axis=1) for source, target in ids]
        calls = [[bench.call("fused_block_copy", {"ops": plan, "ref": ref, **layered})] for plan in plans]
        yield Work(
            "block-copy", "fused_block_copy", block_label(model, count), copied_bytes(model, count), {"": calls},
            partial(check_copies, bench, plans[0][:, :2]),
            facts={"model": model.name, "blocks": count}, note="one launch, boxes too",
        )  # fmt: skip


def block_label(model: Model, count: int) -> str:
    """The shape of a copy, as the field's tables write it."""
    size = 4 * BLOCK_SIZE * model.num_kv_heads * model.head_dim  # of K and V
    return f"{model.name} blocks={count} x {size >> 10} KiB"


def check_copies(bench: Bench, pairs: I32, calls: Sequence[Call]) -> None:
    """K, V and boxes of some sources are what they were, and those of their targets the same."""
    for source, target in _sample(pairs):
        for name in _POOLS:
            for block in (source, target):
                _check_block(bench, calls[0], name, block, source)


def _sample(pairs: I32) -> list[list[int]]:
    found: list[list[int]] = pairs[:: max(1, len(pairs) // 7)].tolist()
    return found


def _check_block(bench: Bench, call: Call, name: str, block: int, source: int) -> None:
    """A block holds what `source` held at first."""
    held = call.arrays[name].part(0).part(block)
    size = int(np.prod(held.shape))
    expected = bench.noise(_POOLS[name]).rows(np.array([source * size]), size).reshape(held.shape)
    same(f"{name}[{block}]", bench.device.read(held), expected)


def moves(bench: Bench) -> Iterator[Work]:
    """A compaction plan applied: blocks moved, table, references and generations with them; there and back in turn."""
    if not bench.wants("memory_compaction"):
        return
    for model, count, layered, blocks in _sets_of_blocks(bench, 8, 4):
        ids = blocks.reshape(-1, count, 2)
        calls = [_there_and_back(bench, layered, pairs) for pairs in ids]
        yield Work(
            "compaction-move", "memory_compaction", block_label(model, count), moved_bytes(model, count), {"": calls},
            partial(_check_moves, bench, ids[0]), calls_per_launch=2,
            facts={"model": model.name, "blocks": count}, note="there and back in turn",
        )  # fmt: skip


def _there_and_back(bench: Bench, layered: dict[str, DeviceArray], pairs: I32) -> list[DeviceCall]:
    num_blocks, count = layered["box"].shape[1], len(pairs)
    ref = np.zeros(num_blocks, np.int32)
    ref[pairs[:, 0]] = 1
    table = np.full((256, max(64, -(-count // 256))), -1, np.int32)
    table.reshape(-1)[:count] = pairs[:, 0]
    state: dict[str, NDArray[Any]] = {
        "block_table": table, "ref": ref, "gen": np.ones(num_blocks, np.int32), "cached": np.zeros(num_blocks, np.uint8)
    }  # fmt: skip
    held = {name: bench.device.put(array) for name, array in state.items()}
    calls = []
    for plan in (pairs, pairs[:, ::-1]):
        old_to_new = np.arange(num_blocks, dtype=np.int32)
        old_to_new[plan[:, 0]] = plan[:, 1]
        arrays = {
            "moves": np.ascontiguousarray(plan),
            "num_moves": np.array([count], np.int32),
            "old_to_new": old_to_new,
        }
        calls.append(bench.call("memory_compaction", {**arrays, **layered, **held}))
    return calls


def _check_moves(bench: Bench, pairs: I32, calls: Sequence[Call]) -> None:
    """After both ways table, references and blocks are what they were; the place that was left has an empty box."""
    read, arrays = bench.device.read, calls[0].arrays
    table, ref = read(arrays["block_table"]).reshape(-1), read(arrays["ref"])
    same("block_table", table[: len(pairs)], np.ascontiguousarray(pairs[:, 0]))
    expected = np.zeros(len(ref), np.int32)
    expected[pairs[:, 0]] = 1
    same("ref", ref, expected)
    for home, left in _sample(pairs):
        for name in _POOLS:
            _check_block(bench, calls[0], name, home, home)
        for name in ("key_cache", "value_cache"):
            _check_block(bench, calls[0], name, left, home)
        if np.isfinite(read(arrays["box"].part(0).part(left))).any():
            raise WrongResultError(f"box[{left}] is not empty, though the block is free")
