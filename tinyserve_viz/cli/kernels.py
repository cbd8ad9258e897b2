"""`kernels`: list the kernel set, hold a backend to the oracles, compile the CUDA files, time them."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tinyserve_viz.cli import kernels_bench

if TYPE_CHECKING:
    from tinyserve_viz.kernels.backend import Backend

FINDING = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions of `kernels` and their arguments."""
    parser.epilog = (
        "examples:\n"
        "  tinyserve-viz kernels list\n"
        "  tinyserve-viz kernels verify --kernel paged_attention\n"
        "  tinyserve-viz kernels build --arch sm_80,sm_90\n"
        "  tinyserve-viz kernels bench --grid quick -o bench.json"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="every kernel: what it does, its arguments, its cases, its builds")
    listing.epilog = (
        "examples:\n  tinyserve-viz kernels list\n  tinyserve-viz kernels list --json | jq '.kernels[].name'"
    )
    verify = actions.add_parser("verify", help="run every case of every kernel against the oracles")
    verify.add_argument(
        "--backend", default="numpy", metavar="B", help="backend to hold to the oracles (default: numpy)"
    )
    verify.epilog = (
        "examples:\n"
        "  tinyserve-viz kernels verify\n"
        "  tinyserve-viz kernels verify --backend cuda --kernel block_scoring"
    )
    verify.add_argument("--quiet", action="store_true", help="no progress on stderr")
    build = actions.add_parser("build", help="compile the CUDA files; works without a GPU")
    build.epilog = (
        "examples:\n"
        "  tinyserve-viz kernels build\n"
        "  tinyserve-viz kernels build --arch sm_75,sm_80,sm_86,sm_90,sm_100,sm_120 --check"
    )
    build.add_argument("--arch", type=_archs, metavar="A,…", help="e.g. sm_80,sm_90 (default: that of the GPU here)")
    build.add_argument("--fresh", action="store_true", help="compile again what is kept from earlier builds")
    build.add_argument(
        "--check", action="store_true", help="a spilled register is a finding too, like a parameter list that differs"
    )
    bench = actions.add_parser("bench", help="time the kernels on a GPU over the field's shapes")
    kernels_bench.configure(bench)
    for action in (listing, verify, build, bench):
        action.add_argument("--nvcc", metavar="PATH", help="compiler (default: $CUDA_HOME, PATH, then NVIDIA's wheels)")
        action.add_argument("--json", action="store_true", help="print one JSON object")
    for action in (verify, build, bench):
        action.add_argument(
            "--kernel", action="append", default=[], metavar="NAME", help="this kernel only; repeatable"
        )


