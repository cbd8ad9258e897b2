"""A trace as the columns that the engine and the state work on."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.core.workload import Workload, sequences_of
from tinyserve_viz.trace.columns import request_columns
from tinyserve_viz.trace.hashing import block_hashes
from tinyserve_viz.trace.request import Trace

ARRIVALS = {
    "trace": "requests arrive when the trace says",
    "burst": "all requests arrive at time 0, in the order of the trace",
    "sequential": "the next request arrives when none is alive",
    "timed": "as `trace`, with a step of 10,000 µs + 15 µs a token (vllm-oracle runs)",
}


def workload_of(trace: Trace, block_size: int, outputs: bool = False, arrivals: str = "trace") -> Workload:
    """Columns of `trace` with content ids of its blocks of `block_size` tokens, with `outputs` of generated ones too.

    Raises:
        ConfigError: block_size does not divide the trace's hash_block.
        TraceError: a parent is no earlier request, or two requests have one id.
    """
    columns = request_columns(trace)
    hashes = block_hashes(trace, block_size, outputs=outputs)
    first_seq, request_of_seq = sequences_of(columns.n)
    at_once = arrivals in ("burst", "sequential")
    return Workload(
        request_ids=columns.ids,
        arrival_us=np.zeros_like(columns.arrival_us) if at_once else columns.arrival_us,
        prompt_len=columns.prompt_len,
        output_len=columns.output_len,
        num_samples=columns.n,
        parent=columns.parent,
        fork_at=columns.fork_at,
        cancel_at_us=columns.cancel_at_us,
        priority=columns.priority,
        num_hashes=hashes.num_hashes,
        hash_flat=hashes.flat,
        hash_offsets=hashes.offsets,
        first_seq=first_seq,
        request_of_seq=request_of_seq,
    )
