"""``pytest --quick``: the tests that neither start a process nor load llama.cpp, held to it.

What does either carries a mark, ``process`` or ``llama``, and is left out. A test without the
mark that does it all the same fails, and its name is what to mark.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MARKS = ("llama", "process")
PROCESS_EVENTS = {
    *("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system", "os.spawn"),
}


class Quick:
    """Leaves out the marked tests and watches the others."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.running = False
        sys.addaudithook(self._watch)

    def _watch(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.running and event in PROCESS_EVENTS:
            self._refuse("process", f"starts a process: {arguments[:1]}")
        elif event == "ctypes.dlopen" and Path(str(arguments[0])).name.startswith(
            ("libllama", "libggml")
        ):
            self._refuse("llama", "loads llama.cpp")

    def _refuse(self, mark: str, what: str) -> None:
        self.broken.append(f"{what}; mark it: @pytest.mark.{mark}")
        pytest.fail(self.broken[-1])

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        marked = [item for item in items if any(item.get_closest_marker(m) for m in MARKS)]
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in set(marked)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        self.running = True
        try:
            return (yield)
        finally:
            self.running = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        """Fail too where the code under test swallowed the refusal."""
        self.broken.clear()
        yield
        if self.broken:
            pytest.fail(self.broken[0])
