"""The debugger on a real (pseudo) terminal: it opens, and however it ends the terminal is as it was before."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tinyserve_viz.core.resources import data_folder

QUICKSTART = str(data_folder("traces") / "quickstart.json")
LEAVE_ALTERNATE_SCREEN = b"\x1b[?1049l"


class Terminal:
    """A pseudo-terminal with the debugger on it; `seen` is all that it wrote."""

    def __init__(self, scratch: Path, *arguments: str) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        command = [sys.executable, "-m", "tinyserve_viz", "replay", *arguments]
        environment = {**os.environ, "TMPDIR": str(scratch), "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            command, stdin=self.slave, stdout=self.slave, stderr=self.slave, env=environment, start_new_session=True
        )

    def wait_for(self, met: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 30
        while not met():
            assert time.monotonic() < deadline, f"{what} did not come; seen: {self.seen[-500:]!r}"
            if select.select([self.master], [], [], 0.05)[0]:
                self.seen += os.read(self.master, 65_536)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path, QUICKSTART, "--kernels", "none")
    yield opened
    opened.close()


def press_q(terminal: Terminal) -> None:
    os.write(terminal.master, b"q")


def send(number: signal.Signals) -> Callable[[Terminal], None]:
    def end(terminal: Terminal) -> None:
        terminal.process.send_signal(number)

    return end


@pytest.mark.parametrize("end", [press_q, send(signal.SIGTERM), send(signal.SIGHUP)], ids=["q", "SIGTERM", "SIGHUP"])
def test_the_terminal_is_restored_and_the_scratch_recording_removed(
    end: Callable[[Terminal], None], terminal: Terminal, tmp_path: Path
) -> None:
    terminal.wait_for(lambda: b"1 blocks" in terminal.seen, "the first frame")
    assert list(tmp_path.iterdir())
    end(terminal)
    terminal.wait_for(lambda: terminal.process.poll() is not None, "the end")
    terminal.wait_for(lambda: LEAVE_ALTERNATE_SCREEN in terminal.seen, "the ordinary screen")
    assert terminal.process.returncode == 0
    assert termios.tcgetattr(terminal.slave) == terminal.before
    assert not list(tmp_path.iterdir())
