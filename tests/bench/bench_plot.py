"""How long every plot and export of a recording of over a million events takes, each in a process of its own.

    python tests/bench/bench_plot.py [--requests 30000] [--repeat 3]

Generates a trace of conversations, records its replay without kernels, and puts after every step's work the times of
eleven kernels, drawn at random, so that the plots of kernels have as much to read as on a machine that ran them:
30,000 requests make 1.22 million events. A row is the fastest of its runs.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from tinyserve_viz.analysis.charts import CHARTS
from tinyserve_viz.cli.session import Settings, prepare
from tinyserve_viz.cli.session import run_replay as replayed
from tinyserve_viz.core.apply import apply
from tinyserve_viz.core.events import KernelsTimed, StepEnded
from tinyserve_viz.recording.recorder import Recorder
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.trace.generate import KINDS, generate

KERNELS = " ".join(f"kernel_{letter}" for letter in "abcdefghijk")
EXPORTS = ("csv", "jsonl", "chrome", "mooncake")


def with_kernel_times(source: Path, target: Path) -> int:
    """The recording again with times of kernels in every step; returns its number of events."""
    rng = np.random.default_rng(1)
    calls, moved = np.ones(11, dtype=np.int32), np.full(11, 1000, dtype=np.int64)
    with Timeline(source) as timeline:
        header = replace(timeline.header, origin=timeline.header.origin | {"kernels_run": "all"})
        state = header.empty_state()
        with Recorder(target, header, state) as recorder:
            for step, event in timeline.events():
                if isinstance(event, StepEnded):
                    times = rng.gamma(2.0, 20.0, 11)
                    recorder.add(step, KernelsTimed(KERNELS, calls, times, moved, "reference", 0.0, 0.0, 0.0, 0.0))
                apply(state, event)
                recorder.add(step, event)
            recorder.finish(timeline.summary or b"{}")
            return recorder.digest.num_events


def timed(arguments: list[str], repeat: int) -> tuple[float, float]:
    """Fastest wall and CPU seconds of a whole process."""
    found = []
    for _ in range(repeat):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "tinyserve_viz", *arguments], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append((time.perf_counter() - started, cpu))
    return min(wall for wall, _ in found), min(cpu for _, cpu in found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=30_000)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        plain, path, out = (Path(scratch, name) for name in ("plain.rec", "run.rec", "out"))
        shape = replace(KINDS["prefix"].shape, requests=arguments.requests)
        replayed(prepare(generate("prefix", 7, shape), Settings(kernels="none")), plain)
        events = with_kernel_times(plain, path)
        load = os.getloadavg()[0]
        print(f"{events:,} events, {path.stat().st_size / 1e6:,.0f} MB, load {load:.1f} on {os.cpu_count()} cores")
        kinds = [module.KIND for module in CHARTS if module.KIND != "selection"]  # no selections were made
        jobs = [["plot", str(path), "--kind", kind, "--force", "-o", f"{out}.png"] for kind in kinds]
        jobs += [["export", str(path), "--format", form, "--force", "-o", str(out)] for form in EXPORTS]
        for job in jobs:
            wall, cpu = timed(job, arguments.repeat)
            print(f"{job[0]} {job[3]:<14} {wall:5.1f} s, {cpu:5.1f} s of CPU")


if __name__ == "__main__":
    main()
