"""`tinyserve-viz COMMAND …`: finds the command, imports only its module, and turns errors into one line and a code.

Exit codes: 0 ok · 1 finding · 2 usage or bad input · 3 GPU asked for and absent · 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from tinyserve_viz import __version__
from tinyserve_viz.core.errors import TinyserveError

PROGRAM = "tinyserve-viz"
USAGE_ERROR = 2
INTERRUPTED = 130

# (name, module with configure(parser) and run(args) -> int, what it does). Modules import what is heavy inside run.
COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("replay", "tinyserve_viz.cli.replay", "replay a trace through the allocator, or open a recording"),
    ("gen", "tinyserve_viz.cli.gen", "generate a seeded synthetic trace"),
    ("import", "tinyserve_viz.cli.import_", "convert a trace of any known format to our JSON"),
    ("doctor", "tinyserve_viz.cli.doctor", "say what is here, what is missing, and what mends it"),
    ("compare", "tinyserve_viz.cli.compare", "find the first decision in which two servers differ"),
    ("export", "tinyserve_viz.cli.export", "write tables, events, a Perfetto trace or the requests of a recording"),
    ("check", "tinyserve_viz.cli.check", "hold a replay to assertions and to a kept digest, for CI"),
    ("plot", "tinyserve_viz.cli.plot", "draw a recording or a bench file: PNG, SVG, PDF, HTML or text"),
    ("curve", "tinyserve_viz.cli.curve", "prefix-cache hit rates of a trace by capacity and policy"),
    ("claims", "tinyserve_viz.cli.claims", "published claims beside what is counted and measured here"),
    ("kernels", "tinyserve_viz.cli.kernels", "list, verify, build or time the kernel set"),
    ("memcheck", "tinyserve_viz.cli.memcheck", "run the kernels' cases under compute-sanitizer"),
    ("profile", "tinyserve_viz.cli.profile", "counters of a kernel at the bench's shapes, by Nsight Compute"),
)


class UsageError(TinyserveError):
    """The command line cannot be understood; the message starts with the program and ends with `see --help`."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose help leads with examples, and whose errors are one line, raised as UsageError.

    An epilog starts with `examples:`; what follows them unindented stands at the end of the help.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def format_help(self) -> str:
        """What it does, examples, usage, arguments, notes."""
        examples, notes = _examples_first(self.epilog or "")
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        formatter.add_text(examples)
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        formatter.add_text(notes)
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        """Raise `message` as a UsageError."""
        raise UsageError(f"{self.prog}: {message}; see --help")


def _examples_first(epilog: str) -> tuple[str, str]:
    lines = epilog.splitlines()
    if not lines or not lines[0].startswith("example"):
        return "", epilog
    end = next((place for place, line in enumerate(lines[1:], 1) if line and not line.startswith(" ")), len(lines))
    return "\n".join(lines[:end]).rstrip(), "\n".join(lines[end:])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; everything that a user can cause ends here as one line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal gets ? for what it cannot show
            stream.reconfigure(errors="replace")
    try:
        code = _dispatch(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except UsageError as error:
        return _complain(str(error), error.exit_code)
    except TinyserveError as error:
        return _complain(f"{PROGRAM}: {error}", error.exit_code)
    except KeyboardInterrupt:
        return _complain(f"{PROGRAM}: interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has seen enough
        _discard_stdout()
        return 0
    except OSError as error:
        _discard_stdout()
        place = f"{error.filename}: " if error.filename else ""
        return _complain(f"{PROGRAM}: {place}{error.strerror or error}", USAGE_ERROR)
    return code


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        raise UsageError(f"{PROGRAM}: no command; see --help")
    first = arguments[0]
    if first in ("-h", "--help"):
        print(_help())
        return 0
    if first == "--version":
        print(f"{PROGRAM} {__version__}")
        return 0
    if first == "--print-completion":
        from tinyserve_viz.cli.completion import print_completion

        return print_completion(arguments[1:])
    for name, module_name, summary in COMMANDS:
        if name == first:
            module = importlib.import_module(module_name)
            parser = OneLineParser(prog=f"{PROGRAM} {name}", description=f"{PROGRAM} {name} – {summary}")
            module.configure(parser)
            try:
                parsed = parser.parse_args(arguments[1:])
            except SystemExit as stop:  # --help
                return stop.code if isinstance(stop.code, int) else 0
            code: int = module.run(parsed)
            return code
    kind = "option" if first.startswith("-") else "command"
    known = ", ".join(name for name, _, _ in COMMANDS)
    raise UsageError(f"{PROGRAM}: unknown {kind} {first!r}; commands: {known}; see --help")


def _help() -> str:
    width = max(len(name) for name, _, _ in COMMANDS)
    lines = [
        f"{PROGRAM} – time-travel debugger for the KV cache of an LLM server",
        "",
        "examples:",
        f"  {PROGRAM} replay traces/quickstart.json                       # the debugger, or off a terminal a summary",
        f"  {PROGRAM} replay azure.csv --num-blocks 4096 --record run.rec",
        f"  {PROGRAM} plot run.rec --kind memory -o memory.png",
        f"  {PROGRAM} compare azure.csv --eviction lru,lfu,belady --num-blocks 4096",
        f"  source <({PROGRAM} --print-completion bash)                   # or zsh, tcsh",
        "",
        f"usage: {PROGRAM} COMMAND …    ({PROGRAM} COMMAND --help says more)",
        "",
        *(f"  {name:<{width}}  {summary}" for name, _, summary in COMMANDS),
        "",
        "exit codes: 0 ok, 1 finding, 2 usage or bad input, 3 GPU asked for and absent, 130 interrupted",
    ]
    return "\n".join(lines)


def _complain(message: str, code: int) -> int:
    line = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in message)
    if sys.stderr is not None:
        print(line, file=sys.stderr)
    return code


def _discard_stdout() -> None:
    """Send what is still buffered for stdout nowhere, so that leaving does not fail on it again."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        return  # stdout is no file: a test's buffer, or closed
