"""Files that a command is going to write: what cannot work is refused before the work, not after it."""

from __future__ import annotations

import os
from pathlib import Path

from tinyserve_viz.core.errors import ConfigError

RECORDING = (".rec",)
TRACE = (".json",)
LINES = (".jsonl",)
BENCH = (".json",)


def check_output(path: str | Path | None, force: bool, what: str = "it", suffixes: tuple[str, ...] = ()) -> None:
    """Refuse `path` if it cannot be written, exists without `force`, or ends in none of `suffixes`.

    Nothing and `-` (stdout) pass; a name without a suffix does, and so do pipes and devices. `what` is what is to be
    written, as in "a recording".

    Raises:
        ConfigError: it is refused; the message says why and what would do.
    """
    if path is None or str(path) == "-":
        return
    target = Path(path)
    try:
        if target.is_dir():
            raise ConfigError(f"{path}: is a directory, expected a file name")
        if target.exists() and not target.is_file():
            return
        folder = target.resolve().parent
        if not folder.is_dir():
            raise ConfigError(f"{path}: there is no folder {folder}; make it first, or choose another place")
        if not os.access(target if target.exists() else folder, os.W_OK):
            raise ConfigError(f"{path}: may not be written here; choose another place")
        if target.exists() and not force:
            raise ConfigError(f"{path}: exists already, expected a new name (--force replaces it)")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from None
    if suffixes and target.suffix and target.suffix.lower() not in suffixes:
        raise ConfigError(f"{path}: has suffix {target.suffix}, {what} ends in {' or '.join(suffixes)}")
