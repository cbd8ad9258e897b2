"""The kernels for Python programs: run one by name, keep a block table, ask for a launch, time the reference.

The published C header (tinyserve_kernels.h) declares three structs and four host functions that nobody defined; here
they are frozen configurations and functions that work, with the header's field names.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.errors import ConfigError, KernelError
from tinyserve_viz.kernels.backend import Backend, kernel_named
from tinyserve_viz.kernels.definition import KernelDef, Status
from tinyserve_viz.kernels.layout import pool_shape

I32 = NDArray[np.int32]

# (name, module, class). A module is imported when its backend is asked for.
BACKENDS: tuple[tuple[str, str, str], ...] = (
    ("numpy", "tinyserve_viz.kernels.numpy_backend", "NumpyBackend"),
    ("cuda", "tinyserve_viz.kernels.cuda_backend", "CudaBackend"),
)


def backend_named(name: str) -> Backend:
    """A backend by its name.

    Raises:
        KernelError: there is none of that name.
        GpuUnavailable: it needs a GPU that is not here.
    """
    for known, module, cls in BACKENDS:
        if known == name:
            backend: Backend = getattr(importlib.import_module(module), cls)()
            return backend
    raise KernelError(f"unknown backend {name!r}; known: {', '.join(known for known, _, _ in BACKENDS)}")


def run(kernel: str, backend: str | Backend = "numpy", **arguments: Any) -> dict[str, NDArray[Any]]:
    """Run a kernel by name on arrays and scalars given by name.

    `inout` arrays are changed in place, `out` arrays are made unless given, choices may be named (mode="seed"). Returns
    every array that was written and `status` int32 [1] (`Status` bits; 0 is success).

    Raises:
        KernelError: the arguments do not fit the kernel's definition; the message says which and how.
    """
    definition = kernel_named(kernel)
    arrays, scalars = _split(definition, arguments)
    return (backend_named(backend) if isinstance(backend, str) else backend).run(definition, arrays, scalars)


def _split(kernel: KernelDef, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    plain = {*kernel.axes, *(scalar.name for scalar in kernel.scalars)}
    scalars = {name: value for name, value in arguments.items() if name in plain}
    return {name: value for name, value in arguments.items() if name not in plain}, scalars


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Shape of an attention call, as the header's struct: `batch_size` query rows over caches of `max_seq_len` tokens.

    `num_kv_heads` (ours; 0 = num_heads) gives grouped queries. `scale` 0 stands for 1/sqrt(head_dim).
    `use_flash_attention` takes the one-pass kernel, `use_memory_optimization` reads selected blocks only; the header
    explains neither. `num_warps_per_block` and `shared_mem_size` (bytes) 0 leave the choice to `optimal_config`.
    """

    batch_size: int
    num_heads: int
    head_dim: int
    block_size: int = 16
    max_seq_len: int = 4096
    scale: float = 0.0
    use_flash_attention: bool = True
    use_memory_optimization: bool = False
    num_warps_per_block: int = 0
    shared_mem_size: int = 0
    num_kv_heads: int = 0

    def __post_init__(self) -> None:
        _whole(self, "batch_size", 1, 65_535)
        _whole(self, "num_heads", 1, 1024)
        _whole(self, "head_dim", 1, 1024)
        _whole(self, "block_size", 1, 1024)
        _whole(self, "max_seq_len", 1, 1 << 20)
        _whole(self, "num_warps_per_block", 0, 32)
        _whole(self, "shared_mem_size", 0, 227 * 1024)
        _whole(self, "num_kv_heads", 0, 1024)
        if not 0 <= self.scale < float("inf"):
            raise ConfigError(f"scale is {self.scale!r}, expected a positive number, or 0 for 1/sqrt(head_dim)")
        if self.num_heads % self.kv_heads:
            raise ConfigError(f"num_heads is {self.num_heads}, expected a multiple of num_kv_heads {self.kv_heads}")

    @property
    def kv_heads(self) -> int:
        """Heads of K and V."""
        return self.num_kv_heads or self.num_heads

    @property
    def softmax_scale(self) -> float:
        """Factor of q·k."""
        return self.scale or float(self.head_dim**-0.5)

    @property
    def kernel(self) -> str:
        """The attention kernel that the flags ask for."""
        if self.use_memory_optimization:
            return "query_aware_paged_attention"
        return "flash_paged_attention" if self.use_flash_attention else "paged_attention"


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """A CUDA launch, as the header's struct: threads and thread blocks per axis, dynamic shared memory in bytes.

    `use_tensor_cores`: matrix units for q·k and p·v. `enable_kernel_fusion`: score, choose, attend in one launch.
    """

    block_dim_x: int = 128
    block_dim_y: int = 1
    block_dim_z: int = 1
    grid_dim_x: int = 1
    grid_dim_y: int = 1
    grid_dim_z: int = 1
    shared_mem_bytes: int = 0
    use_tensor_cores: bool = False
    enable_kernel_fusion: bool = False

    def __post_init__(self) -> None:
        for axis, most_threads, most_blocks in (("x", 1024, (1 << 31) - 1), ("y", 1024, 65_535), ("z", 64, 65_535)):
            _whole(self, f"block_dim_{axis}", 1, most_threads)
            _whole(self, f"grid_dim_{axis}", 1, most_blocks)
        _whole(self, "shared_mem_bytes", 0, 227 * 1024)
        threads = self.block_dim_x * self.block_dim_y * self.block_dim_z
        if threads > 1024:
            raise ConfigError(f"block_dim is {threads} threads in all, expected at most 1024")


