"""One GGUF file: its header, checked against the file before anything is believed.

Arrays are passed over, not read, so that a file with a vocabulary of 262,144 tokens opens in a
fraction of a second; a value is decoded when it is asked for.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ggprune.errors import FormatError, InputError
from ggprune.gguf_file.cursor import Cursor
from ggprune.gguf_file.types import SCALARS, TENSOR_TYPES, ValueType

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
_MAX_TENSORS = 1 << 20
_MAX_KEYS = 1 << 16
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


class GgufFile:
    """An open GGUF file, never written to.

    Attributes:
        path: as given.
        size: bytes.
        version: 2 or 3.
        alignment: of tensor data, from ``general.alignment``.
        keys: metadata in the file's order.
        tensors: in the file's order.
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

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def fileno(self) -> int:
        """The descriptor, open for reading only."""
        return self._descriptor

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; FormatError if the file has become shorter."""
        data = os.pread(self._descriptor, length, offset)
        while len(data) < length:
            more = os.pread(self._descriptor, length - len(data), offset + len(data))
            if not more:
                raise FormatError(
                    f"{self.path}: ends before byte {offset + length}: "
                    "it became shorter while being read",
                    remedy="Wait until whatever writes this file has finished.",
                )
            data += more
        return data

    def get(self, key: str, default: Any = None) -> Any:
        """The decoded value of ``key``; strings with U+FFFD for bytes that are not UTF-8."""
        pair = self.keys.get(key)
        if pair is None:
            return default
        return _decode(self.read(pair.value, pair.end - pair.value), pair.type)

    def _read_header(self, shard: int) -> None:
        cursor = Cursor(self._descriptor, self.size, self.path)
        n_tensors, n_keys = self._read_preamble(cursor)
        self.keys: dict[str, KeyValue] = {}
        for _ in range(n_keys):
            pair = _read_key_value(cursor)
            if pair.key in self.keys:
                raise cursor.bad(f"the key {pair.key!r} stands twice")
            self.keys[pair.key] = pair
        self.alignment = self._read_alignment(cursor)
        infos = [_read_tensor_info(cursor) for _ in range(n_tensors)]
        self.data_offset = padded(cursor.offset, self.alignment)
        self.tensors = self._place(infos, shard)

    def _read_preamble(self, cursor: Cursor) -> tuple[int, int]:
        found = os.pread(self._descriptor, 4, 0)
        if found != MAGIC or self.size < 24:
            raise FormatError(
                f"{self.path}: not a GGUF file: it starts with {found!r}, expected b'GGUF'",
                remedy="Give a .gguf file; convert other formats with llama.cpp's converter.",
            )
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
                    f"{self.path}: truncated: {info.name!r} ends at byte "
                    f"{self.data_offset + info.offset + nbytes}, the file at {self.size}",
                    remedy="Download the file again (a download that stopped half-way?).",
                )
            start = self.data_offset + info.offset
            tensors.append(Tensor(info.name, info.shape, info.type, start, nbytes, shard))
            expected = padded(info.offset + nbytes, self.alignment)
        return tuple(tensors)

    def _tensor_bytes(self, info: _TensorInfo, next_offset: int | None, room: int) -> int:
        elements = 1
        for dimension in info.shape:
            elements *= dimension
        known = TENSOR_TYPES.get(info.type)
        if known is not None:
            if info.shape and info.shape[0] % known.block:
                raise self._bad_tensor(
                    info, f"has rows of {info.shape[0]}, not a multiple of {known.block}"
                )
            return elements // known.block * known.size
        return self._unknown_type_bytes(info, next_offset, room, elements)

    def _unknown_type_bytes(
        self, info: _TensorInfo, next_offset: int | None, room: int, elements: int
    ) -> int:
        """The size of a tensor of a type this version does not know.

        It lies between the last alignment step and the next tensor, and is a whole number of
        bytes a row; with enough rows only one number is both.
        """
        end = (room if next_offset is None else next_offset) - info.offset
        rows = elements // info.shape[0] if info.shape and info.shape[0] else 0
        least = max(end - self.alignment + 1, 0)
        fitting = [n for n in range(least, end + 1) if rows and n % rows == 0]
        if len(fitting) != 1:
            raise self._bad_tensor(
                info, f"has the type {info.type}, newer than this ggprune, and no certain size"
            )
        return fitting[0]

    def _bad_tensor(self, info: _TensorInfo, what: str) -> FormatError:
        return FormatError(
            f"{self.path}: damaged GGUF header: tensor {info.name!r} {what}",
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
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise InputError(f"{path}: is {kind}", remedy="Give the path of a .gguf file.")
        return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path}: cannot be read: {reason}", remedy="Check the path.") from error


def _read_key_value(cursor: Cursor) -> KeyValue:
    start = cursor.offset
    key = cursor.name("a key")
    value_type = cursor.number(ValueType.UINT32, f"the type of {key!r}")
    value = cursor.offset
    cursor.skip_value(value_type, f"the value of {key!r}")
    return KeyValue(key, value_type, start, value, cursor.offset)


def _read_tensor_info(cursor: Cursor) -> _TensorInfo:
    name = cursor.name("a tensor name")
    n_dimensions = cursor.number(ValueType.UINT32, f"tensor {name!r}")
    if n_dimensions > _MAX_DIMENSIONS:
        raise cursor.bad(f"tensor {name!r} has {n_dimensions} dimensions, at most 4 can be")
    shape = tuple(cursor.number(ValueType.UINT64, f"tensor {name!r}") for _ in range(n_dimensions))
    elements = 1
    for dimension in shape:
        elements *= dimension
    if elements >= 1 << 62 or any(dimension >= 1 << 62 for dimension in shape):
        raise cursor.bad(f"tensor {name!r} has the impossible shape {shape}")
    type_id = cursor.number(ValueType.UINT32, f"tensor {name!r}")
    offset = cursor.number(ValueType.UINT64, f"tensor {name!r}")
    return _TensorInfo(name, shape, type_id, offset)


def _decode(data: bytes, value_type: int) -> Any:
    """A value from its bytes; depth is bounded by what the cursor let through."""
    return _decode_at(data, 0, value_type)[0]


def _decode_at(data: bytes, at: int, value_type: int) -> tuple[Any, int]:
    if value_type in SCALARS:
        scalar = SCALARS[value_type]
        return scalar.unpack_from(data, at)[0], at + scalar.size
    if value_type == ValueType.STRING:
        length = int.from_bytes(data[at : at + 8], "little")
        end = at + 8 + length
        return data[at + 8 : end].decode("utf-8", "replace"), end
    kind = int.from_bytes(data[at : at + 4], "little")
    count = int.from_bytes(data[at + 4 : at + 12], "little")
    at += 12
    values = []
    for _ in range(count):
        value, at = _decode_at(data, at, kind)
        values.append(value)
    return values, at
