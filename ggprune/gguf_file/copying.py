"""Moving byte ranges between files without bringing them into this process."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from ggprune.errors import FormatError, InputError
from ggprune.system import pread
from ggprune.types import Advance

#: Bytes asked of the kernel at once: large enough to be fast, small enough for progress and Ctrl-C.
CHUNK = 64 << 20
_BUFFER = 4 << 20
_PAGE = 4096
#: The target is full, whatever the method. Any other complaint of the kernel (two file systems, an
#: old kernel, a network folder) is answered with the next method; the last one, which reads and
#: writes apart, tells which of the two files is at fault.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class RangeCopier:
    """Appends byte ranges of source files to a target file, the fastest way that works.

    ``copy_file_range`` (it shares extents on file systems that can), ``sendfile``, or a plain
    buffer. A method that fails once is not tried again.

    Args:
        target: descriptor of the target, at the position to write to.
    """

    def __init__(self, target: int, progress: Advance) -> None:
        self._target = target
        self._progress = progress
        self._methods: list[Callable[[int, int, int], int]] = [
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
            InputError: the source cannot be read.
            OSError: the target cannot take them.
        """
        while length:
            # From a page's start on, so that extents can be shared.
            done = self._some(source, offset, min(length, -offset % _PAGE or CHUNK), name)
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
        if data:
            _write_all(self._target, data)
            self._progress(len(data))

    def _some(self, source: int, offset: int, length: int, name: object) -> int:
        for method in self._in_order(offset):
            try:
                done = method(source, offset, length)
            except OSError as error:
                if error.errno in _FULL:
                    raise
                done = 0
            # 0 should mean the end of the source, but some file systems answer it for "cannot".
            if done:
                return done
            self._methods.remove(method)
        return self._buffered(source, offset, min(length, _BUFFER), name)

    def _in_order(self, offset: int) -> list[Callable[[int, int, int], int]]:
        """List the ways that still work, the fastest for this place first.

        ``copy_file_range`` shares extents or moves whole pages where source and target lie alike
        within a page. Where they do not (most slices), each page costs it two partial writes, and
        ``sendfile`` takes two thirds of the time.
        """
        position = os.lseek(self._target, 0, os.SEEK_CUR)
        alike = (position - offset) % _PAGE == 0
        return list(self._methods if alike else reversed(self._methods))

    def _buffered(self, source: int, offset: int, length: int, name: object) -> int:
        try:
            data = pread(source, length, offset)
        except OSError as error:
            raise InputError(
                f"{name}: cannot be read at byte {offset}: {error.strerror}",
                remedy="Check the disk (dmesg) or the network folder that holds this file.",
            ) from error
        _write_all(self._target, data)
        return len(data)

    def _copy_file_range(self, source: int, offset: int, length: int) -> int:
        return os.copy_file_range(source, self._target, length, offset)

    def _sendfile(self, source: int, offset: int, length: int) -> int:
        return os.sendfile(self._target, source, offset, length)


def _write_all(target: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
