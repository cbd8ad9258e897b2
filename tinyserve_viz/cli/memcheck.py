"""`memcheck`: the verification cases under NVIDIA's compute-sanitizer: bad addresses, races, unset memory, barriers."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

FINDING = 1
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_FOUND = 86  # the exit code that compute-sanitizer is told to end with when it found something


@dataclass(frozen=True, slots=True)
class Finding:
    """What the tool says on its first line, the kernel it names, and the lines below."""

    what: str
    kernel: str
    details: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ToolRun:
    """One tool over the cases; `errors` is the number that its own summary gives."""

    tool: str
    cases: int
    failed_cases: int
    errors: int
    seconds: float
    findings: tuple[Finding, ...] = field(default_factory=tuple)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `memcheck`."""
    parser.add_argument(
        "--tool",
        action="append",
        choices=(*TOOLS, "all"),
        default=[],
        help="addresses, races in shared memory, unset memory, barriers; repeatable (default: all)",
    )
    parser.add_argument("--kernel", action="append", default=[], metavar="NAME", help="this kernel only; repeatable")
    parser.add_argument("--nvcc", metavar="PATH", help="compiler (default: $CUDA_HOME, PATH, then NVIDIA's wheels)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.epilog = (
        "examples:\n"
        "  tinyserve-viz memcheck\n"
        "  tinyserve-viz memcheck --kernel block_allocation --json\n"
        "Needs a GPU and compute-sanitizer; exit code 1 when a tool found something or a case failed."
    )


def run(args: argparse.Namespace) -> int:
    """Run each tool over the cases; 1 when there is a finding."""
    from tinyserve_viz.cli.on_gpu import compiled, program_for
    from tinyserve_viz.cli.progress import busy
    from tinyserve_viz.kernels.backend import kernel_named
    from tinyserve_viz.kernels.cuda_backend import gpu_for

    names = [kernel_named(name).name for name in args.kernel]
    tools = TOOLS if not args.tool or "all" in args.tool else tuple(dict.fromkeys(args.tool))
    gpu = gpu_for("memcheck needs a GPU")
    sanitizer = program_for("memcheck")
    with busy("compiling", args.quiet):
        compiled(gpu, names, args.nvcc)  # so that no compiler runs under the sanitizer
    runs = []
    for tool in tools:
        with busy(f"{tool} over the cases", args.quiet):
            runs.append(_run(sanitizer, tool, names, args.nvcc))
        if not args.json:
            print(_text(runs[-1]), flush=True)
    if args.json:
        rows = [asdict(one) for one in runs]
        print(json.dumps({"schema": 1, "device": gpu.name, "sanitizer": str(sanitizer), "runs": rows}))
    return FINDING if any(one.errors or one.findings or one.failed_cases for one in runs) else 0


def _run(sanitizer: Path, tool: str, names: Sequence[str], nvcc: str | None) -> ToolRun:
    from tinyserve_viz.core.errors import KernelError

    options = [word for name in names for word in ("--kernel", name)] + (["--nvcc", nvcc] if nvcc else [])
    verify = [sys.executable, "-m", "tinyserve_viz", "kernels", "verify", "--backend", "cuda", "--json", *options]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = [str(sanitizer), "--tool", tool, "--log-file", str(log), "--error-exitcode", str(_FOUND), *verify]
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    errors, findings = read_log(said)
    try:
        counts = json.loads(done.stdout)["counts"]
    except (ValueError, KeyError, TypeError):
        counts = None
    if errors is None or (counts is None and not findings):
        lines = [line.lstrip("= ").strip() for line in (said + done.stderr).splitlines()]
        why = next((line for line in reversed(lines) if line), f"it ended with code {done.returncode}")
        raise KernelError(f"compute-sanitizer {tool} did not run to its end: {why}")
    cases, failed = (counts["OK"] + counts["FAIL"], counts["FAIL"]) if counts else (0, 0)
    return ToolRun(tool, cases, failed, errors, round(time.perf_counter() - started, 1), findings)


def read_log(log: str) -> tuple[int | None, tuple[Finding, ...]]:
    """Errors by the tool's own summary (None: it has none) and the findings, from compute-sanitizer's log."""
    summary = re.search(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (\d+)", log, re.MULTILINE)
    blocks: list[list[str]] = []
    for line in log.splitlines():
        text = line.lstrip("=")
        if not line.startswith("=====") or re.match(r" (COMPUTE-SANITIZER|\w+ SUMMARY|Target application)", text):
            continue
        if re.match(r" {5,}(Host Frame|Saved host backtrace)", text):
            continue
        if text.startswith("     ") and blocks:
            blocks[-1].append(text.strip())
        elif text.strip():
            blocks.append([text.strip()])
    findings = []
    for first, *rest in blocks:
        named = re.search(r"\bat (?:.* in )?([A-Za-z_]\w*)\s*(?:\(|\+|$)", "\n".join([first, *rest]), re.MULTILINE)
        findings.append(Finding(first, named[1] if named else "", tuple(rest)))
    return (int(summary[1]) if summary else None), tuple(findings)


def _text(one: ToolRun) -> str:
    bad = f"{one.errors} errors" if one.errors else "nothing found"
    failed = f", {one.failed_cases} FAILED" if one.failed_cases else ""
    lines = [f"{one.tool:<10} {one.cases} cases{failed}, {bad} ({one.seconds:.0f} s)"]
    for finding in one.findings[:20]:
        lines += [
            f"  {finding.kernel or 'host'}: {finding.what}",
            *(f"      {detail}" for detail in finding.details[:6]),
        ]
    if len(one.findings) > 20:
        lines.append(f"  … and {len(one.findings) - 20} more; --json has them all")
    return "\n".join(lines)
