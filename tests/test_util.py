"""Checking what people write into JSON and TOML files."""

from __future__ import annotations

from typing import Any

import pytest

from ggprune.errors import InputError
from ggprune.util import check_shape

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
