"""`profile`: Nsight Compute's counters of a kernel at the shapes of the bench, one launch each, caches flushed."""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# name of ours -> (metric, factor to our unit)
METRICS = {
    "us": ("gpu__time_duration.sum", 1e-3),
    "dram_read_mb": ("dram__bytes_read.sum", 1e-6),
    "dram_write_mb": ("dram__bytes_write.sum", 1e-6),
    "dram_pct": ("dram__throughput.avg.pct_of_peak_sustained_elapsed", 1.0),
    "sm_pct": ("sm__throughput.avg.pct_of_peak_sustained_elapsed", 1.0),
    "occupancy_pct": ("sm__warps_active.avg.pct_of_peak_sustained_active", 1.0),
    "registers": ("launch__registers_per_thread", 1.0),
    "waves": ("launch__waves_per_multiprocessor", 1.0),
    "sectors_per_load": ("l1tex__average_t_sectors_per_request_pipe_lsu_mem_global_op_ld.ratio", 1.0),
}


@dataclass(frozen=True, slots=True)
class Launch:
    """Counters of one launch of a row; None where the profiler has none."""

    op: str
    impl: str
    shape: str
    entry: str
    counters: dict[str, float | None]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `profile`."""
    parser.add_argument(
        "--kernel", action="append", default=[], required=True, metavar="NAME", help="kernel to look at; repeatable"
    )
    parser.add_argument("--grid", default="quick", choices=("quick", "full"), help="shapes (default %(default)s)")
    parser.add_argument("--shape", default="", metavar="TEXT", help="only shapes that contain this, e.g. 'B=64 L=4096'")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="keep Nsight Compute's full report here (.ncu-rep)"
    )
    parser.add_argument("--force", action="store_true", help="replace the file of -o if it exists")
    parser.add_argument("--nvcc", metavar="PATH", help="compiler (default: $CUDA_HOME, PATH, then NVIDIA's wheels)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.epilog = (
        "examples:\n"
        "  tinyserve-viz profile --kernel paged_attention --shape 'B=64 L=4096'\n"
        "  tinyserve-viz profile --kernel block_scoring --json\n"
        "Needs a GPU and ncu; leaves the clocks as they are, so times are near those of the bench."
    )


def run(args: argparse.Namespace) -> int:
    """Profile and print one line a launch."""
    from tinyserve_viz.cli.on_gpu import compiled, program_for
    from tinyserve_viz.cli.outputs import check_output
    from tinyserve_viz.cli.progress import busy
    from tinyserve_viz.kernels.backend import kernel_named
    from tinyserve_viz.kernels.cuda_backend import gpu_for

    check_output(args.output, args.force, "Nsight Compute's report", (".ncu-rep",))
    names = [kernel_named(name).name for name in args.kernel]
    gpu = gpu_for("profile needs a GPU")
    ncu = program_for("profile")
    with busy(f"profiling {', '.join(names)}", args.quiet):
        compiled(gpu, names, args.nvcc)
        launches = _profile(ncu, names, args)
    if args.json:
        units = {name: metric for name, (metric, _) in METRICS.items()}
        rows = [asdict(launch) for launch in launches]
        print(json.dumps({"schema": 1, "device": gpu.name, "metrics": units, "launches": rows}))
    else:
        print(gpu.name)
        print("\n".join(table(launches)))
    return 0


def _profile(ncu: Path, names: Sequence[str], args: argparse.Namespace) -> list[Launch]:
    from tinyserve_viz.core.errors import KernelError

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log.csv")
        metrics = ",".join(metric for metric, _ in METRICS.values())
        command = [str(ncu), "--profile-from-start", "off", "--clock-control", "none", "--metrics", metrics]
        command += ["--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log)]
        if args.output:
            command += ["--set", "full", "--export", str(args.output), "--force-overwrite"]
        command += [sys.executable, "-m", "tinyserve_viz.kernels.bench.once", args.grid, args.shape, *names]
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if "ERR_NVGPUCTRPERM" in said + done.stderr + done.stdout:
        raise KernelError(
            "the driver lets administrators alone read counters: run as root, or load it with "
            "NVreg_RestrictProfilingToAdminUsers=0"
        )
    if done.returncode or not rows:
        lines = [line.removeprefix("==ERROR==").strip() for line in (said + done.stderr).splitlines() if line.strip()]
        raise KernelError(f"ncu did not run to its end: {lines[-1] if lines else 'no row has that kernel and shape'}")
    return read_csv(said, rows)


def read_csv(said: str, rows: Sequence[dict[str, Any]]) -> list[Launch]:
    """The profiler's table, one launch a line, beside what was launched in the same order.

    Raises:
        KernelError: the two do not fit.
    """
    from tinyserve_viz.core.errors import KernelError

    text = "\n".join(line for line in said.splitlines() if not line.startswith("=="))
    lines = [line for line in csv.DictReader(io.StringIO(text)) if line.get("Kernel Name")]
    launched = [(row, entry) for row in rows for entry in row["launches"]]
    if [line["Kernel Name"].split("(")[0] for line in lines] != [entry for _, entry in launched]:
        raise KernelError(f"ncu saw {len(lines)} launches, {len(launched)} were made")
    return [
        Launch(row["op"], row["impl"], row["shape"], entry, dict(_counters(line)))
        for (row, entry), line in zip(launched, lines, strict=True)
    ]


def _counters(line: dict[str, str]) -> Iterator[tuple[str, float | None]]:
    for name, (metric, factor) in METRICS.items():
        try:
            yield name, float((line.get(metric) or "").replace(",", "")) * factor
        except ValueError:
            yield name, None


def table(launches: Sequence[Launch]) -> Iterator[str]:
    """One line a launch, headed by the counters' names."""
    yield f"{'launch':<42}{'shape':<40}" + "".join(f"{name:>17}" for name in METRICS)
    for launch in launches:
        values = [launch.counters[name] for name in METRICS]
        shown = "".join(f"{'–' if value is None else f'{value:.1f}':>17}" for value in values)
        yield f"{launch.entry:<42}{launch.shape:<40}{shown}"
