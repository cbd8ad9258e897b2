"""A trace as NumPy columns, one entry per request, for code that steps through many requests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.errors import TraceError
from tinyserve_viz.trace.request import Request, Trace


@dataclass(frozen=True, slots=True, eq=False)
class RequestColumns:
    """Requests in trace order; times in µs, lengths in tokens, -1 where there is none.

    Attributes:
        arrival_us, cancel_at_us: int64 [num_requests]
        prompt_len, output_len, n, fork_at, priority: int32 [num_requests]
        parent: int32 [num_requests], the index of the request that is forked from
    """

    ids: tuple[str, ...]
    arrival_us: NDArray[np.int64]
    prompt_len: NDArray[np.int32]
    output_len: NDArray[np.int32]
    n: NDArray[np.int32]
    parent: NDArray[np.int32]
    fork_at: NDArray[np.int32]
    cancel_at_us: NDArray[np.int64]
    priority: NDArray[np.int32]

    @property
    def num_requests(self) -> int:
        """How many requests there are."""
        return len(self.ids)


def request_columns(trace: Trace) -> RequestColumns:
    """Columns of all requests of `trace`.

    Raises:
        TraceError: a parent is not an earlier request, or two requests have one id.
    """
    requests = trace.requests
    index_of: dict[str, int] = {}
    parents = np.full(len(requests), -1, dtype=np.int32)
    forks = np.full(len(requests), -1, dtype=np.int32)
    for index, request in enumerate(requests):
        if request.parent is not None:
            if request.parent not in index_of:
                raise TraceError(f"{trace.name}: parent {request.parent!r} of {request.id!r} is no earlier request")
            parents[index] = index_of[request.parent]
            forks[index] = fork_point(request, requests[parents[index]])
        if index_of.setdefault(request.id, index) != index:
            raise TraceError(f"{trace.name}: two requests have the id {request.id!r}")

    return RequestColumns(
        ids=tuple(request.id for request in requests),
        arrival_us=np.array([request.arrival_us for request in requests], dtype=np.int64),
        prompt_len=np.array([request.prompt_len for request in requests], dtype=np.int32),
        output_len=np.array([request.output_len for request in requests], dtype=np.int32),
        n=np.array([request.n for request in requests], dtype=np.int32),
        parent=parents,
        fork_at=forks,
        cancel_at_us=np.array(
            [-1 if request.cancel_at_us is None else request.cancel_at_us for request in requests], dtype=np.int64
        ),
        priority=np.array([request.priority for request in requests], dtype=np.int32),
    )


def fork_point(child: Request, parent: Request) -> int:
    """Tokens of the parent's context that the child shares: its `fork_at`, else as much as both prompts have."""
    return min(child.prompt_len, parent.prompt_len) if child.fork_at is None else child.fork_at
