"""Checking what people write into JSON and TOML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ggprune.errors import InputError
from ggprune.util import check_shape, counted, printable, read_json

SHAPE = {
    "name": str,
    "keep": [int],
    "share?": float,
    "imatrix?": bool | str,
    "layers?": {str: {"keep": [int], "rule?": str}},
    "points?": [{"keep": int}],
    "rest?": Any,
}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"share": 1, "imatrix": "x", "rest": object(), "unknown": 3},
        {"share": None, "layers": {}, "points": []},
        {"layers": {"0": {"keep": []}, "1": {"keep": [1], "rule": "r"}}, "points": [{"keep": 1}]},
    ],
)
def test_good(more: dict[str, Any]) -> None:
    check_shape({"name": "n", "keep": [1, 2], **more}, SHAPE, "f.toml")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"name": None}, "f.toml: name is missing, expected str"),
        ({"name": 3}, "f.toml: name is 3, expected str"),
        ({"keep": 3}, "f.toml: keep is 3, expected a list of int"),
        ({"keep": [True]}, "f.toml: keep is [True], expected a list of int"),
        ({"keep": [1.0]}, "f.toml: keep is [1.0], expected a list of int"),
        ({"share": "1"}, "f.toml: share is '1', expected float"),
        ({"share": True}, "f.toml: share is True, expected float"),
        ({"imatrix": 3}, "f.toml: imatrix is 3, expected bool or str"),
        ({"layers": []}, "f.toml: layers is [], expected an object"),
        ({"layers": {"7": 3}}, "f.toml: layers.7 is 3, expected an object"),
        ({"layers": {"7": {"keep": 3}}}, "f.toml: layers.7.keep is 3, expected a list of int"),
        ({"points": {}}, "f.toml: points is {}, expected a list of objects"),
        ({"points": [{"keep": 1}, {}]}, "f.toml: points[1].keep is missing, expected int"),
        ({"points": [3]}, "f.toml: points[0] is 3, expected an object"),
    ],
    ids=str,
)
def test_bad(more: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        check_shape({"name": "n", "keep": [1], **more}, SHAPE, "f.toml")
    assert caught.value.message == said


def test_the_whole() -> None:
    with pytest.raises(InputError, match=r"^f: its content is \[\], expected an object$"):
        check_shape([], SHAPE, "f")


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


def test_a_pointer_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("version https://git-lfs.github.com/spec/v1\noid …\n")
    with pytest.raises(InputError, match="is not JSON: a Git LFS pointer"):
        read_json(tmp_path / "plan.json", "a plan")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Evil\x1b[31m red\nsecond", r"Evil\u001b[31m red\u000asecond"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\x9b31m \udcff", r"\u009b31m \udcff"),
        ("Größe 日本 \U0001fae8 \U0001f468\u200d\U0001f469", None),
    ],
)
def test_what_steers_a_terminal_is_escaped(text: str, shown: str | None) -> None:
    assert printable(text) == (text if shown is None else shown)
    assert printable(text, keep="\n").count("\n") == text.count("\n")


@pytest.mark.parametrize(("number", "text"), [(0, "0 files"), (1, "1 file"), (1234, "1,234 files")])
def test_counted(number: int, text: str) -> None:
    assert counted(number, "file") == text


def test_what_rounds_to_zero_has_no_sign() -> None:
    from ggprune.cli.evaluate import _number

    assert [_number(value) for value in (-0.00004, -0.0, 0.00004, -0.00006)] == [
        *["0.0000"] * 3,
        "-0.0001",
    ]
