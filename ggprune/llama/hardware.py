"""GPUs of this machine, and how to get a llama.cpp that uses one it leaves idle."""

from __future__ import annotations

import enum
import json
import logging
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggprune.llama import vulkan
from ggprune.llama.devices import Device, Kind, devices
from ggprune.llama.library import library
from ggprune.llama.options import RunOptions

log = logging.getLogger(__name__)

#: Prebuilt wheels, by backend: the index that llama-cpp-python's documentation names.
WHEELS = "https://abetlen.github.io/llama-cpp-python/whl"
#: CUDA versions with wheels, newest first; a driver runs programs of its own version or older.
CUDA = ((13, 2), (13, 0), (12, 5), (12, 4), (12, 3), (12, 2), (12, 1), (11, 8))
_SECONDS = 10


class Vendor(enum.Enum):
    """Who made a GPU; the value is what llama.cpp's names of its devices contain."""

    NVIDIA = "NVIDIA"
    AMD = "AMD"
    INTEL = "Intel"
    APPLE = "Apple"


#: PCI numbers, as Linux lists them.
_PCI = {"0x10de": Vendor.NVIDIA, "0x1002": Vendor.AMD, "0x8086": Vendor.INTEL}
#: Backends whose devices are always of one vendor, whatever the description says.
_BACKENDS = {"CUDA": Vendor.NVIDIA, "ROCm": Vendor.AMD, "HIP": Vendor.AMD, "MTL": Vendor.APPLE}


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that the operating system knows."""

    vendor: Vendor
    name: str


def machine_gpus(root: Path = Path("/")) -> list[Gpu]:
    """List the GPUs of this machine, whether llama.cpp can use them or not.

    Args:
        root: of the file system in which Linux describes its devices.
    """
    system = platform.system()
    if system == "Linux":
        return _linux(root)
    if system == "Darwin":
        return [Gpu(Vendor.APPLE, "Apple GPU")] if platform.machine() == "arm64" else []
    if system == "Windows":
        script = "(Get-CimInstance Win32_VideoController).Name"
        return _named(_output("powershell", "-NoProfile", "-Command", script).splitlines())
    return []


def vulkan_devices() -> tuple[list[Gpu], list[str]]:
    """List the GPUs that Vulkan offers, and the names of devices that it has in software."""
    found = json.loads(_output(sys.executable, vulkan.__file__) or "[]")
    gpus = [
        Gpu(vendor, name)
        for kind, number, name in found
        if kind in (vulkan.INTEGRATED, vulkan.DISCRETE) and (vendor := _PCI.get(f"{number:#06x}"))
    ]
    return gpus, [name for kind, _, name in found if kind == vulkan.SOFTWARE]


def idle_gpus(gpus: Iterable[Gpu], devices: Sequence[Device]) -> list[Gpu]:
    """Leave out the GPUs whose vendor one of llama.cpp's devices belongs to."""
    used = {
        vendor
        for device in devices
        if device.kind in (Kind.GPU, Kind.INTEGRATED)
        for vendor in Vendor
        if _is_of(device, vendor)
    }
    return [gpu for gpu in gpus if gpu.vendor not in used]


def remedy(vendor: Vendor, version: str) -> str:
    """Give the command that installs a llama-cpp-python which uses a vendor's GPUs.

    Args:
        version: of llama-cpp-python that ggprune is tested with.
    """
    if vendor is Vendor.NVIDIA:
        newest = cuda_version()
        if newest is None:
            return "Install NVIDIA's driver first: nvidia-smi does not run here."
        fitting = next((pair for pair in CUDA if pair <= newest), CUDA[-1])
        tag = "cu{}{}".format(*fitting)
    elif vendor is Vendor.AMD:
        tag = "hip-radeon" if platform.system() == "Windows" else "rocm72"
    else:
        tag = "metal" if vendor is Vendor.APPLE else "vulkan"
    return wheel(tag, version)


def wheel(tag: str, version: str) -> str:
    """Return the command that installs a prebuilt wheel."""
    return (
        "pip install --force-reinstall --no-deps --only-binary :all: "
        f"--extra-index-url {WHEELS}/{tag} llama-cpp-python=={version}"
    )


def warn_of_idle_gpus(options: RunOptions) -> None:
    """Log in one line that a GPU of this machine is not used, and what mends it.

    Integrated Intel GPUs are left out: nearly every laptop has one, and few gain by it. Nothing
    is said to who asked for no layers on the GPU.
    """
    if options.gpu_layers == 0:
        return
    idle = [g for g in idle_gpus(machine_gpus(), devices()) if g.vendor is not Vendor.INTEL]
    if idle:
        log.warning(
            "%s stands idle: this llama-cpp-python was built without it. -> %s",
            idle[0].name,
            remedy(idle[0].vendor, library().version),
        )


def free_memory() -> tuple[int, int]:
    """Free and total bytes of this machine's memory; zeros where the system does not say.

    Linux counts what caches would give back as free (MemAvailable).
    """
    found = dict(re.findall(r"^(\w+): +(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE))
    if "MemAvailable" in found:
        return int(found["MemAvailable"]) * 1024, int(found["MemTotal"]) * 1024
    return next(((d.free, d.total) for d in devices() if d.kind is Kind.CPU), (0, 0))


def cuda_version() -> tuple[int, int] | None:
    """Newest CUDA that the installed driver runs; None without a working driver."""
    match = re.search(r"CUDA Version: (\d+)\.(\d+)", _output("nvidia-smi"))
    return (int(match[1]), int(match[2])) if match else None


def _is_of(device: Device, vendor: Vendor) -> bool:
    backend = re.match(r"[A-Za-z]*", device.name)
    owner = _BACKENDS.get(backend[0]) if backend else None
    return owner is vendor or (owner is None and vendor.value in device.description)


def _linux(root: Path) -> list[Gpu]:
    found = [
        Gpu(Vendor.NVIDIA, match[1].strip())
        for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
        if (match := re.search(r"^Model:\s*(.+)$", _read(path), re.MULTILINE))
    ]
    # Under Windows' Linux there is no such folder, but there is nvidia-smi.
    names = re.findall(r"^GPU \d+: (.+?)(?: \(|$)", _output("nvidia-smi", "-L"), re.MULTILINE)
    if root == Path("/") and not found:
        found = [Gpu(Vendor.NVIDIA, name) for name in names]
    has_driver = bool(found)
    for card in sorted(root.glob("sys/class/drm/card*/device")):
        if not re.fullmatch(r"card\d+", card.parent.name):
            continue  # card0-HDMI-A-1 is an output of card0.
        vendor = _PCI.get(_read(card / "vendor").strip())
        if vendor is None or (vendor is Vendor.NVIDIA and has_driver):
            continue
        found.append(Gpu(vendor, f"{vendor.value} GPU {_read(card / 'device').strip()}".strip()))
    return found


def _named(lines: Iterable[str]) -> list[Gpu]:
    return [
        Gpu(vendor, line.strip())
        for line in lines
        for vendor in Vendor
        if vendor.value.lower() in line.lower() or (vendor is Vendor.AMD and "Radeon" in line)
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    """Return what a program prints; nothing where it is not installed or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout if result.returncode == 0 else ""
