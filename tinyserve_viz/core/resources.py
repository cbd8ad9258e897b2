"""Where `cuda/` and `traces/` are: the copy inside an installed wheel, else the root of the checkout."""

from __future__ import annotations

from pathlib import Path

from tinyserve_viz.core.errors import TinyserveError

_PACKAGE = Path(__file__).resolve().parent.parent


def data_folder(name: str) -> Path:
    """The folder `cuda` or `traces` that belongs to this installation.

    Raises:
        TinyserveError: the installation is incomplete.
    """
    for folder in (_PACKAGE / "_data" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise TinyserveError(f"no folder {name}/ beside the package at {_PACKAGE}; install tinyserve-viz again")
