"""Signals: held back while llama.cpp runs, raised where nothing is half done."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from ggprune.interrupts import Interrupts

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = [signal.signal(number, signal.default_int_handler) for number in NUMBERS]
    yield
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_raised_at_the_end(number: signal.Signals) -> None:
    interrupts, reached = Interrupts(), []
    with pytest.raises(KeyboardInterrupt), interrupts:
        with interrupts:
            signal.raise_signal(number)
            reached.append("inner")
        signal.raise_signal(number)
        reached.append("outer")
    assert reached == ["inner", "outer"]
    assert signal.getsignal(number) is signal.default_int_handler
    with interrupts:
        assert not interrupts.arrived, "it was raised once"


def test_a_safe_point_raises_it_earlier() -> None:
    interrupts = Interrupts()
    with interrupts:
        interrupts.check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        interrupts.check()


def test_another_error_is_not_hidden() -> None:
    interrupts = Interrupts()
    with pytest.raises(ZeroDivisionError), interrupts:
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError
    with interrupts:
        interrupts.check()


def test_ignored_signals_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert not interrupts.arrived
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_are_let_alone() -> None:
    interrupts, found = Interrupts(), []

    def work() -> None:
        with interrupts:
            found.append(interrupts.arrived)
            interrupts.check()
        found.append("done")

    with pytest.raises(KeyboardInterrupt), interrupts:
        signal.raise_signal(signal.SIGINT)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == [False, "done"]


_LOST = """
import os, signal, time
from ggprune.interrupts import interrupts
interrupts.listen()
class Lost:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
try:
    Lost()
    time.sleep(5)
except KeyboardInterrupt:
    print("raised")
"""


@pytest.mark.process
def test_a_signal_lost_in_a_destructor_comes_again() -> None:
    result = subprocess.run([sys.executable, "-c", _LOST], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("raised\n", "")


@pytest.mark.llama
@pytest.mark.process
def test_commands_at_random_moments() -> None:
    """A few; ``make interrupts`` tries a hundred."""
    command = [sys.executable, "-m", "tests.support.interrupts", "2", "0", "qwen3moe"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
