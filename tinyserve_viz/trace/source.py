"""The bytes of a trace file, plain or gzip, and errors that name the file and the place in it."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyserve_viz.core.errors import TraceError

GZIP_MAGIC = b"\x1f\x8b"
_SQLITE_MAGIC = b"SQLite format 3\x00"  # of a recording
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SHOWN_CHARS = 60  # of a bad value, so that an error stays one line


@dataclass(frozen=True, slots=True)
class Source:
    """A trace file as read: `path` as the user wrote it, `name` without folder and suffixes, `data` unpacked UTF-8."""

    path: str
    name: str
    data: bytes

    def error(self, problem: str, line: int | None = None) -> TraceError:
        """The error to raise for `problem`, with the path and, if given, the line (from 1) before it."""
        return TraceError(f"{self.path}: {problem}" if line is None else f"{self.path}:{line}: {problem}")


def open_source(path: str | Path) -> Source:
    """Read and unpack `path`.

    Raises:
        TraceError: it cannot be read, is empty, is a broken gzip file or is not text.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file, expected a trace") from None
    except IsADirectoryError:
        raise TraceError(f"{path}: is a directory, expected a trace file") from None
    except PermissionError:
        raise TraceError(f"{path}: no permission to read it") from None
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if data.startswith(GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            raise TraceError(f"{path}: broken gzip data, expected a complete .gz file") from None
    source = Source(str(path), _name_of(file), data.removeprefix(BYTE_ORDER_MARK))
    if not source.data.strip():
        raise source.error("the file is empty, expected a trace")
    _check_text(source)
    return source


def show(value: Any) -> str:
    """`value` on one line and cut where it is long, for use in an error."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f"{value:.15g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def _name_of(file: Path) -> str:
    name = file.name.removesuffix(".gz")
    stem = name.rsplit(".", 1)[0] if "." in name.lstrip(".") else name
    return stem.encode("utf-8", "replace").decode()


def _check_text(source: Source) -> None:
    data = source.data
    if data.startswith(_SQLITE_MAGIC):
        raise source.error("is a recording (or another SQLite file), expected a trace")
    try:
        data.decode("utf-8")
        position = data.find(b"\0")
    except UnicodeDecodeError as error:
        position = error.start
    if position >= 0:
        line = data.count(b"\n", 0, position) + 1
        raise source.error(f"binary data (byte 0x{data[position]:02x}), expected text in UTF-8", line)
