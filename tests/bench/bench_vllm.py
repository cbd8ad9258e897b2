"""How long the runs of the oracle take under `--profile vllm`, whole and per step with many sequences running.

    TINYSERVE_TRACES=folder TINYSERVE_ORACLE=folder python tests/bench/bench_vllm.py [--repeat 3]

Every run is held to vLLM's digest of decisions in a pass that is not timed. Then the engine with its step-by-step
invariants is timed, and the whole replay with every event recorded; the traces were read before. Times are CPU times of
the process, which other work on the machine disturbs less than wall times. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from tinyserve_viz.analysis.decisions import DecisionLines
from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core.check import StepChecker
from tinyserve_viz.engine.replay import Engine
from tinyserve_viz.recording.header import Header
from tinyserve_viz.trace import read_trace

MANY = 240
FILES = {"mooncake_conversation": "mooncake_conversation.jsonl", "sharegpt": "sharegpt_llama3.1-8b_rows001-200.jsonl"}


def header_of(traces: Path, run: str, expected: dict[str, Any]) -> Header:
    """The run as a replay of ours."""
    file = next(file for name, file in FILES.items() if run.startswith(name))
    engine = {
        "num_blocks": expected["num_gpu_blocks"],
        "max_num_seqs": expected["max_num_seqs"],
        "max_batch_tokens": expected["max_num_batched_tokens"],
        "block_size": 16,
    }
    settings = Settings(engine=engine, profile="vllm", arrivals=expected["arrivals"], kernels="none")
    return prepare(read_trace(traces / file, limit=expected["requests"]), settings)


def full_house(traces: Path, num_blocks: int) -> Header:
    """A run of our own with all 256 seats taken most of the time; no oracle has it."""
    settings = Settings(engine={"num_blocks": num_blocks}, profile="vllm", arrivals="burst", kernels="none")
    return prepare(read_trace(traces / "azure_llm_2023_conv.csv", limit=2000), settings)


def decisions(header: Header) -> str:
    """The digest of the decision lines of a run."""
    sha256 = hashlib.sha256()
    lines = DecisionLines(header.workload, header.engine.block_size, sha256.update)
    engine = Engine(header.workload, header.engine, header.rules, lines.add, header.origin["arrivals"] == "sequential")
    while engine.step():
        pass
    return sha256.hexdigest()


def timed(header: Header) -> tuple[float, int, float | None]:
    """CPU seconds of one run with its invariants, its steps, and the CPU ms of a step with `MANY` running or more."""
    engine = Engine(
        header.workload, header.engine, header.rules, lambda step, event: checker.add(step, event),
        header.origin["arrivals"] == "sequential",
    )  # fmt: skip
    checker = StepChecker(engine.state, cached_when_scheduled=True)
    crowded: list[float] = []
    begun = before = time.process_time()
    while engine.step():
        now = time.process_time()
        if len(engine.order) >= MANY:
            crowded.append(now - before)
        before = now
    spent = time.process_time() - begun
    assert not checker.violations
    return spent, engine.state.step, 1e3 * sum(crowded) / len(crowded) if crowded else None


def recorded(header: Header) -> float:
    """CPU seconds of the run recorded with every event, checks, digest and summary."""
    with tempfile.TemporaryDirectory() as scratch:
        started = time.process_time()
        run_replay(header, Path(scratch, "run.rec"))
        return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    traces, oracle = Path(os.environ["TINYSERVE_TRACES"]), Path(os.environ["TINYSERVE_ORACLE"])
    runs = json.loads((oracle / "vllm_kv.json").read_text())["runs"]
    print(f"| run | steps | decided and checked, s | µs a step | ms a step with {MANY} running or more | recorded, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    total = [0.0, 0.0]
    for run, expected in runs.items():
        header = header_of(traces, run, expected)
        assert decisions(header) == expected["decisions_sha256"], run
        best, steps, crowded = min(timed(header) for _ in range(repeat))
        assert steps == expected["steps"]
        kept = min(recorded(header) for _ in range(repeat))
        total[0] += best
        total[1] += kept
        many = "–" if crowded is None else f"{crowded:.2f}"
        print(f"| {run} | {steps:,} | {best:.2f} | {best / steps * 1e6:.0f} | {many} | {kept:.2f} |", flush=True)
    print(f"| all 18 | | {total[0]:.1f} | | | {total[1]:.1f} |", flush=True)
    for blocks in (60_000, 20_000):
        best, steps, crowded = min(timed(full_house(traces, blocks)) for _ in range(repeat))
        name = f"Azure conv, 2,000 requests at once, 256 seats, {blocks:,} blocks"
        print(f"| {name} | {steps:,} | {best:.2f} | {best / steps * 1e6:.0f} | {crowded:.2f} | |")


if __name__ == "__main__":
    main()
