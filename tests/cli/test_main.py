"""The front door: help without heavy imports, one line for every error, the exit codes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tinyserve_viz import __version__
from tinyserve_viz.cli import main as front
from tinyserve_viz.cli.main import COMMANDS, main
from tinyserve_viz.core.errors import GpuUnavailable


def test_help_names_every_command_and_version_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out and summary in out for name, _, summary in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tinyserve-viz {__version__}\n"


@pytest.mark.parametrize("name", [name for name, _, _ in COMMANDS])
def test_every_command_has_help_and_imports_nothing_heavy_for_it(name: str) -> None:
    code = (
        "import sys; from tinyserve_viz.cli.main import main; code = main([*sys.argv[1:], '--help']);"
        "heavy = {'numpy', 'msgspec', 'textual', 'matplotlib', 'rich'} & set(sys.modules);"
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"tinyserve-viz {name} – ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "tinyserve-viz: no command; see --help"),
        (["gen"], "tinyserve-viz gen: the following arguments are required: KIND, -o/--output; see --help"),
        (["curve", "none.json"], "tinyserve-viz: none.json: no such file, expected a trace"),
        (["curve", "no\nne"], "tinyserve-viz: no\\x0ane: no such file, expected a trace"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"{expected}\n")


def test_an_unknown_command_is_told_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    known = ", ".join(name for name, _, _ in COMMANDS)
    assert main(["rpelay"]) == 2
    assert main(["--colour"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"tinyserve-viz: unknown command 'rpelay'; commands: {known}; see --help",
        f"tinyserve-viz: unknown option '--colour'; commands: {known}; see --help",
    ]


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (GpuUnavailable("no GPU here"), 3, "tinyserve-viz: no GPU here\n"),
        (KeyboardInterrupt(), 130, "tinyserve-viz: interrupted\n"),
        (BrokenPipeError(), 0, ""),
        (OSError(28, "No space left on device"), 2, "tinyserve-viz: No space left on device\n"),
        (OSError(28, "No space left on device", "out.rec"), 2, "tinyserve-viz: out.rec: No space left on device\n"),
    ],
)
def test_each_way_to_fail_has_its_exit_code(
    raised: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: list[str]) -> int:
        raise raised

    monkeypatch.setattr(front, "_dispatch", fail)
    monkeypatch.setattr(front, "_discard_stdout", lambda: None)
    assert main(["gen"]) == code
    assert capsys.readouterr() == ("", line)


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = f"{sys.executable} -m tinyserve_viz gen poisson --requests 20000 -o - | head -c 10"
    done = subprocess.run(command, shell=True, capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b'{"schema":', b"")


def test_an_ascii_terminal_gets_no_traceback() -> None:
    command = [sys.executable, "-m", "tinyserve_viz", "--help"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=ascii_only, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
