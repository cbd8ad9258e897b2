"""How long a seek takes anywhere in a recording of over a million events with 131,072 blocks.

    python tests/bench/bench_seek.py [--requests 76000] [--seeks 300] [--repeat 3]

Generates a bursty trace with shared prefixes, records it, opens the recording and seeks to random positions;
76,000 requests make 1.06 million events. A position counts with the fastest of its repeated seeks.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.trace.request import Request, Trace

BLOCK = 16


def trace(num_requests: int) -> Trace:
    """Requests whose prompts share prefixes, 1,500 tokens and 150 outputs on average, arriving all the time."""
    rng = np.random.default_rng(1)
    requests = []
    for i in range(num_requests):
        shared, own = int(rng.integers(0, 60)), int(rng.integers(10, 70))
        ids = np.concatenate([np.arange(shared), 1_000_000 + 100 * i + np.arange(own)]).astype(np.int64)
        arrival = int(i * 70_000)
        output = int(rng.integers(20, 280))
        requests.append(Request(f"r{i}", arrival, BLOCK * len(ids) - int(rng.integers(0, BLOCK)), output, ids))
    return Trace(name="seek", format="json", hash_block=BLOCK, requests=tuple(requests))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=40_000)
    parser.add_argument("--seeks", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "run.rec")
        settings = Settings(engine={"num_blocks": 131_072}, kernels="none")
        summary = run_replay(prepare(trace(arguments.requests), settings), path)
        with Timeline(path) as timeline:
            rng = np.random.default_rng(2)
            places = rng.integers(0, timeline.num_events + 1, arguments.seeks).tolist()
            times, spent = [], []
            for place in [*places, 0, timeline.num_events]:
                tries, work = [], []
                for _ in range(arguments.repeat):
                    started, begun = time.perf_counter(), time.process_time()
                    timeline.seek(place)
                    work.append((time.process_time() - begun) * 1e3)
                    tries.append((time.perf_counter() - started) * 1e3)
                times.append(min(tries))
                spent.append(min(work))
            size = path.stat().st_size / 1e6
            print(f"{timeline.num_events:,} events, {summary['steps']:,} steps, {size:,.0f} MB, 131,072 blocks")
            middle, late = statistics.median(times), np.percentile(times, 95)
            print(f"seek: median {middle:.0f} ms, 95 % {late:.0f} ms, max {max(times):.0f} ms")
            middle, late = statistics.median(spent), np.percentile(spent, 95)
            print(f"of that CPU: median {middle:.0f} ms, 95 % {late:.0f} ms, max {max(spent):.0f} ms")


if __name__ == "__main__":
    main()