def run(args: argparse.Namespace) -> int:
    """Do the action; 1 when it found something wrong."""
    return {"list": _list, "verify": _verify, "build": _build, "bench": kernels_bench.run}[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from tinyserve_viz.kernels import KERNELS
    from tinyserve_viz.kernels.cases import CASES

    builds = _kept_builds(args.nvcc)
    rows = [
        {
            "name": kernel.name,
            "summary": kernel.summary,
            "source": kernel.source,
            "decision": kernel.decision,
            "arguments": [asdict(arg) for arg in kernel.args],
            "scalars": [asdict(scalar) for scalar in kernel.scalars],
            "axes": list(kernel.axes),
            "c_parameters": kernel.c_parameters(),
            "launch": {"layout": kernel.launch.layout, "threads": kernel.launch.threads},
            "cases": sum(case.kernel == kernel.name for case in CASES),
            **builds.get(kernel.name, {"cuda": False, "tile_constants": {}, "builds": []}),
        }
        for kernel in KERNELS
    ]
    if args.json:
        print(json.dumps({"schema": 1, "kernels": rows}, ensure_ascii=False))
        return 0
    for row in rows:
        backends = "numpy, cuda" if row["cuda"] else "numpy"
        print(f"{row['name']:<30} {row['cases']:>3} cases  {backends:<12} {row['summary']}")
        if row["builds"] and row["tile_constants"]:
            print("    " + ", ".join(f"{name} {value}" for name, value in row["tile_constants"].items()))
        for build in row["builds"]:
            print(f"    {_resources(build)}")
    return 0


def _kept_builds(option: str | None) -> dict[str, dict[str, Any]]:
    """Per CUDA file its tile constants and the builds of it that are kept and up to date, by architecture."""
    from tinyserve_viz.core.errors import KernelError
    from tinyserve_viz.core.toolkit import find_nvcc
    from tinyserve_viz.kernels import build

    try:
        nvcc = find_nvcc(option)
    except KernelError:
        if option:
            raise
        nvcc = None
    found = {}
    for path in build.sources():
        archs = {kept.stem.removeprefix(f"{path.stem}-").split("-")[0] for kept in build.kept_files(path)}
        kept = [build.kept_build(path, arch, nvcc) for arch in sorted(archs, key=_generation)] if nvcc else []
        builds = [asdict(one) for one in kept if one]
        found[path.stem] = {"cuda": True, "tile_constants": build.tile_constants(path), "builds": builds}
    return found


def _verify(args: argparse.Namespace) -> int:
    from tinyserve_viz.cli.main import UsageError
    from tinyserve_viz.cli.progress import busy
    from tinyserve_viz.kernels.backend import kernel_named
    from tinyserve_viz.kernels.cases import CASES
    from tinyserve_viz.kernels.conformance import table, verify

    if args.nvcc and args.backend != "cuda":
        raise UsageError("tinyserve-viz kernels: --nvcc compiles for --backend cuda; see --help")
    wanted = {kernel_named(name).name for name in args.kernel}
    cases = [case for case in CASES if not wanted or case.kernel in wanted]
    with busy(f"kernels verify, {len(cases)} cases", args.quiet):
        results = verify(_backend(args.backend, args.nvcc), cases)
    failed = any(result.outcome == "FAIL" for result in results)
    if args.json:
        why = {(case.kernel, case.name): case.why for case in cases}
        rows = [asdict(result) | {"why": why[result.kernel, result.case]} for result in results]
        counts = {outcome: sum(r.outcome == outcome for r in results) for outcome in ("OK", "FAIL", "NOT SUPPORTED")}
        print(json.dumps({"schema": 1, "backend": args.backend, "counts": counts, "results": rows}, ensure_ascii=False))
    else:
        print(table(results))
    return FINDING if failed else 0


def _backend(name: str, nvcc: str | None) -> Backend:
    """The backend of that name; on a GPU it compiles with the compiler that was asked for."""
    from tinyserve_viz.core.toolkit import find_nvcc
    from tinyserve_viz.kernels.api import backend_named

    backend = backend_named(name)
    if nvcc and name == "cuda":
        from tinyserve_viz.kernels.cuda_backend import gpu

        gpu().nvcc = find_nvcc(nvcc)
    return backend


def _build(args: argparse.Namespace) -> int:
    from tinyserve_viz.core.errors import KernelError
    from tinyserve_viz.core.resources import data_folder
    from tinyserve_viz.core.toolkit import find_nvcc
    from tinyserve_viz.kernels import build
    from tinyserve_viz.kernels.backend import kernel_named

    names = [kernel_named(name).name for name in args.kernel]
    problems = [problem for problem in build.check_sources() if not names or problem.split(".cu:")[0] in names]
    builds = []
    if build.sources():
        archs = args.arch or [build.device_arch()]
        for result in build.build_all(archs, names, find_nvcc(args.nvcc), fresh=args.fresh):
            if isinstance(result, KernelError):
                problems.append(str(result))
                continue
            if args.check and (spilled := build.spilled_too_much(result)):
                problems.append(spilled)
            builds.append(asdict(result))
            if not args.json:
                print(f"{result.name:<30} {_resources(builds[-1])}", flush=True)
    elif not args.json:
        print(f"no CUDA files in {data_folder('cuda')}")
    if args.json:
        print(json.dumps({"schema": 1, "builds": builds, "problems": problems}))
    for problem in problems:
        print(problem, file=sys.stderr)
    return FINDING if problems else 0


def _resources(build: dict[str, Any]) -> str:
    took = "kept" if build["cached"] else f"{build['seconds']:.1f} s"
    shared, spilled = build["static_shared_bytes"], build["spill_bytes"]
    return f"{build['arch']:<7} {build['registers']:>3} registers, {shared:>6} B shared, {spilled} B spilled, {took}"


def _generation(arch: str) -> int:
    return int("".join(filter(str.isdigit, arch)))


def _archs(text: str) -> list[str]:
    archs = [arch.strip() for arch in text.split(",")]
    if not all(re.fullmatch(r"sm_\d{2,3}[af]?", arch) for arch in archs):
        raise argparse.ArgumentTypeError(f"{text!r} given, expected architectures such as sm_80,sm_90")
    return archs
