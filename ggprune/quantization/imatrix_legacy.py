"""The format importance matrices had before 2025 (``.dat``): no counts for each expert.

A number of entries; for each the name, the number of calls (chunks) and the mean of x² times that
number; then, in newer files, the number of chunks and the text's name. All numbers are 32 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ggprune.errors import FormatError, InputError
from ggprune.types import Floats32

_INT = struct.Struct("<i")
_MAX_ENTRIES = 1 << 20
_MAX_TEXT = 1 << 16


@dataclass(frozen=True, slots=True)
class LegacyFile:
    """What such a file holds.

    Attributes:
        entries: calls and values, flat, by the weight's name.
        chunks: of text.
        dataset: name of the text; empty where it is not told.
    """

    entries: Mapping[str, tuple[int, Floats32]]
    chunks: int = 0
    dataset: str = ""


def read(path: Path) -> LegacyFile:
    """Read such a file.

    Raises:
        InputError: it is something else, or ends early.
        FormatError: it holds values that are not finite.
    """
    with open(path, "rb") as stream:
        reader = _Reader(stream, path)
        number = reader.number()
        if not 0 < number < _MAX_ENTRIES:
            raise reader.wrong()
        entries = dict(reader.entry() for _ in range(number))
        chunks = 0 if reader.at_end() else reader.number()
        dataset = "" if reader.at_end() else reader.text()
    return LegacyFile(entries, chunks, dataset)


def write(path: Path, file: LegacyFile) -> None:
    """Write such a file under this very name."""
    with open(path, "wb") as stream:
        stream.write(_INT.pack(len(file.entries)))
        for name, (calls, values) in file.entries.items():
            stream.write(_text(name) + _INT.pack(calls) + _INT.pack(values.size))
            stream.write(np.ascontiguousarray(values, "<f4").tobytes())
        stream.write(_INT.pack(file.chunks) + _text(file.dataset))


class _Reader:
    """Takes an untrusted file apart; no length is believed beyond the file's own."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self._size = path.stat().st_size

    def at_end(self) -> bool:
        return self._stream.tell() == self._size

    def number(self) -> int:
        return int(_INT.unpack(self._take(_INT.size))[0])

    def text(self) -> str:
        length = self.number()
        if length > _MAX_TEXT:
            raise self.wrong()
        return self._take(length).decode("utf-8", "replace")

    def entry(self) -> tuple[str, tuple[int, Floats32]]:
        name, calls, count = self.text(), self.number(), self.number()
        values = np.frombuffer(self._take(4 * count), "<f4")
        if not count:
            raise self.wrong()
        if not np.isfinite(values).all():
            raise FormatError(
                f"{self._path}: damaged importance matrix: {name} has values that are not finite",
                remedy="Gather or download it again.",
            )
        return name, (calls, values)

    def wrong(self) -> InputError:
        return InputError(
            f"{self._path}: is not an importance matrix: neither GGUF nor whole in llama.cpp's "
            "older format",
            remedy="Make one with `ggprune imatrix`.",
        )

    def _take(self, length: int) -> bytes:
        if not 0 <= length <= self._size - self._stream.tell():
            raise self.wrong()
        return self._stream.read(length)


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return _INT.pack(len(raw)) + raw
