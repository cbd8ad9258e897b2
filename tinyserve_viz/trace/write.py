"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from tinyserve_viz.core.errors import TraceError


def write_bytes(path: str, data: bytes, *, force: bool = False) -> None:
    """Write `data` to `path` (`-`: stdout) by way of a file beside it, so that nobody ever sees half of it.

    Raises:
        TraceError: `path` exists and `force` is not set, is a directory, or cannot be written.
    """
    if path == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        return
    target = Path(os.path.realpath(path))  # a link stays a link
    try:
        if target.is_dir():
            raise TraceError(f"{path}: is a directory, expected a file name")
        if target.exists() and not target.is_file():  # a pipe or a device: there is nothing to put in its place
            target.write_bytes(data)
            return
        if target.exists() and not force:
            raise TraceError(f"{path}: exists already, expected a new name (--force replaces it)")
        _replace(target, data)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written ({error.strerror or error})") from None


def _replace(target: Path, data: bytes) -> None:
    beside = target.with_name(f".tinyserve-viz-{os.getpid()}.tmp")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
