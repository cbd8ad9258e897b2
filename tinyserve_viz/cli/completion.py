"""`--print-completion SHELL`: a completion script for bash, zsh or tcsh, made by shtab from all parsers."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")
_FILES = ("FILE", "TRACE", "RECORDING", "OUT", "SOURCE", "OUT.json", "FILE.svg", "PATH")


def print_completion(arguments: list[str]) -> int:
    """Print the script for the shell that `arguments` name.

    Raises:
        UsageError: none or an unknown one.
        TinyserveError: shtab is not installed.
    """
    from tinyserve_viz.cli.main import PROGRAM, UsageError
    from tinyserve_viz.core.errors import TinyserveError

    if len(arguments) != 1 or arguments[0] not in SHELLS:
        found = " ".join(arguments) or "nothing"
        raise UsageError(f"{PROGRAM}: --print-completion {found}, expected one of {', '.join(SHELLS)}; see --help")
    try:
        import shtab
    except ImportError:
        raise TinyserveError("--print-completion needs shtab: pip install shtab") from None
    print(shtab.complete(whole_parser(shtab.FILE), arguments[0]))
    return 0


def whole_parser(file: Any) -> argparse.ArgumentParser:
    """One parser with every command under it, as shells see them; `file` marks arguments that name files."""
    from tinyserve_viz.cli.main import COMMANDS, PROGRAM, OneLineParser

    parser = OneLineParser(prog=PROGRAM)
    parser.add_argument("--version", action="version", version=PROGRAM)
    parser.add_argument("--print-completion", choices=SHELLS, metavar="SHELL", help="print a completion script")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module_name, summary in COMMANDS:
        one = commands.add_parser(name, help=summary)
        importlib.import_module(module_name).configure(one)
    _mark_files(parser, file)
    return parser


def _mark_files(parser: argparse.ArgumentParser, file: Any) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _mark_files(inner, file)
        elif action.metavar in _FILES:
            marked: Any = action
            marked.complete = file
