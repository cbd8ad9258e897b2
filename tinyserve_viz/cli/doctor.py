"""`doctor`: what is here, what is not, and the command that mends it. Looks only; changes and installs nothing."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

FINDING = 1
EVERYTHING = "every replay"
COMPILING = "compiling the CUDA kernels"
TUI = "the debugger's screen"
SMALLEST = (60, 16)  # columns and lines below which the debugger shows a message instead


@dataclass(frozen=True, slots=True)
class Check:
    """`needed_for` says who misses it when it is not `ok`; `mend` is the command or the way to it, empty when ok."""

    name: str
    ok: bool
    found: str
    needed_for: str
    mend: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `doctor`."""
    parser.epilog = (
        "examples:\n"
        "  tinyserve-viz doctor\n"
        "  tinyserve-viz doctor --json | jq '.checks[] | select(.ok | not) | .mend'\n"
        "Exit code 1 when something that every replay needs is missing; a missing GPU is no such thing."
    )
    parser.add_argument("--json", action="store_true", help="print the checks as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print every check; 1 when one that every replay needs failed."""
    from tinyserve_viz.cli.doctor_cuda import looks

    checks = [check for look in (*LOOKS, *looks()) for check in look()]
    if args.json:
        print(json.dumps({"schema": 1, "able": _able(checks), "checks": [asdict(check) for check in checks]}))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{'ok     ' if check.ok else 'MISSING'} {check.name:<{width}}  {check.found}")
            if check.mend:
                print(f"        {'':<{width}}  for {check.needed_for}: {check.mend}")
        print(", ".join(f"{what}: {'yes' if able else 'no'}" for what, able in _able(checks).items()))
    return FINDING if any(not check.ok and check.needed_for == EVERYTHING for check in checks) else 0


def _able(checks: list[Check]) -> dict[str, bool]:
    """Each purpose and whether nothing that it needs is missing."""
    purposes = dict.fromkeys(check.needed_for for check in checks)
    return {what: all(check.ok for check in checks if check.needed_for == what) for what in purposes}


def _python() -> Iterator[Check]:
    ok = sys.version_info >= (3, 11)
    version = platform.python_version()
    mend = "" if ok else "install Python 3.11 or newer: uv python install 3.12, or apt-get install python3.12"
    yield Check("Python", ok, f"{version} on {platform.machine()}", EVERYTHING, mend)
    for package in ("numpy", "msgspec", "textual", "plotext", "matplotlib", "platformdirs", "rich"):
        try:
            yield Check(package, True, importlib.metadata.version(package), EVERYTHING)
        except importlib.metadata.PackageNotFoundError:
            yield Check(package, False, "not installed", EVERYTHING, "pip install -e . in the checkout")


def _files() -> Iterator[Check]:
    from tinyserve_viz.core.errors import TinyserveError
    from tinyserve_viz.core.resources import data_folder

    for name in ("traces", "cuda"):
        try:
            folder = data_folder(name)
            yield Check(f"{name}/", True, f"{folder} ({len(list(folder.iterdir()))} files)", EVERYTHING)
        except TinyserveError as error:
            yield Check(f"{name}/", False, str(error), EVERYTHING, "pip install --force-reinstall tinyserve-viz")
    try:
        from platformdirs import user_cache_path
    except ImportError:
        return  # said above
    cache = user_cache_path("tinyserve-viz")
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    ok = os.access(place, os.W_OK)
    yield Check("cache", ok, str(cache), COMPILING, "" if ok else f"export XDG_CACHE_HOME=/tmp/{os.getuid()}-cache")


def _terminal() -> Iterator[Check]:
    tty = sys.stdin.isatty() and sys.stderr.isatty()
    size = shutil.get_terminal_size()
    term = os.environ.get("TERM", "unset")
    found = f"{size.columns}×{size.lines}, TERM={term}, {_colours()}" if tty else "none: replay prints a summary"
    mend = "run it in a terminal; from afar, ssh -t HOST tinyserve-viz replay traces/quickstart.json"
    yield Check("terminal", tty, found, TUI, "" if tty else mend)
    if tty:
        large = size.columns >= SMALLEST[0] and size.lines >= SMALLEST[1]
        asked = f"enlarge it to {SMALLEST[0]}×{SMALLEST[1]} or more (80×24 shows more): printf '\\e[8;24;80t'"
        yield Check("terminal size", large, f"{size.columns}×{size.lines}", TUI, "" if large else asked)
        known = term not in ("unset", "dumb", "")
        yield Check("TERM", known, term, TUI, "" if known else "export TERM=xterm-256color")
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    ok = encoding == "utf8"
    mend = "" if ok else "export LC_ALL=C.UTF-8, or use --ascii"
    yield Check("UTF-8", ok, encoding or "unknown", "the screen's glyphs", mend)


def _colours() -> str:
    """What colours the terminal promises; the glyphs alone carry the meaning without."""
    if os.environ.get("NO_COLOR"):
        return "no colours (NO_COLOR)"
    if os.environ.get("COLORTERM", "") in ("truecolor", "24bit"):
        return "16 million colours"
    return "256 colours" if "256" in os.environ.get("TERM", "") else "16 colours"


LOOKS: tuple[Callable[[], Iterator[Check]], ...] = (_python, _files, _terminal)
