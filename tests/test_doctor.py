"""What ``ggprune doctor`` sees, and what it says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ggprune
from ggprune.doctor import Finding, diagnose
from ggprune.llama import hardware
from ggprune.llama.hardware import Gpu, Vendor
from ggprune.llama.options import RunOptions
from tests.support.tiny import write_tiny

pytestmark = [pytest.mark.llama, pytest.mark.process]

RTX = Gpu(Vendor.NVIDIA, "NVIDIA GeForce RTX 3090")


def by_subject(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from ggprune.cli import main; main()", "doctor", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def test_what_is_here() -> None:
    found = by_subject(diagnose())
    assert "CPU" in found["backends"].text
    assert found["llama-cpp-python"].text == "0.3.36"
    assert "free of" in found["memory"].text
    assert not any(finding.is_broken for finding in found.values())


def test_a_gpu_that_stands_idle_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "machine_gpus", lambda: [RTX])
    monkeypatch.setattr(hardware, "cuda_version", lambda: (12, 4))
    idle = by_subject(diagnose())["idle GPU"]
    assert RTX.name in idle.text
    assert "/whl/cu124 llama-cpp-python==0.3.36" in idle.remedy


@pytest.mark.parametrize(
    ("gpu", "options", "said"),
    [
        (RTX, RunOptions(), True),
        (RTX, RunOptions(gpu_layers=0), False),
        (Gpu(Vendor.INTEL, "Intel GPU"), RunOptions(), False),
    ],
)
def test_calibrating_says_in_one_line_that_a_gpu_stands_idle(
    gpu: Gpu,
    options: RunOptions,
    said: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(hardware, "machine_gpus", lambda: [gpu])
    monkeypatch.setattr(hardware, "cuda_version", lambda: (12, 4))
    text = tmp_path / "t.txt"
    text.write_text("the of and in " * 20)
    model = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    settings = ggprune.Settings(ctx=32)
    ggprune.calibrate(model, text={"t": text}, settings=settings, options=options)
    lines = [line for line in caplog.messages if "stands idle" in line]
    assert len(lines) == said
    assert all("/whl/cu124 " in line and "\n" not in line for line in lines)


def test_a_model_that_fits_and_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    found = by_subject(diagnose(model))
    assert found["prunable"].text.startswith("yes")
    assert found["fits"].text == "yes: on the CPU"
    monkeypatch.setattr(hardware, "free_memory", lambda: (1000, 2000))
    found = by_subject(diagnose(model))
    assert found["fits"].text.startswith("no")
    assert found["fits"].remedy


def test_the_tokens_value_is_never_printed() -> None:
    result = doctor("--json", HF_TOKEN="hf_secretsecret")
    assert "hf_secretsecret" not in result.stdout + result.stderr
    found = {finding["subject"]: finding["text"] for finding in json.loads(result.stdout)}
    assert found["Hub token"] == "there"


def test_a_broken_library_is_a_finding_and_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "libllama.so").write_bytes(b"not a library")
    result = doctor(LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert result.returncode == 1
    assert "cannot be loaded" in result.stdout
    assert "memory" in result.stdout
    assert "Traceback" not in result.stderr
