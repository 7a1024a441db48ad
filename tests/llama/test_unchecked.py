"""A llama.cpp that is not what ggprune was made for is refused, with the reason."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ggprune.errors import LlamaError
from ggprune.llama import runtime
from ggprune.llama.library import library

pytestmark = pytest.mark.llama


def check(version: str = "", api: Any = None, **kwargs: bool) -> None:
    lib = library()
    runtime.check(
        api or lib.api, lib.ggml, version or lib.version, **{"is_external": False, **kwargs}
    )


_FIELDS = ("TYPE", "BUFFER", "NE", "NB", "OP", "SRC", "VIEW_SRC", "DATA", "NAME")


class Api:
    """llama_cpp, with some of its names replaced."""

    def __init__(self, **changes: Any) -> None:
        self._changes = changes

    def __getattr__(self, name: str) -> Any:
        return self._changes.get(name) or getattr(library().api, name)


def returning(function: str, structure: type[ctypes.Structure]) -> Api:
    """Bindings that take the result of a function for another structure."""
    call = ctypes.CFUNCTYPE(structure)(
        ctypes.cast(getattr(library().api._lib, function), ctypes.c_void_p).value or 0
    )
    return Api(**{function: call})


def test_this_one_fits() -> None:
    assert library().version in runtime.RELEASES
    check()
    check(f"{library().version}+cu124", is_external=True)


@pytest.mark.parametrize("name", _FIELDS)
def test_fields_of_a_tensor_that_are_elsewhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    constant = f"TENSOR_{name}"
    monkeypatch.setattr(runtime, constant, getattr(runtime, constant) + 8)
    with pytest.raises(LlamaError, match=rf": {name.lower()} of a tensor is elsewhere$"):
        check()


def test_a_tensor_of_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_TENSOR_SIZE", 344)
    with pytest.raises(LlamaError, match="a tensor takes 368 bytes instead of 376"):
        check()


def test_numbers_that_mean_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_OPERATIONS", {29: b"MUL_MAT_ID"})
    types = {**runtime.TENSOR_TYPES, 9: runtime.TENSOR_TYPES[8], 9999: runtime.TENSOR_TYPES[8]}
    monkeypatch.setattr(runtime, "TENSOR_TYPES", types)
    wanted = r"operation 29 is b'MUL_MAT' instead of b'MUL_MAT_ID'; tensor type 9 is q8_1 instead"
    with pytest.raises(LlamaError, match=wanted):
        check()


def test_parameters_that_are_elsewhere() -> None:
    first, *rest = library().api.llama_context_params._fields_
    older = type("llama_context_params", (ctypes.Structure,), {"_fields_": [*rest, first]})
    with pytest.raises(LlamaError) as caught:
        check(api=returning("llama_context_default_params", older))
    assert "llama_context_params.n_batch is 512 instead of 2048" in caught.value.message
    assert runtime.NEWEST in caught.value.remedy


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="sizes are seen on x86-64"
)
def test_parameters_that_the_bindings_do_not_know() -> None:
    """Every field is in its place, but C would read more than it is given."""
    fields = library().api.llama_context_params._fields_[:-1]
    shorter = type("llama_context_params", (ctypes.Structure,), {"_fields_": fields})
    with pytest.raises(LlamaError, match=r"llama_context_params takes \d+ bytes, not \d+"):
        check(api=returning("llama_context_default_params", shorter))


def test_a_field_that_is_gone() -> None:
    """Python would set it and C would never see it."""
    fields = [
        ("gone" if name == "use_extra_bufts" else name, kind)
        for name, kind in library().api.llama_model_params._fields_
    ]
    other = type("llama_model_params", (ctypes.Structure,), {"_fields_": fields})
    with pytest.raises(LlamaError, match="llama_model_params has no use_extra_bufts"):
        check(api=returning("llama_model_default_params", other))


def test_releases_that_were_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runtime.UNCHECKED, raising=False)
    with pytest.raises(LlamaError, match=r"0\.3\.99: it is none of the releases .*0\.3\.36"):
        check("0.3.99")
    monkeypatch.setattr(runtime, "RELEASES", {**runtime.RELEASES, "0.3.36": "0.0.1"})
    wanted = r"llama.*: the library is of ggml 0\.\d+\.\d+, this release's own of 0\.0\.1"
    with pytest.raises(LlamaError, match=wanted):
        check("0.3.36", is_external=True)
    monkeypatch.setenv(runtime.UNCHECKED, "1")
    check("0.3.99")
    # What is laid out in another way is refused all the same.
    monkeypatch.setattr(runtime, "TENSOR_DATA", 0)
    with pytest.raises(LlamaError, match="data of a tensor"):
        check("0.3.99")


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["doctor"], 1),
        (["--unchecked-runtime", "doctor"], 0),
        (["doctor", "--unchecked-runtime"], 0),
    ],
)
def test_going_on_all_the_same(
    arguments: list[str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import llama_cpp; llama_cpp.__version__ = '0.3.99'\nfrom ggprune.cli import main; main()"
    )
    monkeypatch.delenv(runtime.UNCHECKED, raising=False)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert ("llama-cpp-python 0.3.99: it is none of the releases" in done.stdout) == bool(status)


def test_the_releases_are_those_that_can_be_installed() -> None:
    pinned = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"llama-cpp-python>={next(iter(runtime.RELEASES))},<={runtime.NEWEST}"' in pinned
