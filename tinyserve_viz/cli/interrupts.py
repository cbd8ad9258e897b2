"""Ctrl-C that is not lost: Python drops a KeyboardInterrupt that is raised inside a finalizer."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def kept_interrupts() -> Iterator[Callable[[], None]]:
    """Interrupts raise at once, as always; the function that is yielded raises one that was dropped.

    Outside the main thread, and where somebody else handles SIGINT, nothing changes and the function does nothing.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: None
        return
    came = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    def raise_dropped() -> None:
        if came:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield raise_dropped
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
