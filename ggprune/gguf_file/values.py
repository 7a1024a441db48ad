"""Metadata values from their bytes."""

from __future__ import annotations

import struct
from typing import Any

from ggprune.gguf_file.types import SCALARS, ValueType

ARRAY_HEAD = struct.Struct("<IQ")
_LENGTH = struct.Struct("<Q")


def decode(data: bytes, value_type: int) -> Any:
    """Decode one value that the cursor has let through.

    Arrays become lists, strings get U+FFFD for bytes that are not UTF-8. Arrays within arrays are
    built with a list of open ones, not by recursion.

    Raises:
        ValueError: the bytes are no such value any more: the file was changed meanwhile.
    """
    root: list[Any] = []
    pending: list[tuple[list[Any], int, int]] = [(root, value_type, 1)]
    at = 0
    while pending:
        values, kind, count = pending.pop()
        if kind in SCALARS:
            at = _scalars(data, at, SCALARS[kind], count, values)
        elif kind == ValueType.STRING:
            at = _strings(data, at, count, values)
        elif kind != ValueType.ARRAY:
            raise ValueError(f"unknown value type {kind}")
        elif count:
            inner, length = ARRAY_HEAD.unpack(_part(data, at, ARRAY_HEAD.size))
            at += ARRAY_HEAD.size
            values.append([])
            pending += [(values, kind, count - 1), (values[-1], inner, length)]
    return root[0]


def _scalars(data: bytes, at: int, scalar: struct.Struct, count: int, values: list[Any]) -> int:
    length = count * scalar.size
    values += [value for (value,) in scalar.iter_unpack(_part(data, at, length))]
    return at + length


def _strings(data: bytes, at: int, count: int, values: list[Any]) -> int:
    for _ in range(count):
        (length,) = _LENGTH.unpack(_part(data, at, _LENGTH.size))
        at += _LENGTH.size
        values.append(_part(data, at, length).decode("utf-8", "replace"))
        at += length
    return at


def _part(data: bytes, at: int, length: int) -> bytes:
    if length > len(data) - at:
        raise ValueError(f"{length} bytes are not there")
    return data[at : at + length]
