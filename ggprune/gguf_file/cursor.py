"""Reading an untrusted header: a small window over the file, every length checked first."""

from __future__ import annotations

import struct
from pathlib import Path

from ggprune.errors import FormatError, InputError
from ggprune.gguf_file.types import SCALARS, ValueType
from ggprune.gguf_file.values import ARRAY_HEAD
from ggprune.system import pread

WINDOW = 1 << 20
#: The largest header read. Real ones stay under 32 MiB (a 262k-token vocabulary has 15); a hostile
#: one of this size, all empty strings, is passed over in about a second.
MAX_HEADER = 128 << 20
#: Arrays within arrays: llama.cpp writes none, the specification sets no limit.
MAX_NESTING = 64
MAX_ARRAYS = 1 << 18
#: All names together are held in memory, some of them at four bytes a character.
MAX_NAMES = 16 << 20
_SHOWN = 80

_LENGTH = struct.Struct("<Q").unpack_from


def quoted(name: str) -> str:
    """Show a name in a message: escaped, and not at any length."""
    return repr(name) if len(name) <= _SHOWN else repr(name[:_SHOWN]) + "…"


class Cursor:
    """A forward-only reader of the header that never holds more than a window of it.

    Args:
        size: its size in bytes; nothing is read or believed beyond it.
    """

    def __init__(self, descriptor: int, size: int, path: Path) -> None:
        self._descriptor = descriptor
        self._limit = min(size, MAX_HEADER)
        self._path = path
        self._buffer = b""
        self._arrays = 0
        self._names = 0
        self._start = 0
        self._position = 0

    @property
    def offset(self) -> int:
        """Where in the file the next byte comes from."""
        return self._start + self._position

    def bad(self, what: str) -> FormatError:
        """Make the error for a header that is wrong at (about) this place."""
        return FormatError(
            f"{self._path}: damaged GGUF header near byte {self.offset}: {what}",
            remedy="Download or convert the file again.",
        )

    def need(self, length: int, what: str) -> None:
        """Raise unless ``length`` more bytes can follow in this file."""
        if length < 0 or length > self._limit - self.offset:
            raise self.bad(f"{what} needs {length} bytes, which the file does not have")

    def take(self, length: int, what: str) -> bytes:
        """Read the next ``length`` bytes."""
        self.need(length, what)
        if self._position + length > len(self._buffer):
            self._fill(max(length, WINDOW))
            if length > len(self._buffer):
                raise self.bad(f"the file ended within {what}")
        self._position += length
        return self._buffer[self._position - length : self._position]

    def skip(self, length: int, what: str) -> None:
        """Pass over ``length`` bytes without reading them."""
        self.need(length, what)
        self._position += length

    def number(self, value_type: ValueType, what: str) -> int:
        """Read the next scalar, of an integer type."""
        scalar = SCALARS[value_type]
        return int(scalar.unpack(self.take(scalar.size, what))[0])

    def name(self, what: str, limit: int) -> str:
        """Read the next string, as a key or tensor name (any bytes, losslessly)."""
        length = self.number(ValueType.UINT64, what)
        self._names += length
        if length > limit or self._names > MAX_NAMES:
            raise self.bad(f"{what} is {length} bytes long, at most {limit} can be")
        return self.take(length, what).decode("utf-8", "surrogateescape")

    def skip_value(self, value_type: int, what: str) -> None:
        """Pass over one value of any type. Nested arrays are walked with a list, not recursion."""
        pending = [(value_type, 1)]
        while pending:
            kind, count = pending.pop()
            if kind in SCALARS:
                self.skip(count * SCALARS[kind].size, what)
            elif kind == ValueType.STRING:
                self._skip_strings(count, what)
            elif kind == ValueType.ARRAY:
                if count == 0:
                    continue
                inner, length = ARRAY_HEAD.unpack(self.take(ARRAY_HEAD.size, what))
                self._arrays += 1
                pending += [(kind, count - 1), (inner, length)]
                if len(pending) > MAX_NESTING + 1:
                    raise self.bad(f"{what} nests arrays more than {MAX_NESTING} deep")
                if self._arrays > MAX_ARRAYS:
                    raise self.bad(f"{what} has more than {MAX_ARRAYS} arrays")
            else:
                raise self.bad(f"{what} has the unknown value type {kind}")

    def _skip_strings(self, count: int, what: str) -> None:
        """Pass over ``count`` strings: the one hot loop of opening a file (a vocabulary)."""
        self.need(count * 8, what)
        while count:
            if self._position + 8 > len(self._buffer):
                self.need(8, what)
                self._fill(WINDOW)
                if len(self._buffer) < 8:
                    raise self.bad(f"the file ended within {what}")
            buffer, position, last = self._buffer, self._position, len(self._buffer) - 8
            while count and position <= last:
                position += 8 + _LENGTH(buffer, position)[0]
                count -= 1
            self._position = position
            self.need(0, what)

    def _fill(self, length: int) -> None:
        """Move the window so that it starts at the present offset."""
        start = self.offset
        try:
            self._buffer = pread(self._descriptor, min(length, self._limit - start), start)
        except OSError as error:
            raise InputError(f"{self._path}: cannot be read: {error.strerror}") from error
        self._start, self._position = start, 0
        if not self._buffer and length:
            raise self.bad("the file ended")
