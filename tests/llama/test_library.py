"""A llama.cpp that is already there is used if it fits, and refused with the reason if not.

What needs one that was built apart takes that of ``make test-vulkan``.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ggprune.calibration.statistics import Statistics
from ggprune.errors import LlamaError
from ggprune.llama import library as lib
from ggprune.llama.library import library
from ggprune.llama.runtime import EXTERNAL
from ggprune.llama.symbols import SYMBOLS
from tests.support.command import COMMAND
from tests.support.tiny import write_tiny

pytestmark = [pytest.mark.llama, pytest.mark.process]

BUILT_APART = Path(__file__).parents[2] / "build" / "vulkan" / "bin"
built_apart = pytest.mark.skipif(
    not (BUILT_APART / "libllama.so").exists(), reason="needs what make test-vulkan builds"
)


def run(folder: Path | None, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != EXTERNAL}
    if folder:
        environment[EXTERNAL] = str(folder)
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=environment
    )


def linked(folder: Path, *patterns: str) -> Path:
    """A folder with some of the libraries that were built apart."""
    folder.mkdir()
    for pattern in patterns:
        for path in BUILT_APART.glob(pattern):
            (folder / path.name).symlink_to(path)
    return folder


@built_apart
def test_one_that_was_built_apart_gives_the_same_numbers(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "m.gguf", "glm4moe")
    text = tmp_path / "t.txt"
    text.write_text("the sea rests and the road is not on it; " * 20)
    # Without Vulkan's, so that both compute on the CPU.
    folder = linked(tmp_path / "lib", "libllama*", "libggml.so*", "libggml-base*", "libggml-cpu*")
    found = []
    for where in (folder, None):
        output = tmp_path / f"{where is None}.gguf"
        how = ("--text", f"a={text}", "--ctx", 64, "--no-repack", "--flash-attn", "off")
        how += ("--cache-type-k", "f32", "--cache-type-v", "f32", "--threads", 1)
        result = run(where, "calibrate", model, "-o", output, *how)
        assert result.returncode == 0, result.stderr
        found.append(Statistics.load(output).total)
    assert np.array_equal(found[0].count, found[1].count)
    np.testing.assert_allclose(found[0].contribution_sum, found[1].contribution_sum, rtol=1e-4)


@built_apart
def test_doctor_names_it(tmp_path: Path) -> None:
    result = run(BUILT_APART, "doctor")
    assert result.returncode == 0, result.stdout
    assert str(BUILT_APART) in result.stdout
    assert "Vulkan" in result.stdout


@built_apart
def test_without_backends_beside_it(tmp_path: Path) -> None:
    folder = linked(tmp_path / "lib", "libllama*", "libggml.so*", "libggml-base*")
    result = run(folder, "doctor")
    assert result.returncode == 1
    assert f"{folder / 'libllama.so'}: there are no backends beside it" in result.stdout


def test_one_that_lacks_functions_is_refused_with_the_first(tmp_path: Path) -> None:
    """As llama.cpp of another version does: here it is another library altogether."""
    base = next(Path(library().path).parent.glob("libggml-base*"))
    name = Path(library().path).name
    (tmp_path / name).write_bytes(base.read_bytes())
    result = run(tmp_path, "doctor")
    assert result.returncode == 1
    assert f"{EXTERNAL}={tmp_path}: llama-cpp-python cannot be loaded" in result.stdout
    assert "llama_" in result.stdout and "Traceback" not in result.stderr


def test_a_folder_without_a_library(tmp_path: Path) -> None:
    result = run(tmp_path, "doctor")
    assert result.returncode == 1
    assert "not found" in result.stdout and f"Unset {EXTERNAL}" in result.stdout


def test_functions_of_ggml_on_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There llama.dll does not give those of ggml.dll and ggml-base.dll, which lie beside it."""
    folder = Path(library().path).parent
    for name in ("ggml", "ggml-base"):
        # By the name under which it is loaded already, or it would be a second one.
        there = [folder / f"lib{name}.so.0", *folder.glob(f"lib{name}.*dylib")]
        (tmp_path / f"{name}.dll").symlink_to(next(each for each in there if each.exists()))
    bare = SimpleNamespace(_name=str(tmp_path / "llama.dll"))
    with pytest.raises(LlamaError, match="has no ggml_tensor_overhead"):
        lib._resolve(bare)
    monkeypatch.setattr(lib.platform, "system", lambda: "Windows")
    found = lib._resolve(bare)
    assert found.keys() == SYMBOLS.keys()
    assert found["ggml_tensor_overhead"]() == library().ggml["ggml_tensor_overhead"]()
