"""Moving byte ranges between files without bringing them into this process."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from ggprune.errors import FormatError

#: Bytes asked of the kernel at once: large enough to be fast, small enough for progress and Ctrl-C.
CHUNK = 64 << 20
_BUFFER = 4 << 20
#: What the kernel answers when it cannot copy between two files (other file systems, old kernels).
_NOT_HERE = {
    errno.EXDEV,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.ENOTSOCK,
}

Progress = Callable[[int], object]


class RangeCopier:
    """Appends byte ranges of source files to a target file, the fastest way that works.

    ``copy_file_range`` first (it shares extents on file systems that can), then ``sendfile``,
    then a plain buffer. A method that fails once on this pair of file systems is not tried again.

    Args:
        target: descriptor of the target, at the position to write to.
        progress: called with the number of bytes just written.
    """

    def __init__(self, target: int, progress: Progress) -> None:
        self._target = target
        self._progress = progress
        self._methods = [
            method
            for name, method in (
                ("copy_file_range", self._copy_file_range),
                ("sendfile", self._sendfile),
            )
            if hasattr(os, name)
        ]

    def copy(self, source: int, offset: int, length: int, name: object) -> None:
        """Append ``length`` bytes of ``source`` from ``offset``.

        Raises:
            FormatError: the source ended early: it shrank since its header was read.
            OSError: the target cannot take them.
        """
        while length:
            done = self._some(source, offset, min(length, CHUNK))
            if done == 0:
                raise FormatError(
                    f"{name}: ends at byte {offset}, expected {length} more: "
                    "it became shorter while being read",
                    remedy="Wait until whatever writes this file has finished.",
                )
            offset += done
            length -= done
            self._progress(done)

    def write(self, data: bytes | bytearray) -> None:
        """Append bytes of our own."""
        view = memoryview(data)
        while view:
            done = os.write(self._target, view)
            view = view[done:]
            self._progress(done)

    def _some(self, source: int, offset: int, length: int) -> int:
        while self._methods:
            try:
                return self._methods[0](source, offset, length)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                self._methods.pop(0)
        data = os.pread(source, min(length, _BUFFER), offset)
        view = memoryview(data)
        while view:
            view = view[os.write(self._target, view) :]
        return len(data)

    def _copy_file_range(self, source: int, offset: int, length: int) -> int:
        return os.copy_file_range(source, self._target, length, offset)

    def _sendfile(self, source: int, offset: int, length: int) -> int:
        return os.sendfile(self._target, source, offset, length)
