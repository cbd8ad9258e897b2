"""What watching quality costs a step: the same replay with `--quality full` and `off`, interleaved, on the references.

    python tests/bench/bench_quality.py [--repeat 5]

Prints milliseconds of processor time a decode step (median of the repeats), for all kernels and for decisions alone.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.trace import read_trace
from tinyserve_viz.trace.request import Request, Trace

LONG = Trace(
    "one sequence of 4,096 tokens, 4 layers", "json", (Request("r", 0, 4000, 24),),
    model={"num_layers": 4}, engine={"num_blocks": 300, "max_batch_tokens": 4096},
)  # fmt: skip


def ms_a_step(trace: Trace, kernels: str, quality: str) -> float:
    """Processor time of a decode step, the median: a busy machine does not disturb it much."""
    header = prepare(trace, Settings(kernels=kernels, quality=quality, attention="query-aware"))
    times = [time.process_time()]

    def take(_step: int, event: object) -> None:
        if type(event).__name__ == "StepEnded" and event.num_decoding:  # type: ignore[attr-defined]
            times.append(time.process_time())

    run_replay(header, extra_sinks=(take,))
    steps = [after - before for before, after in itertools.pairwise(times[1:])]
    return 1e3 * statistics.median(steps)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    for trace in (read_trace(data_folder("traces") / "quickstart.json"), LONG):
        for kernels in ("all", "decisions"):
            found: dict[str, list[float]] = {"full": [], "off": []}
            for _ in range(repeat):
                for quality, times in found.items():
                    times.append(ms_a_step(trace, kernels, quality))
            full, off = (statistics.median(times) for times in found.values())
            print(f"{trace.name}, kernels {kernels}: {full:.2f} ms a step, {off:.2f} without, {full - off:+.2f}")


if __name__ == "__main__":
    main()
