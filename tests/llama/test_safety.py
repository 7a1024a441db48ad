"""A llama.cpp that crashes on this CPU never reaches the user as a segmentation fault."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from ggprune.errors import LlamaError
from ggprune.interrupts import interrupts
from ggprune.llama import safety
from ggprune.util import cache_folder


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    safety.extra_buffers_work.cache_clear()
    yield
    safety.extra_buffers_work.cache_clear()


#: What the child does instead of the tiny model: die of SIGSEGV if weights are repacked.
_CRASHING = (
    "import os, signal, sys\n"
    "def run_probe(path, *, repack):\n"
    "    if repack or {always}:\n"
    "        os.kill(os.getpid(), signal.SIGSEGV)\n"
    "    sys.exit(0)\n"
)


def crashing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, always: bool) -> None:
    """Put a module before the child's real one."""
    package = tmp_path / "fake" / "ggprune" / "llama"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package.parent / "__init__.py").touch()
    (package / "safety.py").write_text(_CRASHING.replace("{always}", str(always)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.chdir(tmp_path / "fake")


@pytest.mark.llama
def test_a_build_that_works() -> None:
    """The real child with the real library: one of the two ways works here, or we would not."""
    works = safety.extra_buffers_work()
    remembered = json.loads((cache_folder() / "cpu.json").read_text())
    assert list(remembered.values()) == [works]


def test_ctrl_c_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the child as well, which says nothing about the CPU."""

    def interrupted(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        signal.raise_signal(signal.SIGINT)
        return subprocess.CompletedProcess(command, -signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(safety.subprocess, "run", interrupted)
    monkeypatch.setattr(safety, "_machine_key", str)
    try:
        with pytest.raises(KeyboardInterrupt), interrupts:
            safety.extra_buffers_work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (cache_folder() / "cpu.json").exists()


@pytest.mark.process
def test_a_crash_is_survived_and_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    crashing(monkeypatch, tmp_path, always=False)
    assert safety.extra_buffers_work() is False
    safety.extra_buffers_work.cache_clear()

    def never(**_: object) -> bool:
        raise AssertionError("a second child")

    monkeypatch.setattr(safety, "_survives", never)
    assert safety.extra_buffers_work() is False


@pytest.mark.process
def test_another_library_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(safety, "_survives", lambda *, repack: not asked.append(repack))
    assert safety.extra_buffers_work() and asked == [True]
    safety.extra_buffers_work.cache_clear()
    monkeypatch.setattr(safety, "_cpu_flags", lambda: "another CPU")
    assert safety.extra_buffers_work() and asked == [True, True]


@pytest.mark.process
def test_a_build_that_always_crashes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    crashing(monkeypatch, tmp_path, always=True)
    with pytest.raises(LlamaError, match="crashes on this CPU") as caught:
        safety.extra_buffers_work()
    assert "-DGGML_NATIVE=OFF" in caught.value.remedy


@pytest.mark.process
@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}'])
def test_a_damaged_memory_is_no_matter(
    content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "cpu.json").write_text(content)
    monkeypatch.setattr(safety, "_survives", lambda *, repack: True)
    assert safety.extra_buffers_work() is True


@pytest.mark.process
def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(safety, "_survives", lambda *, repack: True)
    assert safety.extra_buffers_work() is True
