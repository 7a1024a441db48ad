"""One GGUF file: its header, checked against the file before anything is believed.

Arrays are passed over, not read, so that a file with a vocabulary of 262,144 tokens opens in a
fraction of a second; a value is decoded when it is asked for.
"""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggprune.errors import FormatError, InputError
from ggprune.gguf_file.cursor import Cursor, quoted
from ggprune.gguf_file.strangers import not_gguf
from ggprune.gguf_file.types import TENSOR_TYPES, ValueType
from ggprune.gguf_file.values import decode
from ggprune.system import pread
from ggprune.util import Closing

MAGIC = b"GGUF"
#: Bytes that tell what a file is that is no GGUF file.
_LOOK = 1024
DEFAULT_ALIGNMENT = 32
#: Mixtral's first files, with a tensor for each expert, had thousands; nothing comes near these.
_MAX_TENSORS = 1 << 16
_MAX_KEYS = 1 << 16
_MAX_KEY = (1 << 16) - 1
#: llama.cpp refuses names of 64 bytes (GGML_MAX_NAME) and more.
_MAX_TENSOR_NAME = 63
_MAX_DIMENSIONS = 4
_SMALLEST_TENSOR_INFO = 24
_SMALLEST_KEY_VALUE = 13


@dataclass(frozen=True, slots=True)
class KeyValue:
    """Where one metadata pair lies in its file: ``start`` to ``end``, its value from ``value``."""

    key: str
    type: int
    start: int
    value: int
    end: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file.

    ``shape`` is in ggml's order (``ne``: the row length first). ``offset`` is absolute in its
    file, ``nbytes`` the size of its data, ``shard`` the index of its file within the model.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    nbytes: int
    shard: int = 0


