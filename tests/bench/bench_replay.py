"""How long a user waits: whole replays, recorded with every event, and the hit-rate curve, each in its own process.

    TINYSERVE_TRACES=folder python tests/bench/bench_replay.py [--repeat 3]

Prints a Markdown table: wall time (best and median of the repeats), events, size of the recording, peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPLAYS = (
    ("Azure conv, 19,366 requests, block 16 × 8,192", "azure_llm_2023_conv.csv", []),
    ("Mooncake, 12,031 requests, block 16 × 320,000", "mooncake_conversation.jsonl", ["--num-blocks", "320000"]),
    ("ShareGPT, 200 requests, block 16 × 8,192", "sharegpt_llama3.1-8b_rows001-200.jsonl", []),
)
CAPACITIES = "1000,2000,3000,5859,10000,15000,20000,30000,40000,50000,70000,100000,inf"


def run(arguments: list[str]) -> tuple[float, str, int]:
    """Seconds, standard output and peak memory in MB of one call of the tool."""
    started = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    answer = subprocess.run(
        [sys.executable, "-m", "tinyserve_viz", *arguments], capture_output=True, text=True, check=True
    )
    peak = max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return time.perf_counter() - started, answer.stdout, peak // 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    folder = Path(os.environ["TINYSERVE_TRACES"])
    print("| what | best s | median s | steps | events | recording MB | peak memory so far MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        recording = Path(scratch, "run.rec")
        for name, file, options in REPLAYS:
            times = []
            for _ in range(repeat):
                arguments = ["replay", str(folder / file), "--kernels", "none", "--headless", "--json", *options]
                seconds, out, peak = run([*arguments, "--record", str(recording), "--force"])
                times.append(seconds)
            summary = json.loads(out)
            assert summary["invariants"]["violations"] == 0
            assert summary["blocks"]["leaked"] == 0
            size = recording.stat().st_size / 1e6
            seconds = f"{min(times):.1f} | {statistics.median(times):.1f}"
            counts = f"{summary['steps']:,} | {summary['events']:,} | {size:,.0f} | {peak:,}"
            print(f"| `replay --record`, {name} | {seconds} | {counts} |", flush=True)
    curve = ["curve", str(folder / "mooncake_conversation.jsonl"), "--block-size", "512", "--json"]
    for name, arguments in (
        (
            "`curve`, Mooncake, LRU, FIFO, Belady × 13 capacities",
            [*curve, "--policy", "lru,fifo,belady", "--capacity", CAPACITIES],
        ),
        ("`--help`", ["--help"]),
        ("`replay --help`", ["replay", "--help"]),
    ):
        times = [run(arguments)[0] for _ in range(repeat)]
        print(f"| {name} | {min(times):.2f} | {statistics.median(times):.2f} | | | | |", flush=True)


if __name__ == "__main__":
    main()