def optimal_config(metadata: AttentionMetadata) -> KernelConfig:
    """The launch of the attention kernel that `metadata` asks for, from the kernel's definition.

    Tensor cores pay from four query heads per KV head on: with fewer, the rows of a matrix tile are mostly padding.
    """
    kernel = kernel_named(metadata.kernel)
    sizes = {
        "num_seqs": metadata.batch_size,
        "num_heads": metadata.num_heads,
        "num_kv_heads": metadata.kv_heads,
        "head_dim": metadata.head_dim,
        "block_size": metadata.block_size,
        "max_blocks_per_seq": -(-metadata.max_seq_len // metadata.block_size),
    }
    axes = dict.fromkeys(kernel.axes, 0) | {axis: size for axis, size in sizes.items() if axis in kernel.axes}
    x, y, z = kernel.launch.grid(axes)
    return KernelConfig(
        block_dim_x=32 * metadata.num_warps_per_block or kernel.launch.threads,
        grid_dim_x=x,
        grid_dim_y=y,
        grid_dim_z=z,
        shared_mem_bytes=metadata.shared_mem_size or kernel.launch.shared_bytes(axes),
        use_tensor_cores=metadata.num_heads // metadata.kv_heads >= 4 and metadata.head_dim % 16 == 0,
        enable_kernel_fusion=metadata.use_memory_optimization,
    )


@dataclass(frozen=True, slots=True, eq=False)
class BlockTable:
    """Who holds which block, as the header's struct, on arrays that every kernel takes; make one by `init_block_table`.

    `physical_block_ids` int32 [num_seqs][max_blocks_per_seq], -1 = no block, is both of the header's maps.
    `block_access_patterns` is the access history of the same shape. Per block: `block_ref_counts`, `block_generation`,
    `block_priority` (last use, logical clock) and `block_weights` of the last compaction plan. `free_order` lists the
    free ids, next first. Blocks [0, cache_size) are the hot region.
    """

    max_blocks_per_seq: int
    total_physical_blocks: int
    block_size: int
    cache_size: int
    physical_block_ids: I32
    block_access_patterns: I32
    block_ref_counts: I32
    block_generation: I32
    block_priority: NDArray[np.int64]
    block_weights: NDArray[np.float32]
    free_order: list[int] = field(repr=False)

    def logical_to_physical(self, seq_id: int) -> I32:
        """The blocks of a sequence in logical order."""
        row = self.physical_block_ids[seq_id]
        held: I32 = row[row >= 0]
        return held

    def allocate(self, requests: Sequence[tuple[int, int]], backend: str | Backend = "numpy") -> I32:
        """Give each (sequence, logical block) the next free block; changes the table. Returns the blocks.

        Raises:
            KernelError: a request is outside the table or already mapped, or too few blocks are free; nothing changed.
        """
        reqs = np.array(requests, np.int32).reshape(-1, 2)
        found = run(
            "block_allocation",
            backend,
            reqs=reqs,
            free_order=np.array(self.free_order, np.int32),
            block_table=(table := self.physical_block_ids.copy()),
            ref=(ref := self.block_ref_counts.copy()),
            gen=(gen := self.block_generation.copy()),
        )
        status = Status(int(found["status"][0]))
        if status:
            raise KernelError(f"block_allocation: {_words(status)}: {len(reqs)} asked, {len(self.free_order)} free")
        self.physical_block_ids[:], self.block_ref_counts[:], self.block_generation[:] = table, ref, gen
        del self.free_order[: len(reqs)]
        return found["allocated"]

    def fork(self, parent: int, child: int, num_blocks: int, backend: str | Backend = "numpy") -> None:
        """Let `child` share the first blocks of `parent`; changes the table.

        Raises:
            KernelError: an id is outside, the parent is shorter, or the child holds blocks there.
        """
        forks = np.array([[parent, child, num_blocks]], np.int32)
        arrays = (self.physical_block_ids.copy(), self.block_ref_counts.copy(), self.block_access_patterns.copy())
        found = run("block_fork", backend, forks=forks, block_table=arrays[0], ref=arrays[1], history=arrays[2])
        if status := Status(int(found["status"][0])):
            raise KernelError(f"block_fork: {_words(status)}: parent {parent}, child {child}, {num_blocks} blocks")
        self.physical_block_ids[:], self.block_ref_counts[:], self.block_access_patterns[:] = arrays

    def release(self, seq_id: int, backend: str | Backend = "numpy") -> I32:
        """Give back every block of a sequence, tail first; changes the table. Returns the blocks that became free."""
        held = np.flatnonzero(self.physical_block_ids[seq_id] >= 0)[::-1]
        reqs = np.stack([np.full(len(held), seq_id), held], axis=1).astype(np.int32)
        found = run(
            "block_deallocation", backend, reqs=reqs, block_table=self.physical_block_ids, ref=self.block_ref_counts
        )
        if status := Status(int(found["status"][0])):
            raise KernelError(f"block_deallocation: {_words(status)}: sequence {seq_id}")
        freed = found["freed"][: found["num_freed"][0]]
        self.free_order.extend(freed.tolist())
        return freed


def init_block_table(
    max_blocks_per_seq: int, total_physical_blocks: int, block_size: int, cache_size: int = 0, num_seqs: int = 1
) -> BlockTable:
    """An empty block table with every block free, ids ascending; `cache_size` 0 stands for a quarter of the blocks.

    Raises:
        ConfigError: a size is out of range.
    """
    for name, value, low, high in (
        ("max_blocks_per_seq", max_blocks_per_seq, 1, 1 << 20),
        ("total_physical_blocks", total_physical_blocks, 1, 1 << 26),
        ("block_size", block_size, 1, 1024),
        ("cache_size", cache_size, 0, total_physical_blocks),
        ("num_seqs", num_seqs, 1, 65_535),
    ):
        _check(name, value, low, high)
    shape = (num_seqs, max_blocks_per_seq)
    return BlockTable(
        max_blocks_per_seq=max_blocks_per_seq,
        total_physical_blocks=total_physical_blocks,
        block_size=block_size,
        cache_size=cache_size or max(1, total_physical_blocks // 4),
        physical_block_ids=np.full(shape, -1, np.int32),
        block_access_patterns=np.zeros(shape, np.int32),
        block_ref_counts=np.zeros(total_physical_blocks, np.int32),
        block_generation=np.zeros(total_physical_blocks, np.int32),
        block_priority=np.zeros(total_physical_blocks, np.int64),
        block_weights=np.zeros(total_physical_blocks, np.float32),
        free_order=list(range(total_physical_blocks)),
    )


def destroy_block_table(table: BlockTable) -> int:
    """Give back what every sequence holds; returns the number of blocks freed.

    Raises:
        KernelError: references are left over that no table entry accounts for.
    """
    freed = sum(len(table.release(seq_id)) for seq_id in range(len(table.physical_block_ids)))
    if leaked := np.flatnonzero(table.block_ref_counts).tolist():
        raise KernelError(f"blocks {leaked[:8]} still have references that no sequence holds")
    return freed


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Wall times of one kernel in µs. `title` says what was timed; a reference's time says nothing about a GPU."""

    title: str
    kernel: str
    iterations: int
    median_us: float
    fastest_us: float
    slowest_us: float


def benchmark(
    metadata: AttentionMetadata, num_iterations: int = 10, backend: str | Backend = "numpy", seed: int = 0
) -> Benchmark:
    """Time the attention kernel of `metadata` on random caches of `max_seq_len` tokens, after one run to warm up.

    Raises:
        ConfigError: num_iterations is out of range.
    """
    _check("num_iterations", num_iterations, 1, 1_000_000)
    arguments = _random_call(metadata, np.random.default_rng(seed))
    chosen = backend_named(backend) if isinstance(backend, str) else backend
    run(metadata.kernel, chosen, **arguments)
    times = []
    for _ in range(num_iterations):
        started = time.perf_counter_ns()
        run(metadata.kernel, chosen, **arguments)
        times.append((time.perf_counter_ns() - started) / 1000)
    title = "NumPy reference" if chosen.name == "numpy" else f"{chosen.name}, wall time with transfers"
    return Benchmark(title, metadata.kernel, num_iterations, float(np.median(times)), min(times), max(times))


def _random_call(metadata: AttentionMetadata, rng: np.random.Generator) -> dict[str, Any]:
    batch, per_seq = metadata.batch_size, -(-metadata.max_seq_len // metadata.block_size)
    shape = pool_shape(batch * per_seq, metadata.block_size, metadata.kv_heads, metadata.head_dim)
    arguments: dict[str, Any] = {
        "query": rng.standard_normal((batch, metadata.num_heads, metadata.head_dim)).astype(np.float16),
        "key_cache": rng.standard_normal(shape, np.float32).astype(np.float16),
        "value_cache": rng.standard_normal(shape, np.float32).astype(np.float16),
        "block_table": rng.permutation(batch * per_seq).astype(np.int32).reshape(batch, per_seq),
        "seq_lens": np.full(batch, metadata.max_seq_len, np.int32),
        "scale": metadata.softmax_scale,
    }
    if metadata.use_memory_optimization:
        keys = arguments["key_cache"]
        arguments["box"] = np.stack([keys.min(axis=1), keys.max(axis=1)], axis=2)
        arguments["selected"] = np.full((batch, metadata.kv_heads, per_seq), -1, np.int32)
        arguments["count"] = np.zeros((batch, metadata.kv_heads), np.int32)
    return arguments


def _words(status: Status) -> str:
    return ", ".join(flag.name or str(int(flag)) for flag in status)


def _whole(config: Any, name: str, low: int, high: int) -> None:
    _check(name, getattr(config, name), low, high)


def _check(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}, expected a whole number from {low} to {high}")