def padded(length: int, alignment: int) -> int:
    """``length`` rounded up to the next multiple of ``alignment``."""
    return -(-length // alignment) * alignment


class GgufFile(Closing):
    """An open GGUF file, never written to.

    Attributes:
        size: bytes.
        version: 2 or 3.
        alignment: of tensor data, from ``general.alignment``.
        keys: metadata in the file's order.
        tensors: in the file's order.
        header_end: where the header ends; padding follows.
        data_offset: where tensor data starts.

    Raises:
        InputError: the path is missing, unreadable or not a regular file.
        FormatError: it is not a GGUF file that llama.cpp would accept.
    """

    def __init__(self, path: str | os.PathLike[str], *, shard: int = 0) -> None:
        self.path = Path(path)
        self._descriptor = _open_regular(self.path)
        try:
            status = os.fstat(self._descriptor)
            self.size = status.st_size
            self.file_id = (status.st_dev, status.st_ino)
            self._read_header(shard)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def fileno(self) -> int:
        """Return the descriptor, open for reading only."""
        return self._descriptor

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; FormatError if the file has become shorter."""
        data = self._pread(length, offset)
        while len(data) < length:
            more = self._pread(length - len(data), offset + len(data))
            if not more:
                raise FormatError(
                    f"{self.path}: ends before byte {offset + length}: "
                    "it became shorter while being read",
                    remedy="Wait until whatever writes this file has finished.",
                )
            data += more
        return data

    def _pread(self, length: int, offset: int) -> bytes:
        try:
            return pread(self._descriptor, length, offset)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be read at byte {offset}: {error.strerror}",
                remedy="Check the disk (dmesg) or the network folder that holds this file.",
            ) from error

    def get(self, key: str, default: Any = None) -> Any:
        """Decode the value of ``key``; strings get U+FFFD for bytes that are not UTF-8."""
        pair = self.keys.get(key)
        if pair is None:
            return default
        try:
            return decode(self.read(pair.value, pair.end - pair.value), pair.type)
        except ValueError as error:
            raise FormatError(
                f"{self.path}: the value of {quoted(key)} changed while being read: {error}",
                remedy="Wait until whatever writes this file has finished.",
            ) from error

    def _read_header(self, shard: int) -> None:
        cursor = Cursor(self._descriptor, self.size, self.path)
        n_tensors, n_keys = self._read_preamble(cursor)
        self.keys: dict[str, KeyValue] = {}
        for _ in range(n_keys):
            pair = _read_key_value(cursor)
            if pair.key in self.keys:
                raise cursor.bad(f"the key {quoted(pair.key)} stands twice")
            self.keys[pair.key] = pair
        self.alignment = self._read_alignment(cursor)
        infos = [_read_tensor_info(cursor) for _ in range(n_tensors)]
        self.header_end = cursor.offset
        self.data_offset = padded(self.header_end, self.alignment)
        self.tensors = self._place(infos, shard)

    def _read_preamble(self, cursor: Cursor) -> tuple[int, int]:
        found = self._pread(len(MAGIC), 0)
        if found != MAGIC:
            raise not_gguf(self.path, self._pread(_LOOK, 0))
        cursor.skip(len(MAGIC), "the magic")
        self.version = cursor.number(ValueType.UINT32, "the version")
        if self.version not in (2, 3):
            swapped = int.from_bytes(self.version.to_bytes(4, "little"), "big")
            what = "a big-endian file" if swapped in (2, 3) else f"GGUF version {self.version}"
            raise FormatError(
                f"{self.path}: {what}; llama.cpp reads little-endian versions 2 and 3",
                remedy="Convert the model again with a current llama.cpp.",
            )
        n_tensors = cursor.number(ValueType.UINT64, "the number of tensors")
        n_keys = cursor.number(ValueType.UINT64, "the number of keys")
        if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:
            raise cursor.bad(f"{n_tensors} tensors and {n_keys} keys cannot be")
        cursor.need(
            n_tensors * _SMALLEST_TENSOR_INFO + n_keys * _SMALLEST_KEY_VALUE,
            f"a header of {n_tensors} tensors and {n_keys} keys",
        )
        return n_tensors, n_keys

    def _read_alignment(self, cursor: Cursor) -> int:
        pair = self.keys.get("general.alignment")
        if pair is None:
            return DEFAULT_ALIGNMENT
        if pair.type != ValueType.UINT32:
            raise cursor.bad("general.alignment is not a UINT32")
        alignment = int(self.get("general.alignment"))
        if alignment == 0 or alignment & (alignment - 1) or alignment > 1 << 20:
            raise cursor.bad(f"general.alignment is {alignment}, not a sensible power of two")
        return alignment

    def _place(self, infos: list[_TensorInfo], shard: int) -> tuple[Tensor, ...]:
        """Turn relative offsets into checked byte ranges.

        GGUF wants each tensor where the padded one before it ended; llama.cpp refuses anything
        else. So overlaps, gaps and disorder all fail the one comparison here.
        """
        room = self.size - self.data_offset
        tensors = []
        names: set[str] = set()
        expected = 0
        for index, info in enumerate(infos):
            if info.name in names:
                raise self._bad_tensor(info, "stands twice")
            names.add(info.name)
            if info.offset != expected:
                raise self._bad_tensor(
                    info, f"starts at {info.offset} in the tensor data, expected {expected}"
                )
            end = infos[index + 1].offset if index + 1 < len(infos) else None
            nbytes = self._tensor_bytes(info, end, room)
            if nbytes > room - info.offset:
                raise FormatError(
                    f"{self.path}: truncated: {quoted(info.name)} ends at byte "
                    f"{self.data_offset + info.offset + nbytes}, the file at {self.size}",
                    remedy="Download the file again (a download that stopped half-way?).",
                )
            start = self.data_offset + info.offset
            tensors.append(Tensor(info.name, info.shape, info.type, start, nbytes, shard))
            expected = padded(info.offset + nbytes, self.alignment)
        return tuple(tensors)

    def _tensor_bytes(self, info: _TensorInfo, next_offset: int | None, room: int) -> int:
        row = info.shape[0] if info.shape else 1
        rows = math.prod(info.shape[1:])
        known = TENSOR_TYPES.get(info.type)
        if known is None:
            return self._unknown_type_bytes(info, next_offset, room, rows if row else 0)
        if row % known.block:
            raise self._bad_tensor(info, f"has rows of {row}, not a multiple of {known.block}")
        return row // known.block * known.size * rows

    def _unknown_type_bytes(
        self, info: _TensorInfo, next_offset: int | None, room: int, rows: int
    ) -> int:
        """Work out the size of a tensor of a type this version does not know.

        It ends within one alignment step before the next tensor (or the end of the file), and is
        a whole number of bytes a row; with enough rows only one number is both.
        """
        end = (room if next_offset is None else next_offset) - info.offset
        largest = end // rows * rows if rows else 0
        least = max(end - self.alignment, 0)
        if largest <= least or largest - rows > least:
            raise self._bad_tensor(
                info, f"has the type {info.type}, newer than this ggprune, and no certain size"
            )
        return largest

    def _bad_tensor(self, info: _TensorInfo, what: str) -> FormatError:
        return FormatError(
            f"{self.path}: damaged GGUF header: tensor {quoted(info.name)} {what}",
            remedy="Download or convert the file again.",
        )


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


def _open_regular(path: Path) -> int:
    """Open for reading, refusing what is not a regular file before it can block (a pipe)."""
    # Not blocking, for a pipe that took the file's place after the first look.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        _require_regular(path, os.stat(path).st_mode)
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path}: cannot be read: {reason}", remedy="Check the path.") from error
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise InputError(f"{path}: is {kind}", remedy="Give the path of a .gguf file.")


def _read_key_value(cursor: Cursor) -> KeyValue:
    start = cursor.offset
    key = cursor.name("a key", _MAX_KEY)
    if not key:
        raise cursor.bad("a key is empty")
    what = f"the value of {quoted(key)}"
    value_type = cursor.number(ValueType.UINT32, what)
    value = cursor.offset
    cursor.skip_value(value_type, what)
    return KeyValue(key, value_type, start, value, cursor.offset)


def _read_tensor_info(cursor: Cursor) -> _TensorInfo:
    name = cursor.name("a tensor name", _MAX_TENSOR_NAME)
    what = f"tensor {quoted(name)}"
    n_dimensions = cursor.number(ValueType.UINT32, what)
    if n_dimensions > _MAX_DIMENSIONS:
        raise cursor.bad(f"{what} has {n_dimensions} dimensions, at most 4 can be")
    shape = tuple(cursor.number(ValueType.UINT64, what) for _ in range(n_dimensions))
    # One dimension may hide another's size by being 0.
    if math.prod(shape) >= 1 << 62 or any(dimension >= 1 << 62 for dimension in shape):
        raise cursor.bad(f"{what} has the impossible shape {shape}")
    type_id = cursor.number(ValueType.UINT32, what)
    offset = cursor.number(ValueType.UINT64, what)
    return _TensorInfo(name, shape, type_id, offset)


def is_gguf(path: str | Path) -> bool:
    """Whether there is a file that begins as GGUF files do."""
    try:
        with open(path, "rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
