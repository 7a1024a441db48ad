"""Ctrl-C and SIGTERM, held back where they could do harm.

Python runs a signal's handler between any two instructions of the main thread, also inside a
callback that C code has called. An exception raised there cannot get through the C code: ctypes
prints and drops it, and the computation goes on with a part missing. So while llama.cpp runs, and
while results and their bookkeeping change together, a signal only sets a flag. It is raised as
KeyboardInterrupt at a safe point: see :meth:`Interrupts.check`.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_SECONDS = 0.1


class Interrupts:
    """A context manager that holds signals back; it may be entered again inside itself.

    Signals that the process ignores, or that end it without asking Python, stay as they are.
    Threads other than the main one never see a signal, so for them nothing happens.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._held = False
        self._replaced: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._permanent = False

    def listen(self) -> None:
        """Let SIGTERM end the process as Ctrl-C does, from now on; for a command line."""
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        self._permanent = True
        self._install()
        usual = sys.unraisablehook

        def again(lost: sys.UnraisableHookArgs) -> None:
            # Python prints and drops what is raised in a destructor: let the signal come again.
            if isinstance(lost.exc_value, KeyboardInterrupt):
                _thread.start_new_thread(_later, ())
            else:
                usual(lost)

        sys.unraisablehook = again

    def ignore(self) -> None:
        """Let no further signal disturb the end of the process."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @property
    def arrived(self) -> bool:
        """Whether a signal waits to be raised."""
        return self._held and _in_main_thread()

    def check(self) -> None:
        """Raise a signal that was held back: call where nothing is half done.

        Raises:
            KeyboardInterrupt: one was.
        """
        if self.arrived:
            self._held = False
            raise KeyboardInterrupt

    def __enter__(self) -> Interrupts:
        if _in_main_thread():
            self._depth += 1
            if self._depth == 1 and not self._permanent:
                try:
                    self._install()
                except BaseException:
                    self._leave()
                    raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not _in_main_thread():
            return
        held = self._leave()
        if held and error is None:
            raise KeyboardInterrupt

    def _leave(self) -> bool:
        """Go one step out; whether that was the last one and a signal came meanwhile."""
        try:
            if self._depth == 1 and not self._permanent:
                self._restore()
        finally:
            self._depth -= 1
        if self._depth:
            return False
        held, self._held = self._held, False
        return held

    def _install(self) -> None:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler) and number not in self._replaced:
                self._replaced[number] = handler
                signal.signal(number, self._receive)

    def _restore(self) -> None:
        while self._replaced:
            number, handler = self._replaced.popitem()
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._depth:
            self._held = True
        else:
            raise KeyboardInterrupt


def _later() -> None:
    time.sleep(_AGAIN_SECONDS)
    _thread.interrupt_main()


def _in_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


#: One for the process, as its handlers are.
interrupts = Interrupts()
