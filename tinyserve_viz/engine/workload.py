"""A trace as the columns that the engine and the state work on."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.core.workload import Workload, sequences_of
from tinyserve_viz.trace.hashing import block_hashes
from tinyserve_viz.trace.request import Trace

ARRIVALS = ("trace", "burst", "sequential", "timed")


def workload_of(trace: Trace, block_size: int, outputs: bool = False, at_once: bool = False) -> Workload:
    """Columns of `trace` with the content ids of its blocks of `block_size` tokens; `outputs` hashes generated ones too.

    With `at_once` every request arrives at time 0, in the order of the trace.

    Raises:
        ConfigError: block_size does not divide the trace's hash_block.
    """
    requests = trace.requests
    hashes = block_hashes(trace, block_size, outputs=outputs)
    index = {request.id: i for i, request in enumerate(requests)}
    num_samples = np.array([r.n for r in requests], dtype=np.int32)
    first_seq, request_of_seq = sequences_of(num_samples)
    return Workload(
        request_ids=tuple(index),
        arrival_us=np.array([0 if at_once else r.arrival_us for r in requests], dtype=np.int64),
        prompt_len=np.array([r.prompt_len for r in requests], dtype=np.int32),
        output_len=np.array([r.output_len for r in requests], dtype=np.int32),
        num_samples=num_samples,
        parent=np.array([-1 if r.parent is None else index[r.parent] for r in requests], dtype=np.int32),
        fork_at=np.array([-1 if r.fork_at is None else r.fork_at for r in requests], dtype=np.int32),
        cancel_at_us=np.array([-1 if r.cancel_at_us is None else r.cancel_at_us for r in requests], dtype=np.int64),
        priority=np.array([r.priority for r in requests], dtype=np.int32),
        num_hashes=hashes.num_hashes,
        hash_flat=hashes.flat,
        hash_offsets=hashes.offsets,
        first_seq=first_seq,
        request_of_seq=request_of_seq,
    )
