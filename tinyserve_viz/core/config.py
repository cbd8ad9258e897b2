"""Frozen configuration: what a replay was run with. Every number that steers is an integer."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from tinyserve_viz.core.errors import ConfigError

MAX_LENGTH = 1_048_576  # tokens; the longest context that a trace may name (design §4)
ALLOCATORS = ("paged", "contiguous", "pow2", "exact")
EVICTIONS = ("lru", "fifo", "lfu", "clock", "seed")
ORACLE_EVICTIONS = ("belady",)  # know the trace: for comparisons, no server could have them
COMPACTIONS = ("intelligent", "plain", "off")  # rules: core.compaction
SELECTIONS = ("paper", "seed", "seed-published", "streaming", "recency", "random", "oracle", "snapkv")
SELECTION_HEADS = ("kv", "shared")
REDUCTIONS = ("policy", "max", "mean", "sum")
OF_POLICY = -1  # of `sinks` and `recent`: what the selection policy says
CONTENT_KINDS = ("topics", "iid", "npz")
CLOCKS = ("model", "measured")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes and policies of the replayed server; defaults are those of docs/engine.md.

    `watermark_permille` of the blocks stay free at admission; `max_model_len` tokens is what the `contiguous`
    baseline reserves for a sequence. A step of the model clock takes `clock_base_us` + `clock_prefill_us` a prefilled
    token + `clock_decode_us` a decoding sequence.

    `selection` keeps `ratio_permille` of a sequence's blocks, or `budget_blocks` if that is not 0, chosen for each KV
    head or once for all (`selection_heads`), by scores that are reduced over a KV head's query heads (`reduction`);
    `sinks` first and `recent` last blocks are always kept, inside the budget.
    """

    block_size: int = 16
    num_blocks: int = 8192
    max_batch_tokens: int = 8192
    max_num_seqs: int = 256
    max_model_len: int = 16_384
    watermark_permille: int = 10
    allocator: str = "paged"
    eviction: str = "lru"
    prefix_caching: bool = True
    selection: str = "paper"
    ratio_permille: int = 300
    budget_blocks: int = 0  # 0: by the ratio
    selection_heads: str = "kv"
    reduction: str = "policy"
    sinks: int = OF_POLICY
    recent: int = OF_POLICY
    hot_blocks: int = 0  # 0: a quarter of the pool
    compaction: str = "off"  # unless set: intelligent where kernels run
    clock: str = "model"
    clock_base_us: int = 20_000
    clock_prefill_us: int = 20
    clock_decode_us: int = 50
    clock_layers: int = 1  # under clock measured a step takes its kernels' time this many times

    def __post_init__(self) -> None:
        for name, low, high in (
            ("block_size", 1, 1024),
            ("num_blocks", 1, 1 << 26),
            ("max_batch_tokens", 1, 1 << 30),
            ("max_num_seqs", 1, 1 << 20),
            ("max_model_len", 1, MAX_LENGTH),
            ("watermark_permille", 0, 999),
            ("ratio_permille", 1, 1000),
            ("budget_blocks", 0, 1 << 26),
            ("sinks", OF_POLICY, 1 << 20),
            ("recent", OF_POLICY, 1 << 20),
            ("hot_blocks", 0, 1 << 26),
            ("clock_base_us", 1, 1 << 40),
            ("clock_prefill_us", 0, 1 << 40),
            ("clock_decode_us", 0, 1 << 40),
            ("clock_layers", 1, 1024),
        ):
            _in_range(self, name, low, high)
        _one_of("allocator", self.allocator, ALLOCATORS)
        _one_of("eviction", self.eviction, EVICTIONS, ORACLE_EVICTIONS)
        _one_of("selection", self.selection, SELECTIONS)
        _one_of("compaction", self.compaction, COMPACTIONS)
        _one_of("selection_heads", self.selection_heads, SELECTION_HEADS)
        _one_of("reduction", self.reduction, REDUCTIONS)
        _one_of("clock", self.clock, CLOCKS)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Attention shape of the replayed model: `num_heads` query heads over `num_kv_heads` K/V heads of `head_dim`."""

    num_layers: int = 1
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 64

    @property
    def token_bytes(self) -> int:
        """Bytes of K and V of one token, fp16, all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * 2

    def __post_init__(self) -> None:
        for name, high in (("num_layers", 256), ("num_heads", 1024), ("num_kv_heads", 1024), ("head_dim", 1024)):
            _in_range(self, name, 1, high)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_heads is {self.num_heads}, expected a multiple of num_kv_heads {self.num_kv_heads}")


@dataclass(frozen=True, slots=True)
class ContentConfig:
    """Where K, V and Q come from: a trace holds none, so the content is declared, seeded and always shown.

    Kind `npz` is captured: `path` names the file, `sha256` says which bytes it must hold (filled in when it is read).
    """

    kind: str = "topics"
    clusters: int = 8
    locality_permille: int = 900
    seed: int = 0
    path: str | None = None  # the .npz of kind "npz"
    sha256: str | None = None

    def __post_init__(self) -> None:
        _one_of("content.kind", self.kind, CONTENT_KINDS)
        _in_range(self, "clusters", 1, 4096)
        _in_range(self, "locality_permille", 0, 1000)
        _in_range(self, "seed", 0, (1 << 63) - 1)
        if self.kind == "npz" and not self.path:
            raise ConfigError("content npz names no file, expected a path")
        if self.sha256 is not None and (len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef")):
            raise ConfigError(f"sha256 is {self.sha256!r}, expected 64 hexadecimal digits")

    def describe(self) -> str:
        """One short phrase for headers and exports, e.g. `topics(8, .9)`."""
        if self.kind == "topics":
            return f"topics({self.clusters}, {self.locality_permille / 1000:g})"
        if self.kind == "npz":
            name = str(self.path).replace("\\", "/").rpartition("/")[2]
            return f"npz({name}, sha256 {self.sha256[:12]})" if self.sha256 else f"npz({name})"
        return self.kind


def with_overrides(config: T, overrides: dict[str, Any]) -> T:
    """`config` with the entries of `overrides` that are not None; unknown names are a bug, not a user's error."""
    return replace(config, **{name: value for name, value in overrides.items() if value is not None})  # type: ignore[type-var]


def as_dict(config: Any) -> dict[str, Any]:
    """The fields of a frozen config as plain values, in the order of their definition."""
    return {field.name: getattr(config, field.name) for field in fields(config)}


def _in_range(config: Any, name: str, low: int, high: int) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}, expected a whole number from {low} to {high}")


def _one_of(name: str, value: str, known: tuple[str, ...], besides: tuple[str, ...] = ()) -> None:
    if value not in known and value not in besides:
        raise ConfigError(f"unknown {name} {value!r}; known: {', '.join(sorted(known))}")
