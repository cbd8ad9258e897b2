"""Which shapes are timed, under the names that the field's benchmarks give them, so that tables lie side by side.

Sources: FlashInfer's, vLLM's and SGLang's decode benchmarks for models, batches and contexts; FlashInfer's append and
top-k benchmarks; the example of TinyServe's README (batch 8, 32 heads of 128 channels).
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_SIZE = 16
GRIDS = ("quick", "full")


@dataclass(frozen=True, slots=True)
class Model:
    """Attention shape of a model on one GPU."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int = 128


LLAMA3_8B = Model("llama3-8b", 32, 8)
LLAMA2_7B = Model("llama2-7b", 32, 32)
LLAMA3_70B = Model("llama3-70b/tp8", 8, 1)
SEED = Model("tinyserve-example", 32, 32)
MODELS = (LLAMA3_8B, LLAMA2_7B, LLAMA3_70B)

_FULL = (
    (1, 1024), (1, 8192), (1, 32_768), (1, 131_072), (4, 32_768), (8, 1024), (8, 8192), (16, 4096), (16, 16_384),
    (32, 2048), (32, 8192), (64, 1024), (64, 4096), (128, 1024), (128, 2048), (256, 1024),
)  # fmt: skip
_QUICK = ((1, 8192), (1, 131_072), (8, 8192), (16, 4096), (64, 1024), (64, 4096), (256, 1024))
# torch.randint(256, 8193, (64,)) of a CPU generator with seed 0: the very lengths of the peers' uniform row.
UNIFORM = (
    6040, 3336, 945, 4133, 6181, 1141, 7422, 2684, 2692, 4029, 1739, 3185, 4908, 4970, 1855, 2039, 859, 1333, 5046,
    529, 346, 6245, 1373, 1563, 2461, 4621, 2335, 2252, 7462, 7961, 4061, 6266, 6839, 3437, 4342, 5002, 6433, 2979,
    5800, 2960, 440, 5191, 4502, 5819, 3450, 1774, 4786, 5520, 1164, 5218, 7799, 6012, 1028, 467, 7337, 3729, 266,
    492, 8050, 4223, 4972, 3872, 7225, 2240,
)  # fmt: skip


def decode_shapes(model: Model, grid: str) -> list[tuple[str, list[int]]]:
    """(label, context length of each sequence) of the decode rows of a model."""
    if model is SEED:
        return [] if grid == "quick" else [(f"{model.name} B=8 L={n}", [n] * 8) for n in (1024, 4096, 16_384)]
    pairs = _QUICK if grid == "quick" else _FULL
    shapes = [(f"{model.name} B={batch} L={length}", [length] * batch) for batch, length in pairs]
    if model is LLAMA3_8B:
        shapes.append((f"{model.name} B=32 skewed 1x65536+31x1024", [65_536] + [1024] * 31))
        shapes.append((f"{model.name} B=64 uniform 256..8192", list(UNIFORM)))
    return shapes


def sparse_shapes(grid: str) -> list[tuple[Model, int, int]]:
    """(model, batch, context) of what selection is timed at; 2,048 tokens of each sequence are kept."""
    quick = [(LLAMA3_8B, batch, length) for batch in (1, 16) for length in (32_768, 131_072)]
    return quick if grid == "quick" else [*quick, (LLAMA3_8B, 64, 4096), (LLAMA2_7B, 1, 32_768)]


KEPT_TOKENS = 2048


def write_shapes(grid: str) -> list[tuple[Model, int, int, int]]:
    """(model, sequences, new tokens of each, context of each after the write), as FlashInfer's append benchmark."""
    quick = [(64, 1, 1024), (8, 1024, 2048), (32, 4096, 4096)]
    full = [(1, 1, 2048), (64, 1, 1024), (256, 1, 1024), (1, 2048, 2048), (8, 1024, 2048), (16, 2048, 2048),
            (32, 4096, 4096)]  # fmt: skip
    if grid == "quick":
        return [(LLAMA3_8B, *shape) for shape in quick]
    return [(model, *shape) for model in (LLAMA3_8B, LLAMA2_7B) for shape in full]


def copy_shapes(grid: str) -> list[tuple[Model, int]]:
    """(model, blocks) of the copies and moves."""
    counts = (256, 4096) if grid == "quick" else (1, 16, 256, 4096)
    return [(model, n) for model in ((LLAMA3_8B,) if grid == "quick" else (LLAMA3_8B, LLAMA2_7B)) for n in counts]


def topk_shapes(grid: str) -> list[tuple[int, int, int]]:
    """(rows, scores of each, kept of each)."""
    quick = [(32, 8192, 128), (256, 8192, 128)]
    return (
        quick if grid == "quick" else [(32, 2048, 128), *quick, (32, 8192, 256), (2048, 1024, 128), (64, 65_536, 512)]
    )


def analysis_rows(grid: str) -> tuple[int, ...]:
    """Query rows of 4,096 channels."""
    return (64, 4096) if grid == "quick" else (64, 4096, 32_768)


def pool_sizes(grid: str) -> tuple[int, ...]:
    """Blocks of the pools whose upkeep is timed."""
    return (8192, 1 << 20) if grid == "quick" else (8192, 1 << 16, 1 << 20)


def level_sizes(grid: str) -> tuple[int, ...]:
    """Blocks of the pools whose levels are set: 30 bytes each, so only the largest is a stream from memory."""
    return (*pool_sizes(grid), 1 << 22)


def request_counts(grid: str) -> tuple[int, ...]:
    """Blocks asked for at once."""
    return (64, 1024, 100_000) if grid == "quick" else (1, 64, 1024, 10_000, 100_000)
