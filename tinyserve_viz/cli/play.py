"""The replays of a comparison: one after another, sharing what they have in common, or in processes where that pays."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tinyserve_viz.cli.progress import progress_bar
from tinyserve_viz.core.errors import TinyserveError

if TYPE_CHECKING:
    from tinyserve_viz.analysis.first_decision import DecisionKeys
    from tinyserve_viz.cli.progress import Progress
    from tinyserve_viz.recording.header import Header

    Replay = tuple[dict[str, Any], DecisionKeys]  # its summary and its decisions

_WORTH_S = 10.0  # of replays still to come; a process takes a second to start, and shares nothing with the others
_SHARED_BYTES = 2 << 30  # by all processes


class ProcessLost(TinyserveError):  # noqa: N818 - says a state of the machine, not a mistake
    """A process that replayed was ended from outside."""


def play_all(labels: Sequence[str], headers: Sequence[Header], jobs: int | None, quiet: bool) -> list[Replay]:
    """Replay all `headers`, of one trace and content, and return what each came to, in their order.

    The first is replayed here and shows what the others will take; then `jobs` processes replay them (None: as many as
    there are cores) where that pays. On a GPU there is one process.

    Raises:
        ProcessLost: a process was ended from outside.
    """
    total = len(headers)
    commons = Commons(headers)
    with progress_bar(labels[0], quiet) as progress:
        started = time.perf_counter()
        played = [commons.play(0, _told(progress, labels, 0))]
        rest_s = (time.perf_counter() - started) * (total - 1)
        workers = min(jobs or _cores(), total - 1)
        if workers > 1 and rest_s > _WORTH_S and all(one.origin["backend"] == "numpy" for one in headers):
            return played + _in_processes(labels, headers, workers, progress)
        played += [commons.play(number, _told(progress, labels, number)) for number in range(1, total)]
    return played


class Commons:
    """The replays of a comparison, and what those with blocks of one size share."""

    def __init__(self, headers: Sequence[Header], processes: int = 1) -> None:
        from tinyserve_viz.kernels.shared_session import SharedResults

        self._headers = headers
        sizes = {header.engine.block_size for header in headers}
        self._shared = {size: SharedResults(_SHARED_BYTES // len(sizes) // processes) for size in sizes}

    def play(self, number: int, progress: Callable[[int, int], None] | None = None) -> Replay:
        """Replay header `number`."""
        from tinyserve_viz.analysis.first_decision import DecisionKeys
        from tinyserve_viz.cli.session import run_replay

        header, keys = self._headers[number], DecisionKeys()
        shared = self._shared[header.engine.block_size] if header.origin["backend"] == "numpy" else None
        return run_replay(header, extra_sinks=(keys.add,), progress=progress, shared=shared), keys


def _told(progress: Progress | None, labels: Sequence[str], number: int) -> Callable[[int, int], None] | None:
    """Progress of one replay, under its name and number."""
    if progress is None:
        return None
    now = f"replay {number + 1} of {len(labels)}: {labels[number]}"
    return lambda done, total: progress(done, total, now)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_processes(
    labels: Sequence[str], headers: Sequence[Header], workers: int, progress: Progress | None
) -> list[Replay]:
    """All replays but the first."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    start = get_context("spawn")  # a fork would take over locks of threads that it has not
    with ProcessPoolExecutor(workers, start, _enter, (headers, workers)) as pool:
        waiting = {pool.submit(_play_here, number): number for number in range(1, len(headers))}
        found: dict[int, Replay] = {}
        try:
            for future in _as_they_end(waiting, labels, progress):
                found[waiting[future]] = future.result()
        except BrokenProcessPool:
            why = "a process that replayed was ended, perhaps for lack of memory; --jobs 1 needs least of it"
            raise ProcessLost(why) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [found[number] for number in sorted(found)]


def _as_they_end(waiting: dict[Any, int], labels: Sequence[str], progress: Progress | None) -> Any:
    """The futures in the order in which they end; tells `progress` the replay that runs for longest."""
    from concurrent.futures import as_completed

    left = dict(sorted(waiting.items(), key=lambda item: item[1]))

    def tell() -> None:
        if progress is not None and left:
            done, first = len(labels) - len(left), next(iter(left.values()))
            progress(done, len(labels), f"{done} of {len(labels)} replays; now {labels[first]} and others")

    tell()
    for future in as_completed(list(left)):
        del left[future]
        tell()
        yield future


_of_this_process: list[Commons] = []  # in a process that replays for another: set when it starts


def _enter(headers: Sequence[Header], processes: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the terminal interrupts every process; one has something to say
    _of_this_process.append(Commons(headers, processes))


def _play_here(number: int) -> Replay:
    return _of_this_process[0].play(number)
