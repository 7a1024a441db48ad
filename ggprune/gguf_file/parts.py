"""The temporary file beside a target: one writer at a time, and never anyone's data emptied."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from ggprune import system
from ggprune.errors import OutputError
from ggprune.util import Closing

FileId = tuple[int, int]


def part_path(path: Path) -> Path:
    """Name the temporary file beside ``path``."""
    return path.with_name(path.name + ".part")


class PartFile(Closing):
    """``NAME.part``, empty and locked; within a ``with`` block it is placed or removed.

    The lock is held until then. So no second run can take hold of a part that is complete but not
    renamed yet, and none removes a part of ours.

    Args:
        target: the final name.
        protected: files (device, inode) that must not be emptied: the source.

    Raises:
        OutputError: another run writes it, or it is the source or not a regular file.
        OSError: the folder cannot be written to.
    """

    def __init__(self, target: Path, protected: Collection[FileId] = ()) -> None:
        self.target = target
        self.path = part_path(target)
        held = _reserved.get(self.path.absolute(), -1)
        # Once placed, what is held is the result.
        self._is_reserved = held >= 0 and _is_at(held, self.path)
        if self._is_reserved:
            # A duplicate shares the lock.
            self.descriptor = os.dup(held)
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            os.ftruncate(self.descriptor, 0)
        else:
            self.descriptor = _open_alone(self.path, protected)
        self._placed = False

    def close(self) -> None:
        """Remove what was not placed, and let go of the lock."""
        if self.descriptor < 0:
            return
        ours = not (self._placed or self._is_reserved) and _is_at(self.descriptor, self.path)
        if not system.MOVES_OPEN_FILES:
            os.close(self.descriptor)
        if ours:
            # Removed while it is still locked where that can be: later it could be another run's.
            with contextlib.suppress(OSError):
                self.path.unlink()
        if system.MOVES_OPEN_FILES:
            os.close(self.descriptor)
        self.descriptor = -1

    def place(self) -> None:
        """Give the file its final name."""
        if system.MOVES_OPEN_FILES:
            os.replace(self.path, self.target)
        else:
            os.close(self.descriptor)
            self.descriptor = -1
            try:
                os.replace(self.path, self.target)
            except OSError:
                self.path.unlink(missing_ok=True)
                raise
        self._placed = True


#: Parts that this process holds, by path.
_reserved: dict[Path, int] = {}


@contextlib.contextmanager
def reserved(target: Path) -> Iterator[None]:
    """Hold a target's part for the whole of a long run, so that a second run learns of it at once.

    Parts of the same target that are opened within the block share the lock.

    Raises:
        OutputError: another run writes it, or the folder cannot be written to.
    """
    if not system.MOVES_OPEN_FILES:
        yield
        return
    try:
        part = PartFile(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror}") from error
    with part:
        path = part.path.absolute()
        if path in _reserved:
            yield
            return
        _reserved[path] = part.descriptor
        try:
            yield
        finally:
            del _reserved[path]


def _open_alone(part: Path, protected: Collection[FileId]) -> int:
    """Open and lock the part; a stale one of a killed run is emptied and used again."""
    flags = os.O_WRONLY | os.O_CREAT
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
        flags |= getattr(os, name, 0)
    while True:
        descriptor = os.open(part, flags, 0o666)
        try:
            if _prepare(descriptor, part, protected):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _prepare(descriptor: int, part: Path, protected: Collection[FileId]) -> bool:
    """Make an opened part ours; False if it has to be opened again."""
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) in protected:
        raise OutputError(
            f"{part}: the temporary file would be the source itself",
            remedy="Choose another output.",
        )
    if not stat.S_ISREG(status.st_mode):
        raise OutputError(f"{part}: is not a regular file", remedy="Remove it.")
    _lock(descriptor, part)
    if not _is_at(descriptor, part):
        # Between opening and locking, the run that had it renamed it: this is its result now.
        return False
    if os.fstat(descriptor).st_nlink > 1:
        # Emptying it would empty the file that it is a second name of.
        part.unlink()
        return False
    os.ftruncate(descriptor, 0)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    mine = os.fstat(descriptor)
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _lock(descriptor: int, part: Path) -> None:
    if not system.try_lock(descriptor):
        raise OutputError(
            f"{part}: another ggprune is writing this file",
            remedy="Wait for it, or choose another output.",
        )
