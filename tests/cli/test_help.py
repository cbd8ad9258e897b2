"""Help leads with examples, and shells complete every command, option and choice."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest

from tinyserve_viz.cli.completion import SHELLS, whole_parser
from tinyserve_viz.cli.main import COMMANDS, OneLineParser, main


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield inner
                yield from parsers(inner)


EVERY = list(parsers(whole_parser({})))


@pytest.mark.parametrize("parser", EVERY, ids=lambda parser: parser.prog)
def test_help_shows_examples_before_the_usage(parser: argparse.ArgumentParser) -> None:
    text = parser.format_help()
    head, _, tail = text.partition("usage: ")
    assert "examples:\n  " in head
    assert tail.startswith(parser.prog)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("parser", EVERY, ids=lambda parser: parser.prog)
def test_every_example_can_be_parsed_as_it_stands(parser: argparse.ArgumentParser) -> None:
    head = parser.format_help().partition("usage: ")[0].replace("\\\n", " ")
    found = 0
    for line in head.splitlines():
        command = line.strip()
        if not command.startswith("tinyserve-viz ") or not line.startswith("  "):
            continue
        words = shlex.split(re.split(r"\s+#|\s+\(|\s\|\s|\s>\s", command)[0])
        whole_parser({}).parse_args(words[1:])  # raises UsageError where an option is unknown
        found += 1
    assert found


def test_notes_after_the_examples_stand_at_the_end() -> None:
    parser = OneLineParser(prog="p", description="p – does it")
    parser.epilog = "examples:\n  p a\n  p b\nNote well."
    text = parser.format_help()
    assert text.startswith("p – does it\n\nexamples:\n  p a\n  p b\n\nusage: p [-h]\n")
    assert text.endswith("\n\nNote well.\n")
    parser.epilog = "Only a note."
    assert parser.format_help().endswith("\n\nOnly a note.\n")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_script_names_every_command_and_is_one_that_its_shell_reads(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name, _, _ in COMMANDS)
    assert "--num-blocks" in script or "num-blocks" in script
    found = which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "completion"
    path.write_text(script)
    done = subprocess.run([found, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_completes_commands_options_and_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bash = which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    assert main(["--print-completion", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)

    def completed(line: str) -> list[str]:
        words = line.split(" ")
        run = (
            f"source {script}; COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}; "
            "_shtab_tinyserve_viz; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        return subprocess.run([bash, "-c", run], capture_output=True, text=True, check=True).stdout.split()

    assert completed("tinyserve-viz pl") == ["plot"]
    assert "--num-blocks" in completed("tinyserve-viz replay --num")
    assert completed("tinyserve-viz replay --kernels d") == ["decisions"]


def test_an_unknown_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", "fish"]) == 2
    wanted = "tinyserve-viz: --print-completion fish, expected one of bash, zsh, tcsh; see --help\n"
    assert capsys.readouterr() == ("", wanted)
    assert main(["--print-completion"]) == 2


def test_without_shtab_the_way_to_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert capsys.readouterr().err == "tinyserve-viz: --print-completion needs shtab: pip install shtab\n"
