"""GPUs that the machine has, and those that llama.cpp leaves idle."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ggprune.llama import hardware, vulkan
from ggprune.llama.devices import Device, Kind
from ggprune.llama.hardware import Gpu, Vendor, idle_gpus, machine_gpus, remedy, vulkan_devices


def device(name: str, description: str, kind: Kind = Kind.GPU) -> Device:
    return Device(1, name, description, kind, 0, 0)


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hardware.platform, "system", lambda: "Linux")
    monkeypatch.setattr(hardware, "_output", lambda *command: "")
    return tmp_path


def add_card(root: Path, name: str, vendor: str, number: str = "0x744c") -> None:
    folder = root / "sys/class/drm" / name / "device"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(vendor + "\n")
    (folder / "device").write_text(number + "\n")


def add_nvidia(root: Path, model: str) -> None:
    folder = root / "proc/driver/nvidia/gpus/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 89\n")


def test_a_machine_without_gpus(linux: Path) -> None:
    assert machine_gpus(linux) == []


def test_nvidia_by_its_driver_and_not_again_as_a_card(linux: Path) -> None:
    add_nvidia(linux, "NVIDIA GeForce RTX 3090")
    add_card(linux, "card0", "0x10de")
    assert machine_gpus(linux) == [Gpu(Vendor.NVIDIA, "NVIDIA GeForce RTX 3090")]


def test_nvidia_without_its_driver_is_still_a_gpu(linux: Path) -> None:
    add_card(linux, "card0", "0x10de", "0x2204")
    assert machine_gpus(linux) == [Gpu(Vendor.NVIDIA, "NVIDIA GPU 0x2204")]


def test_outputs_of_a_card_and_a_servers_display_chip_are_no_gpus(linux: Path) -> None:
    add_card(linux, "card0", "0x1a03")
    add_card(linux, "card1", "0x1002")
    add_card(linux, "card1-HDMI-A-1", "0x1002")
    assert [gpu.vendor for gpu in machine_gpus(linux)] == [Vendor.AMD]


@pytest.mark.parametrize(
    ("system", "machine", "vendors"),
    [("Darwin", "arm64", [Vendor.APPLE]), ("Darwin", "x86_64", []), ("Plan9", "mips", [])],
)
def test_other_systems(
    system: str, machine: str, vendors: list[Vendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware.platform, "system", lambda: system)
    monkeypatch.setattr(hardware.platform, "machine", lambda: machine)
    assert [gpu.vendor for gpu in machine_gpus()] == vendors


def test_windows_names_its_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    names = "NVIDIA GeForce RTX 4070\nRadeon RX 7900 XTX\nMicrosoft Basic Display Adapter\n"
    monkeypatch.setattr(hardware.platform, "system", lambda: "Windows")
    monkeypatch.setattr(hardware, "_output", lambda *command: names)
    assert [gpu.vendor for gpu in machine_gpus()] == [Vendor.NVIDIA, Vendor.AMD]


def test_what_vulkan_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    said = '[[2, 4318, "NVIDIA GeForce RTX 3090"], [4, 65541, "llvmpipe"], [1, 5045, "Mali"]]'
    monkeypatch.setattr(hardware, "_output", lambda *command: said)
    assert vulkan_devices() == ([Gpu(Vendor.NVIDIA, "NVIDIA GeForce RTX 3090")], ["llvmpipe"])
    monkeypatch.setattr(hardware, "_output", lambda *command: "")
    assert vulkan_devices() == ([], []), "no Vulkan, or a driver that crashes"


@pytest.mark.process
def test_vulkan_as_its_own_program_tells_it() -> None:
    program = shutil.which("vulkaninfo")
    if program is None:
        pytest.skip("vulkaninfo is not installed")
    told = subprocess.run([program, "--summary"], capture_output=True, text=True, check=False)
    names = re.findall(r"deviceName += (.+)", told.stdout)
    assert sorted(name for *_, name in vulkan.found()) == sorted(names)


@pytest.mark.parametrize(
    ("found", "idle"),
    [
        ([device("CPU", "AMD Ryzen 9", Kind.CPU)], True),
        ([device("ROCm0", "gfx1100")], False),
        ([device("Vulkan0", "AMD Radeon RX 7900 XTX (RADV NAVI31)")], False),
        ([device("Vulkan0", "llvmpipe (LLVM 15.0.6, 256 bits)", Kind.CPU)], True),
        ([device("CUDA0", "NVIDIA GeForce RTX 3090")], True),
    ],
)
def test_a_gpu_is_idle_unless_a_device_of_its_vendor_is_there(
    found: list[Device], idle: bool
) -> None:
    gpus = [Gpu(Vendor.AMD, "AMD GPU 0x744c")]
    assert bool(idle_gpus(gpus, found)) is idle


@pytest.mark.parametrize(
    ("driver", "tag"),
    [("13.1", "cu130"), ("12.9", "cu125"), ("12.4", "cu124"), ("11.4", "cu118")],
)
def test_the_wheel_is_no_newer_than_the_driver(
    driver: str, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_output", lambda *command: f"| CUDA Version: {driver}  |")
    assert f"/whl/{tag} llama-cpp-python==1.2.3" in remedy(Vendor.NVIDIA, "1.2.3")


def test_no_wheel_helps_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_output", lambda *command: "")
    assert "driver" in remedy(Vendor.NVIDIA, "1.2.3")


@pytest.mark.parametrize(
    ("vendor", "system", "tag"),
    [
        (Vendor.AMD, "Linux", "rocm72"),
        (Vendor.AMD, "Windows", "hip-radeon"),
        (Vendor.INTEL, "Linux", "vulkan"),
        (Vendor.APPLE, "Darwin", "metal"),
    ],
)
def test_wheels_of_other_vendors(
    vendor: Vendor, system: str, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware.platform, "system", lambda: system)
    assert f"/whl/{tag} " in remedy(vendor, "1.2.3")
