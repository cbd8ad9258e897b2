"""A file of measured rows, as `kernels bench --json` and the peers' scripts write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tinyserve_viz.core.errors import TinyserveError

REFERENCE = "reference"


class BenchRow(msgspec.Struct):
    """One timing: `us` a call, `gbs` of useful `bytes`, `spread` (p90 − p10) / median; or the `error` instead."""

    op: str
    impl: str
    shape: str
    us: float | None = None
    gbs: float | None = None
    bytes: float | None = None
    spread: float | None = None
    how: str = ""
    note: str = ""
    provenance: str = "measured"
    baseline: str | None = None
    error: str | None = None


class BenchFile(msgspec.Struct):
    """A device, its peaks in GB/s (`copy`: bytes read + written) and the rows."""

    device: str
    rows: list[BenchRow]
    peaks: dict[str, float] = {}
    tool: str = ""
    torch: str = ""
    cuda: str = ""
    driver: str = ""
    clocks: str = ""
    l2: str = ""
    provenance: str = "measured"


class BenchSource:
    """The rows of a bench file that may be drawn: those with a time that a device took; or `all_rows`.

    Raises:
        TinyserveError: the file is no bench file, or holds no such row.
    """

    def __init__(self, path: Path, all_rows: bool = False) -> None:
        self.name = path.name
        try:
            self.file = msgspec.json.decode(path.read_bytes(), type=BenchFile)
        except OSError as error:
            raise TinyserveError(f"{path}: {error.strerror}") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TinyserveError(
                f"{path}: neither a recording nor a bench file ({error}); a trace is recorded by replay --record"
            ) from None
        self.rows = self.file.rows
        if all_rows:
            return
        timed = [row for row in self.file.rows if row.us is not None and row.error is None]
        self.rows = [row for row in timed if REFERENCE not in (row.provenance, self.file.provenance)]
        if not self.rows:
            why = "its rows are NumPy reference times, which are no kernel times" if timed else "it holds no timed row"
            raise TinyserveError(f"{path}: {why}: nothing for a plot of GB/s or of speed-up")

    def caption(self) -> tuple[str, ...]:
        """The parts of a caption: device, versions, method, provenance."""
        file = self.file
        how = sorted({row.how for row in self.rows if row.how})
        named: list[tuple[str, Any]] = [
            ("driver", file.driver),
            ("CUDA", file.cuda),
            ("PyTorch", file.torch),
            ("clocks", file.clocks),
            ("L2", file.l2),
            ("timed by", ", ".join(how)),
            ("tinyserve-viz", file.tool),
        ]
        parts = [file.device, *(f"{name} {value}" for name, value in named if value)]
        return (*parts, "● measured on the device; GB/s of useful bytes, each input and output byte once")
