"""Files that are no GGUF files: each named for what it is, with what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ggprune.errors import FormatError

_CONVERT = "Convert the model with llama.cpp's convert_hf_to_gguf.py."
_UNPACK = "Unpack it: a .gguf file inside is what is wanted."
_MODEL = "Give the model's .gguf file."
_AGAIN = "Download the file again."

#: How files of a kind begin, what they are, what to do.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (
        rb"\s*(?i:<!doctype html|<html|<head)",
        "a web page",
        "The address led to a page about the file, or to a login; the file's own address has "
        "/resolve/ in place of /blob/.",
    ),
    (rb"\s*<\?xml|\s*<Error>", "an answer of a server in XML, perhaps an error", _AGAIN),
    (rb"(lmgg|tjgg|algg|fmgg|ggml|ggjt|ggla|ggmf)", "a file of llama.cpp before 2023-08", _CONVERT),
    (rb".{8}\{\s*\"", "a safetensors file", _CONVERT),
    (rb"PK\x03\x04", "a ZIP archive or a PyTorch file", f"{_UNPACK} {_CONVERT}"),
    (rb"\x80[\x02-\x05]", "a Python pickle, perhaps of PyTorch", _CONVERT),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd|\xfd7zXZ|BZh|7z\xbc\xaf|Rar!", "an archive", _UNPACK),
    (rb".{257}ustar", "a tar archive", _UNPACK),
    (rb"\x89HDF", "an HDF5 file", _CONVERT),
    (rb"PAR1", "a Parquet file", "It may serve as text to calibrate on, not as a model."),
    (rb"\s*[\[{]", "JSON", _MODEL),
    (rb"\x00+$", "zeros: a download that was never finished", _AGAIN),
)
_POINTER = re.compile(rb"version https://git-lfs\.github\.com/.*?\nsize (\d+)", re.DOTALL)


@contextmanager
def instead_of_a_model(remedy: str) -> Iterator[None]:
    """Say what to give where no model is expected, but another GGUF file."""
    try:
        yield
    except FormatError as error:
        if error.remedy == _MODEL:
            error.remedy = remedy
        raise


def not_gguf(path: Path, start: bytes) -> FormatError:
    """Make the error for a file that is no GGUF file.

    Args:
        start: its first kilobyte, or all of it.
    """
    if not start:
        return FormatError(f"{path}: not a GGUF file: it is empty", remedy=_AGAIN)
    if pointer := _POINTER.match(start):
        return FormatError(
            f"{path}: not a GGUF file: it is a Git LFS pointer to one of {int(pointer[1]):,} bytes",
            remedy="Fetch the file itself: `git lfs pull` in its folder, or `hf download`.",
        )
    for pattern, what, remedy in _KINDS:
        if re.match(pattern, start, re.DOTALL):
            return FormatError(f"{path}: not a GGUF file: it is {what}", remedy=remedy)
    return FormatError(
        f"{path}: not a GGUF file: it starts with {start[:4]!r}, expected b'GGUF'",
        remedy="Give a .gguf file; convert other formats with llama.cpp's converter.",
    )
