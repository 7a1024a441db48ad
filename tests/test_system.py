"""What not all operating systems have is asked of one module, which has an answer without it."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ggprune import system
from ggprune.errors import OutputError
from ggprune.gguf_file.parts import PartFile
from ggprune.gguf_file.writing import write_text
from tests.support.layers import PACKAGE, tree

#: Absent from Windows or macOS (Python's documentation, "Availability").
POSIX_ONLY = {
    "os": {
        *("chown", "copy_file_range", "fork", "forkpty", "getegid", "geteuid", "getgid"),
        *("getloadavg", "getuid", "killpg", "lockf", "mkfifo", "posix_fadvise"),
        *("posix_fallocate", "pread", "preadv", "pwrite", "pwritev", "sched_getaffinity"),
        *("sched_setaffinity", "sendfile", "setsid", "statvfs", "sysconf", "uname", "wait3"),
        *("SIGKILL", "WNOHANG"),
    },
    "signal": {
        *("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGPIPE"),
        *("alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigwait"),
    },
    "time": {"tzset"},
}
MODULES = {"fcntl", "grp", "msvcrt", "pwd", "resource", "select", "termios", "winreg"}
#: Asked for with hasattr before they are used.
GUARDED = {("gguf_file/copying.py", "copy_file_range"), ("gguf_file/copying.py", "sendfile")}


def platform_calls(path: Path) -> list[str]:
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in POSIX_ONLY.get(node.value.id, ()):
                found.append(node.attr)
        elif isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in {*POSIX_ONLY, *MODULES}:
            names = POSIX_ONLY.get(node.module or "", set())
            found.extend(a.name for a in node.names if node.module in MODULES or a.name in names)
    return found


def test_only_one_module_asks_for_what_not_all_systems_have() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in PACKAGE.rglob("*.py")
        for name in platform_calls(path)
        if path.name != "system.py"
    }
    assert found - GUARDED == set()


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what Windows does not have."""
    for name in ("pread", "posix_fallocate", "sched_getaffinity", "sendfile", "copy_file_range"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.delattr(signal, "SIGKILL", raising=False)
    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setattr(system, "MOVES_OPEN_FILES", False)


@pytest.mark.usefixtures("windows")
def test_reading_at_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(range(100)))
    with open(path, "rb") as stream:
        assert system.pread(stream.fileno(), 5, 10) == bytes(range(10, 15))
        assert system.pread(stream.fileno(), 50, 90) == bytes(range(90, 100))
        assert system.pread(stream.fileno(), 5, 200) == b""


@pytest.mark.usefixtures("windows")
def test_room_cores_and_children(tmp_path: Path) -> None:
    with open(tmp_path / "f", "wb") as stream:
        system.reserve(stream.fileno(), 1000)
    assert (tmp_path / "f").stat().st_size == 1000
    assert system.cores() >= 1
    assert not system.was_killed(-9)


@pytest.mark.usefixtures("windows")
def test_a_file_is_closed_before_it_is_renamed_or_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: set[int] = set()
    original_open, original_close = os.open, os.close

    def opened(*arguments: object, **named: object) -> int:
        descriptor = original_open(*arguments, **named)  # type: ignore[arg-type]
        held.add(descriptor)
        return descriptor

    def closed(descriptor: int) -> None:
        held.discard(descriptor)
        original_close(descriptor)

    def only_closed(name: str, path: object) -> None:
        for descriptor in held:
            same = os.fstat(descriptor).st_ino == os.stat(str(path)).st_ino
            assert not same, f"{name} of an open file"

    replace, unlink = os.replace, Path.unlink
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "close", closed)
    monkeypatch.setattr(os, "replace", lambda a, b: (only_closed("rename", a), replace(a, b)))
    monkeypatch.setattr(
        Path, "unlink", lambda self, **named: (only_closed("removal", self), unlink(self, **named))
    )
    write_text(tmp_path / "kept", "text")
    assert (tmp_path / "kept").read_text() == "text"
    with PartFile(tmp_path / "dropped") as part:
        assert part.path.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


@pytest.mark.usefixtures("windows")
def test_a_rename_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("the target is open elsewhere")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError):
        write_text(tmp_path / "f", "text")
    assert list(tmp_path.iterdir()) == []


class Locks:
    """Locks as Windows has them: of ranges, at the position of the descriptor."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.held: set[tuple[int, int]] = set()

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        place = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
        assert (mode, count) == (self.LK_NBLCK, 1)
        assert place[1] > 1 << 40, "the lock must not cover the file's own bytes"
        if place in self.held:
            raise PermissionError("locked")
        self.held.add(place)


@pytest.mark.usefixtures("windows")
def test_two_writers_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "msvcrt", Locks())
    with (
        PartFile(tmp_path / "f"),
        pytest.raises(OutputError, match="another ggprune"),
        PartFile(tmp_path / "f"),
    ):
        pass


@pytest.mark.process
def test_a_model_is_pruned_without_the_missing_functions(trained: Path, tmp_path: Path) -> None:
    """The rewrite of a whole file in a process that lacks them, byte for byte."""
    code = """
import os, signal, sys
for name in ("pread", "posix_fallocate", "sched_getaffinity", "sendfile", "copy_file_range"):
    if hasattr(os, name):
        delattr(os, name)
del signal.SIGKILL
sys.modules["fcntl"] = None
from pathlib import Path
from ggprune import system
system.MOVES_OPEN_FILES = False
from ggprune.gguf_file import GgufModel, KeyEdits, lay_out, whole, write_files
source = GgufModel(Path(sys.argv[1]))
target = Path(sys.argv[2])
write_files(lay_out(target, source, KeyEdits(), [whole(t) for t in source.tensors]), source)
"""
    target = tmp_path / "copy.gguf"
    command = [sys.executable, "-c", code, str(trained), str(target)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert target.stat().st_size == trained.stat().st_size
