"""A small capture made here, so that captured content is tested where no real one is: peaked, with a sink."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tinyserve_viz.trace.request import Request, Trace

LAYERS, TOKENS, HEADS, KV_HEADS, DIM = 2, 96, 6, 2, 16


def arrays(seed: int = 3) -> dict[str, Any]:
    """q, k, v: keys come in runs about one thing, queries ask for one of these things, and all like token 0."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((LAYERS, KV_HEADS, 6, DIM)) * 1.5
    about = np.repeat(rng.integers(0, 6, TOKENS // 8), 8)  # a thing for 8 tokens
    keys = centres[:, :, about].transpose(0, 2, 1, 3) + rng.standard_normal((LAYERS, TOKENS, KV_HEADS, DIM)) * 0.5
    asked = rng.integers(0, 6, TOKENS)
    group = HEADS // KV_HEADS
    queries = np.repeat(centres[:, :, asked].transpose(0, 2, 1, 3), group, axis=2)
    queries = queries + rng.standard_normal((LAYERS, TOKENS, HEADS, DIM)) * 0.5
    keys[:, 0] = np.abs(keys[:, 0]) + 1
    queries += 0.4
    values = rng.standard_normal((LAYERS, TOKENS, KV_HEADS, DIM))
    half = {"q": queries, "k": keys, "v": values}
    return {name: array.astype(np.float16) for name, array in half.items()} | {"scale": np.float32(DIM**-0.5)}


def write(path: Path, **changed: Any) -> Path:
    """The capture as a file, with some arrays replaced (None: left out)."""
    made = {**arrays(), **changed}
    with path.open("wb") as file:
        np.savez(file, **{name: array for name, array in made.items() if array is not None})
    return path


def two_requests(**model: int) -> Trace:
    """Two requests that overlap, in blocks of 8."""
    return Trace(
        name="two",
        format="json",
        engine={"block_size": 8, "num_blocks": 32},
        model=model,
        requests=(
            Request(id="a", arrival_us=0, prompt_len=80, output_len=12),
            Request(id="b", arrival_us=60_000, prompt_len=45, output_len=9),
        ),
    )
