"""Small helpers: what a JSON file that is none is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggprune.errors import InputError
from ggprune.util import read_json


def test_json_with_and_without_a_byte_order_mark(tmp_path: Path) -> None:
    for number, start in enumerate((b"", b"\xef\xbb\xbf")):
        path = tmp_path / f"{number}.json"
        path.write_bytes(start + '{"ä": 1}'.encode())
        assert read_json(path) == {"ä": 1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"x\.json: cannot be read: No such file"),
        (b'{"a": 1', r"x\.json: is not JSON: Expecting"),
        (b'{"a": "\xff"}', r"x\.json: is not JSON: byte 7 is not UTF-8"),
        (b"", "is not JSON: Expecting value"),
        (b"[" * 100_000, "is not JSON: maximum recursion"),
    ],
)
def test_what_is_no_json_is_called_so(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "x.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_json(path, "a plan")


def test_a_folder_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Is a directory"):
        read_json(tmp_path)
