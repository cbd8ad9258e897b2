"""An interrupt that Python drops is raised at the next question; one that it does not, at once."""

from __future__ import annotations

import signal
import threading

import pytest

from tinyserve_viz.cli.interrupts import kept_interrupts


class Finalized:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_lost_in_a_finalizer_comes_at_the_next_question() -> None:
    with kept_interrupts() as raise_dropped:
        raise_dropped()
        thing: Finalized | None = Finalized()
        del thing  # Python prints "Exception ignored in" and goes on
        with pytest.raises(KeyboardInterrupt):
            raise_dropped()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_raises_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), kept_interrupts():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_and_another_handler_are_left_alone() -> None:
    found = []

    def ask() -> None:
        with kept_interrupts() as raise_dropped:
            found.append(raise_dropped())  # type: ignore[func-returns-value]

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [None]
    own = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with kept_interrupts() as raise_dropped:
            raise_dropped()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, own)
