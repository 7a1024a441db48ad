"""Files that are no GGUF files are named for what they are."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ggprune.calibration.statistics import Statistics
from ggprune.errors import FormatError
from ggprune.gguf_file import GgufModel

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 16796014848\n"
)


def archive() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("model.gguf"))
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("data.pkl", b"x")
    return stream.getvalue()


def safetensors() -> bytes:
    head = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(head).to_bytes(8, "little") + head + np.zeros(1, "<f4").tobytes()


@pytest.mark.parametrize(
    ("data", "what", "remedy"),
    [
        (POINTER, r"Git LFS pointer to one of 16,796,014,848 bytes", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html><head>", "a web page", "/resolve/"),
        (b"\n<html lang='en'>", "a web page", "/resolve/"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "XML", "again"),
        (safetensors(), "safetensors", "convert_hf_to_gguf"),
        (zipped(), "ZIP", "Unpack"),
        (gzip.compress(b"GGUF"), "an archive", "Unpack"),
        (archive(), "tar archive", "Unpack"),
        (b"\x80\x02}q\x00.", "pickle", "convert_hf_to_gguf"),
        (b"tjgg\x03\x00\x00\x00", "before 2023", "convert_hf_to_gguf"),
        (b'{"error": "Repository not found"}', "JSON", r"\.gguf"),
        (b"PAR1\x15\x04", "Parquet", "text to calibrate on"),
        (b"", "empty", "again"),
        (bytes(5000), "zeros", "again"),
        (b"Once upon a time", "starts with b'Once'", r"\.gguf"),
    ],
    # Archives hold the time, and xdist wants the same names everywhere.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_is_named_with_what_to_do(tmp_path: Path, data: bytes, what: str, remedy: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=rf"model\.gguf: not a GGUF file: .*{what}") as caught:
        GgufModel(path)
    assert re.search(remedy, caught.value.remedy)


def test_json_in_place_of_statistics(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"format": "ggprune-plan"}')
    with pytest.raises(FormatError, match="it is JSON") as caught:
        Statistics.load(path)
    assert caught.value.remedy == "Make one: ggprune calibrate MODEL -o STATS.gguf"
