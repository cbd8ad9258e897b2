"""A progress bar on stderr for what takes longer than a second, and only on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_PATIENCE_S = 1.0


class Progress(Protocol):
    """Draws how far something is; with `now`, what is being done from here on."""

    def __call__(self, done: int, total: int, now: str | None = None) -> None: ...


@contextmanager
def busy(what: str, quiet: bool = False) -> Iterator[None]:
    """A line on stderr that moves while the block runs, once it has run for a second; only on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    console = Console(stderr=True)
    status = console.status(what)
    timer = threading.Timer(_PATIENCE_S, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()


@contextmanager
def progress_bar(what: str, quiet: bool = False) -> Iterator[Progress | None]:
    """Yields what draws, or None where nothing is to be drawn or stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Bar(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
    task = bar.add_task(what, total=None)
    started, shown = time.monotonic(), False

    def update(done: int, total: int, now: str | None = None) -> None:
        nonlocal shown
        if now is not None:
            bar.update(task, description=now)
        if not shown and time.monotonic() - started > _PATIENCE_S:
            bar.start()
            shown = True
        bar.update(task, completed=done, total=total)
        if shown:
            bar.refresh()

    try:
        yield update
    finally:
        if shown:
            bar.stop()
