"""Host time of a replay step on the GPU of this machine: python -m tests.gpu.step_time prints a table.

A batch decodes at a given context length while everything runs: scheduler, allocator, every kernel, selection events.
The wall time of a warm step less its kernels' own time is what the host costs beyond them; what digest, recording and
verification cost stands beside it. Host work that fits beside a kernel is not seen here, so the shortest pipeline
(`query-aware`: one form of attention) has its own row.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tinyserve_viz.cli.backend import open_session
from tinyserve_viz.cli.session import Settings, prepare
from tinyserve_viz.core import events as ev
from tinyserve_viz.engine.pipeline import KernelPipeline, PipelineConfig, Stopwatch
from tinyserve_viz.engine.replay import Engine
from tinyserve_viz.recording.recorder import Digest, Recorder
from tinyserve_viz.trace.request import Request, Trace

DEFAULT = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 64}
LLAMA_3_8B = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128}  # one layer of it
MODELS = {"8/2 × 64": DEFAULT, "32/8 × 128": LLAMA_3_8B}
VERIFIED_STEPS = 70  # every 32nd step is verified, which takes seconds
ROWS = (  # model, attention, quality, who watches, verify
    ("8/2 × 64", "all", "off", "nothing", "off"),
    ("8/2 × 64", "all", "off", "digest", "off"),
    ("8/2 × 64", "all", "off", "record", "off"),
    ("8/2 × 64", "all", "full", "nothing", "off"),
    ("8/2 × 64", "query-aware", "off", "nothing", "off"),
    ("32/8 × 128", "all", "off", "nothing", "off"),
    ("32/8 × 128", "all", "full", "nothing", "off"),
    ("8/2 × 64", "all", "off", "nothing", "sample"),
)


def batch_trace(batch: int, length: int, steps: int, model: dict[str, int]) -> Trace:
    """`batch` requests of nearly `length` tokens that decode side by side for `steps` steps, at different places in
    their last blocks."""
    return Trace(
        name=f"B={batch} L={length}",
        format="json",
        hash_block=16,
        model=model,
        engine={
            "num_blocks": batch * (-(-(length + steps) // 16) + 2),
            "max_num_seqs": batch,
            "max_batch_tokens": 8192,
            "watermark_permille": 0,
        },
        requests=tuple(
            Request(id=f"r{i}", arrival_us=0, prompt_len=length - i % 16, output_len=steps) for i in range(batch)
        ),
    )


def measure(
    trace: Trace, batch: int, backend: str, watch: str, verify: str = "off", **chosen: Any
) -> dict[str, Any]:
    """Medians over the warm steps in which all sequences decode, those that are verified if some are. `watch`: nothing,
    digest or record."""
    settings = Settings(backend=backend, kernels=chosen.pop("kernels", "all"), verify=verify, **chosen)
    header = prepare(trace, settings)
    stopwatch = Stopwatch()
    rows: list[dict[str, float]] = []
    last: dict[str, Any] = {}

    def sink(step: int, event: ev.Event) -> None:
        before = time.perf_counter()
        if take is not None:
            take(step, event)
        stopwatch.record_s += time.perf_counter() - before
        if type(event) is ev.KernelsTimed:
            last["timed"] = event
        elif type(event) is ev.StepEnded:
            last["step"] = event

    engine = Engine(header.workload, header.engine, header.rules, sink)
    session = open_session(header)
    config = PipelineConfig("all", settings.attention, verify, settings.quality)
    engine.kernels = KernelPipeline(
        engine.state, header.engine, header.model, header.content, session, config, stopwatch
    )
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder, "run.rec"), header, engine.state) if watch == "record" else None
        take = recorder.add if recorder else Digest().add if watch == "digest" else None
        while True:
            started = time.perf_counter()
            if not engine.step():
                break
            wall = (time.perf_counter() - started) * 1e6
            if last["step"].num_decoding == batch and not last["step"].num_prefill_tokens:
                timed: ev.KernelsTimed = last["timed"]
                kernels = float(timed.total_us.sum())
                row = {"wall": wall, "kernels": kernels, "record": timed.record_us, "verify": timed.verify_us}
                row["host"] = wall - kernels - timed.record_us
                if timed.verify_us:  # part of which was spent before the step, fetching copies: the step's own account
                    row["host"] = timed.host_us
                if verify == "off" or timed.verify_us:
                    rows.append(row)
        if recorder:
            recorder.__exit__(None, None, None)
        copy = session.copy_gb_per_s
        session.close()
    warm = rows[len(rows) // 4 :]
    host = [row["host"] for row in warm]
    per_kernel = dict(zip(timed.names.split(), (timed.total_us / timed.calls).round(2).tolist(), strict=True))
    return {
        "trace": trace.name, "model": trace.model, "watch": watch, "settings": {k: str(v) for k, v in chosen.items()},
        "steps": len(warm), "copy_gb_per_s": copy,
        "wall_us": float(np.median([row["wall"] for row in warm])),
        "kernels_us": float(np.median([row["kernels"] for row in warm])),
        "host_us": float(np.median(host)), "host_p95_us": float(np.percentile(host, 95)),
        "record_us": float(np.median([row["record"] for row in warm])),
        "verify_us": float(np.median([row["verify"] for row in warm])),
        "last_step_us_per_call": per_kernel,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = []
    print("| model | attention | quality | watch | wall µs | kernels µs | host µs | 95 % | recording | verifying |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for model, attention, quality, watch, verify in ROWS:
        steps = VERIFIED_STEPS if verify != "off" else args.steps
        trace = batch_trace(args.batch, args.length, steps, MODELS[model])
        row = measure(trace, args.batch, args.backend, watch, verify, attention=attention, quality=quality)
        found.append(row)
        print(
            f"| {model} | {attention} | {quality} | {watch} | {row['wall_us']:.0f} | {row['kernels_us']:.0f} "
            f"| {row['host_us']:.0f} | {row['host_p95_us']:.0f} | {row['record_us']:.0f} | {row['verify_us']:.0f} |",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
