"""What operating systems do differently: the only calls that not all of them have.

Windows has no reading at an offset, locks whole ranges instead of advising, and neither renames
nor removes an open file. Everything else in the package may be called anywhere; a test says so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:
    msvcrt = None  # type: ignore[assignment]

#: Whether an open file can be renamed and removed.
MOVES_OPEN_FILES = os.name != "nt"
#: A byte that no file reaches and every file system has, since Windows keeps others from what is
#: locked.
_LOCKED_BYTE = 1 << 43
_seeking = threading.Lock()


def pread(descriptor: int, length: int, offset: int) -> bytes:
    """Read up to ``length`` bytes at an offset; the file's position may move.

    Raises:
        OSError: the file cannot be read.
    """
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, length)


def try_lock(descriptor: int) -> bool:
    """Lock a file until it is closed; False if another process holds the lock.

    File systems without locks (some network folders) count as locked.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(descriptor, 0, os.SEEK_SET)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def reserve(descriptor: int, size: int) -> None:
    """Make a file ``size`` bytes long, with room on the disk where the system can promise it.

    Raises:
        OSError: the disk is too full.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder outlast a power cut, where folders can be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cores() -> int:
    """Processors that this process may use, at least one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, with all that it started, where there are sessions."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def was_killed(status: int) -> bool:
    """Whether a child process ended by SIGKILL, as the kernel ends one when memory is short."""
    return hasattr(signal, "SIGKILL") and status == -signal.SIGKILL
