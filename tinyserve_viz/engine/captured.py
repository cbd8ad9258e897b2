"""Captured content: K, V and queries that a real model computed, read from an `.npz` file.

`q` [layers][tokens][query heads][head dim], `k` and `v` [layers][tokens][KV heads][head dim], float16 or float32, after
RoPE; optional `scale` (the factor of q·k, 1/sqrt(head dim) where it is missing). Query head h reads KV head
h // (query heads / KV heads). Token position i of *every* sequence is captured token i, so a sequence can be no longer
than the capture; requests differ in length and in time, not in content.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.config import ModelConfig
from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.core.workload import Workload

F16 = NDArray[np.float16]
I32 = NDArray[np.int32]

_AXES = ("layers", "tokens", "heads", "head_dim")


@dataclass(frozen=True, slots=True, eq=False)
class Capture:
    """The arrays of a file, float16 [layers][tokens][heads][head_dim], and the SHA-256 of its bytes."""

    path: str
    sha256: str
    q: F16
    k: F16
    v: F16
    scale: np.float32

    @property
    def num_tokens(self) -> int:
        """Tokens that were captured: the longest context that a sequence can have."""
        return int(self.q.shape[1])

    @property
    def model(self) -> ModelConfig:
        """The attention shape of the captured model."""
        layers, _, heads, head_dim = self.q.shape
        return ModelConfig(layers, heads, self.k.shape[2], head_dim)

    def about(self) -> dict[str, Any]:
        """What headers and summaries say about the file."""
        return {"path": self.path, "sha256": self.sha256, "num_tokens": self.num_tokens, "scale": float(self.scale)}


def read_capture(path: str, sha256: str | None = None) -> Capture:
    """Read and check a capture; with `sha256` it must be that very file.

    Raises:
        ConfigError: the file cannot be read, an array is missing or has another shape, or the hash differs.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}, expected captured content (.npz)") from None
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise ConfigError(f"{path}: its SHA-256 is {found[:16]}…, expected {sha256[:16]}…: another capture")
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ConfigError(f"{path}: holds one array, expected an .npz with q, k and v")
        with loaded as arrays:
            wanted = ("q", "k", "v", "scale")
            named: dict[str, NDArray[Any]] = {name: arrays[name] for name in wanted if name in arrays.files}
            names = ", ".join(sorted(arrays.files)) or "none"
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path}: is no .npz that can be read ({str(error).splitlines()[0]})") from None
    for name in ("q", "k", "v"):
        if name not in named:
            raise ConfigError(f"{path}: has no array {name}, expected q, k and v; it has {names}")
        named[name] = _checked(path, name, named[name])
    _agree(path, named)
    return Capture(path, found, named["q"], named["k"], named["v"], _scale(path, named))


def _checked(path: str, name: str, array: NDArray[Any]) -> F16:
    """The array as finite float16 of four axes, none of them empty."""
    if array.ndim != len(_AXES):
        raise ConfigError(f"{path}: {name} has {array.ndim} axes, expected 4: [{']['.join(_AXES)}]")
    if array.dtype not in (np.float16, np.float32):
        raise ConfigError(f"{path}: {name} is {array.dtype}, expected float16 or float32")
    for axis, size in enumerate(array.shape):
        if size == 0:
            raise ConfigError(f"{path}: {name} has 0 {_AXES[axis]} on axis {axis}, expected 1 or more")
    with np.errstate(over="ignore"):
        half: F16 = np.ascontiguousarray(array, dtype=np.float16)
    if not np.isfinite(half).all():
        layer, token, head, _ = np.argwhere(~np.isfinite(half))[0].tolist()
        raise ConfigError(
            f"{path}: {name} is not finite as float16 at layer {layer}, token {token}, head {head}, expected numbers"
        )
    return half


def _agree(path: str, arrays: dict[str, Any]) -> None:
    """q, k and v describe one model: same layers, tokens and head_dim, and query heads a multiple of KV heads."""
    q, k, v = (arrays[name].shape for name in ("q", "k", "v"))
    for axis in (0, 1, 3):
        if k[axis] != q[axis]:
            raise ConfigError(f"{path}: k has {k[axis]} {_AXES[axis]} on axis {axis}, q has {q[axis]}")
    for axis in range(4):
        if v[axis] != k[axis]:
            raise ConfigError(f"{path}: v has {v[axis]} {_AXES[axis]} on axis {axis}, k has {k[axis]}")
    if q[2] % k[2]:
        raise ConfigError(f"{path}: q has {q[2]} heads on axis 2, expected a multiple of the {k[2]} KV heads of k")


def _scale(path: str, arrays: dict[str, Any]) -> np.float32:
    if "scale" not in arrays:
        usual: np.float32 = np.float32(1) / np.sqrt(np.float32(arrays["q"].shape[3]))
        return usual
    scale = arrays["scale"]
    if scale.size != 1 or scale.dtype.kind not in "fiu" or not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ConfigError(f"{path}: scale is {scale.tolist()!r}, expected one number above 0")
    return np.float32(float(scale.reshape(-1)[0]))


def model_of(capture: Capture, given: dict[str, Any]) -> ModelConfig:
    """The shape of the captured model.

    Raises:
        ConfigError: `given`, what the trace says about the model, contradicts it.
    """
    model = capture.model
    for name, value in given.items():
        captured = getattr(model, name)
        if value != captured:
            raise ConfigError(f"the trace sets model.{name} to {value}, {capture.path} was captured with {captured}")
    return model


def check_lengths(capture: Capture, workload: Workload) -> None:
    """Refuse a sequence that would need a token behind the end of the capture.

    Raises:
        ConfigError: a request is longer than the capture.
    """
    total = workload.prompt_len.astype(np.int64) + workload.output_len
    longest = int(total.argmax()) if len(total) else 0
    if len(total) and total[longest] > capture.num_tokens:
        raise ConfigError(
            f"request {workload.request_ids[longest]} has {int(total[longest]):,} tokens (prompt and output), "
            f"{capture.path} has {capture.num_tokens:,}: position i is captured token i, and there are no more"
        )


class CapturedContent:
    """K, V and queries by position out of a capture; every sequence has the same."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self.scale = capture.scale

    def keys_and_values(self, seq: int, start: int, end: int, layer: int) -> F16:  # noqa: ARG002 - by position alone
        """K and V of the tokens [start, end), float16 [tokens][2][num_kv_heads][head_dim]."""
        return np.stack([self._capture.k[layer, start:end], self._capture.v[layer, start:end]], axis=1)

    def pieces(self, starts: I32, ends: I32, layer: int) -> F16:
        """K and V of the tokens [starts, ends) of several sequences, one after the other."""
        parts = zip(starts.tolist(), ends.tolist(), strict=True)
        return np.concatenate([self.keys_and_values(-1, start, end, layer) for start, end in parts])

    def queries(self, seqs: I32, positions: I32, layer: int) -> F16:  # noqa: ARG002
        """Query rows of the tokens at `positions`, float16 [sequences][num_heads][head_dim]."""
        rows: F16 = self._capture.q[layer, positions]
        return rows

    def forget(self, seq: int) -> None:
        """Nothing is kept of a sequence."""
