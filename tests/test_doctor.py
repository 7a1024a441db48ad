"""What ``ggprune doctor`` sees, and what it says of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import ggprune
from ggprune.doctor import Finding, diagnose
from ggprune.llama import hardware
from ggprune.llama.devices import Device, Kind
from ggprune.llama.hardware import Gpu, Vendor
from ggprune.llama.options import RunOptions
from ggprune.llama.runtime import RELEASES
from ggprune.text.builtin import CALIBRATION
from ggprune.text.documents import Source
from ggprune.text.load import load_or_builtin
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
    assert found["llama-cpp-python"].text in RELEASES
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


def test_without_cuda_the_driver_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "machine_gpus", lambda: [RTX])
    monkeypatch.setattr(hardware, "cuda_version", lambda: None)
    assert "driver first" in by_subject(diagnose())["idle GPU"].remedy


def test_what_only_vulkan_sees_is_not_used_by_a_build_for_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arc, software = Gpu(Vendor.INTEL, "Intel Arc A770"), "llvmpipe (LLVM 15.0.6, 256 bits)"
    cpu = Device(1, "CPU", "AMD EPYC", Kind.CPU, 0, 0)
    monkeypatch.setattr(hardware, "machine_gpus", lambda: [])
    monkeypatch.setattr(hardware, "vulkan_devices", lambda: ([arc], [software]))
    monkeypatch.setattr("ggprune.llama.devices.devices", lambda: [cpu])
    monkeypatch.setattr("ggprune.llama.devices.backends", lambda: ["CPU"])
    found = by_subject(diagnose())
    assert arc.name in found["idle GPU"].text and "/whl/vulkan " in found["idle GPU"].remedy
    assert software in found["software device"].text
    assert "/whl/vulkan " in found["software device"].remedy
    # Built with Vulkan, but it leaves devices in software alone.
    monkeypatch.setattr("ggprune.llama.devices.backends", lambda: ["Vulkan", "CPU"])
    remedy = by_subject(diagnose())["software device"].remedy
    assert "pip" not in remedy and "GGML_VK_VISIBLE_DEVICES=0" in remedy
    # And where it was told to take it, nothing is left to say.
    used = replace(cpu, name="Vulkan0", description=software, kind=Kind.GPU)
    monkeypatch.setattr("ggprune.llama.devices.devices", lambda: [used, cpu])
    assert "software device" not in by_subject(diagnose())


def test_how_long_calibration_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 prompts are tried: 10 tokens each read in 0.1 s, and a round of 16 tokens in half one."""
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Trying:
        def __init__(self, model: object, sources: list[Source], *rest: object) -> None:
            self.prompts = sum(len(source.documents) for source in sources)
            self.progress = rest[2]

        def run(self) -> None:
            assert self.prompts == 16
            for what, rounds, seconds in (("generating", 3, 0.5), ("calibrating", 1, 1.6)):
                with self.progress(0, what, "tok") as advance:
                    for _ in range(rounds):
                        wait(seconds)
                        for _ in range(self.prompts):
                            advance(1 if what == "generating" else 10)

    monkeypatch.setattr("ggprune.calibration.run.Run", Trying)
    monkeypatch.setattr("ggprune.doctor.time", SimpleNamespace(perf_counter=lambda: now))
    found = by_subject(diagnose(write_tiny(tmp_path / "m.gguf", "qwen3moe")))["calibration"].text
    documents = [d for source in load_or_builtin((), CALIBRATION) for d in source.documents]
    answers = 128 * len(documents)
    # At 0.01 s a token read and 0.5 / 16 s one written; prompts are longer than those tried.
    least = (2 * 10 * len(documents) + answers) * 0.01 + answers * 0.5 / 16
    hours, minutes, seconds = map(int, re.search(r"about (\d+):(\d+):(\d+)", found).groups())
    assert least < hours * 3600 + minutes * 60 + seconds < 2 * least
    assert "reads 100 tokens a second, writes 32 (tried on 160)" in found


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
    assert "for the built-in prompts: reads" in found["calibration"].text
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
