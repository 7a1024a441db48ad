"""What is here and what it means: software, devices, memory, and whether a model fits."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ggprune.errors import GgpruneError
from ggprune.util import human_size
from ggprune.version import VERSION

if TYPE_CHECKING:
    from ggprune.llama.hardware import Gpu
    from ggprune.model import MoeModel
    from ggprune.text.documents import Document
    from ggprune.types import Advance

_SECONDS = 10
#: Tokens of the answers by which the time of a calibration is reckoned.
_ANSWER = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what, in a word or two; the key of the JSON output.
        remedy: what to do about it; empty where all is well.
        is_broken: whether ggprune cannot work until the remedy is done.
    """

    subject: str
    text: str
    remedy: str = ""
    is_broken: bool = False


def diagnose(model: Path | None = None) -> list[Finding]:
    """Look at everything ggprune depends on, and whether and where a model fits.

    What is broken is a finding, not an error.

    Raises:
        InputError, FormatError: the model cannot be read.
    """
    findings = [*_software(), *_llama(), *_machine(model), *_neighbours()]
    if model is not None:
        findings.extend(_fit(model))
    return findings


def _software() -> Iterator[Finding]:
    from ggprune.llama.runtime import NEWEST, RELEASES

    yield Finding("ggprune", VERSION)
    system = f"{platform.system()} {platform.machine()}"
    yield Finding("Python", f"{platform.python_version()} on {system}")
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    remedy = "" if version in RELEASES else f"pip install llama-cpp-python=={NEWEST}"
    yield Finding("llama-cpp-python", version or "not installed", remedy, is_broken=not version)


def _llama() -> Iterator[Finding]:
    from ggprune.llama import hardware, rpc
    from ggprune.llama.devices import backends, devices
    from ggprune.llama.library import library
    from ggprune.llama.safety import extra_buffers_work

    gpus = hardware.machine_gpus()
    offered, software = hardware.vulkan_devices()
    known = {gpu.vendor for gpu in gpus}
    gpus += [gpu for gpu in offered if gpu.vendor not in known]
    try:
        found, names = devices(), backends()
        release = library().ggml["ggml_version"]().decode()
        yield Finding("llama.cpp", f"with ggml {release}, in {Path(library().path).parent}")
        yield Finding("backends", ", ".join(names))
        for device in found:
            memory = f", {human_size(device.free)} free of {human_size(device.total)}"
            kind = "" if device.kind.name in device.name else f" ({device.kind.name})"
            described = f"{device.name}{kind}: {device.description}"
            yield Finding("device", described + (memory if device.total else ""))
        idle = hardware.idle_gpus(gpus, found)
        yield from _idle(idle)
        if not idle:
            yield Finding("GPUs", "all in use" if gpus else "none found in this machine")
        used = {device.description for device in found}
        idle_software = [name for name in software if name not in used]
        yield from _software_devices(idle_software, is_built_in="Vulkan" in names)
        yield Finding("RPC", "built in" if rpc.is_built_in() else "not built in")
        if extra_buffers_work():
            yield Finding("quantized products", "compute with this CPU's own instructions")
        else:
            yield Finding(
                "quantized products",
                "this build crashes in the instructions made for this CPU; ggprune goes round them",
                "Nothing has to be done. Faster: CMAKE_ARGS=-DGGML_NATIVE=OFF pip install "
                f"--force-reinstall --no-cache-dir llama-cpp-python=={library().version}",
            )
    except GgpruneError as error:
        yield Finding("llama.cpp", error.message, error.remedy, is_broken=True)
        yield from _idle(gpus)
        yield from _software_devices(software, is_built_in=False)


def _idle(gpus: Sequence[Gpu]) -> Iterator[Finding]:
    from ggprune.llama import hardware
    from ggprune.llama.runtime import NEWEST

    for gpu in gpus:
        yield Finding(
            "idle GPU",
            f"{gpu.name}: the installed llama-cpp-python does not use it",
            hardware.remedy(gpu.vendor, NEWEST),
        )


def _software_devices(names: Sequence[str], *, is_built_in: bool) -> Iterator[Finding]:
    from ggprune.llama import hardware
    from ggprune.llama.runtime import NEWEST

    install = "" if is_built_in else f"{hardware.wheel('vulkan', NEWEST)}; "
    for name in names:
        yield Finding(
            "software device",
            f"{name}: Vulkan computed by the CPU, not used; nothing is lost",
            f"To try things on a device all the same: {install}export GGML_VK_VISIBLE_DEVICES=0",
        )


def _machine(model: Path | None) -> Iterator[Finding]:
    from ggprune.llama.hardware import free_memory

    free, total = free_memory()
    if total:
        yield Finding("memory", f"{human_size(free)} free of {human_size(total)}")
    folder, disk = Path.cwd(), shutil.disk_usage(Path.cwd())
    size = model.stat().st_size if model is not None and model.is_file() else 0
    remedy = f"A result may need {human_size(size)}: free some, or write elsewhere with -o."
    yield Finding(
        "disk", f"{human_size(disk.free)} free in {folder}", remedy if disk.free < size else ""
    )


def _neighbours() -> Iterator[Finding]:
    from ggprune.hub.client import has_token

    program, said = shutil.which("ollama"), ""
    if program:
        command = [program, "--version"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(
                command, capture_output=True, text=True, timeout=_SECONDS, check=False
            ).stdout
    version = said.partition("\n")[0] or program
    yield Finding("Ollama", version or "not found (only needed to run the result there)")
    token = "there" if has_token() else "none (only needed for push and for gated models)"
    yield Finding("Hub token", token)


def _fit(path: Path) -> Iterator[Finding]:
    from ggprune.llama.devices import Kind, fit, offload_devices
    from ggprune.llama.hardware import free_memory
    from ggprune.llama.options import RunOptions
    from ggprune.model import open_model

    model = open_model(path)
    with model.gguf:
        yield Finding("model", f"{model.name}: {human_size(model.gguf.size)}")
        yes = f"yes: {model.experts} experts a layer"
        yield Finding("prunable", f"no: {model.refusal}" if model.refusal else yes)
        try:
            gpus = offload_devices()
        except GgpruneError:
            return
        room = sum(gpu.free for gpu in gpus if gpu.kind is Kind.GPU)
        free, _ = free_memory()
        if free and model.gguf.size > free + room:
            yield Finding(
                "fits",
                f"no: {human_size(model.gguf.size)} are more than the memory that is free",
                "It runs from disk, slowly. Calibrate a smaller quantization of the same model "
                "instead: its statistics fit this file.",
            )
        elif gpus:
            placed = fit(model.gguf, gpus, RunOptions())
            layers = "all" if placed.gpu_layers is None else placed.gpu_layers
            where = f"{layers} layers on the GPU"
            if placed.n_cpu_moe:
                where += f", the experts of the first {placed.n_cpu_moe} layers on the CPU"
            yield Finding("fits", f"yes: {where}")
        else:
            yield Finding("fits", "yes: on the CPU")
        if not model.refusal:
            yield _calibration_time(model)


def _calibration_time(model: MoeModel) -> Finding:
    """Calibrate on the two shortest built-in prompts of each domain, and reckon with all."""
    from ggprune.calibration.run import Run
    from ggprune.calibration.settings import Settings
    from ggprune.llama.options import RunOptions
    from ggprune.text.builtin import CALIBRATION
    from ggprune.text.load import load_or_builtin

    moments: dict[str, list[tuple[float, int]]] = {}

    @contextlib.contextmanager
    def timing(total: int, what: str, unit: str, *, initial: int = 0) -> Iterator[Advance]:
        times = moments[what] = [(time.perf_counter(), 0)]
        yield lambda done: times.append((time.perf_counter(), done))

    sources = load_or_builtin((), CALIBRATION)
    few = [
        replace(each, documents=tuple(sorted(each.documents, key=_length)[:2])) for each in sources
    ]
    settings = Settings(generate=_ANSWER)
    try:
        Run(model, few, settings, RunOptions(), timing).run()
    except GgpruneError as error:
        return Finding("calibration", f"fails: {error.message}", error.remedy)
    documents, tried = ([d for each in part for d in each.documents] for part in (sources, few))
    longer = sum(map(_length, documents)) / sum(map(_length, tried))
    read, written = moments["calibrating"], moments.get("generating", [])
    tokens = sum(done for _, done in read)
    pace = (read[-1][0] - read[0][0]) / tokens
    # One token for each prompt, after the first, for which the prompts were read.
    step = (written[-1][0] - written[-1 - len(tried)][0]) / len(tried) if written else 0.0
    answers = len(documents) * Settings().generate if step else 0
    # Prompts are read twice where they are answered: to answer, and with the answer.
    seconds = (tokens * longer * (2 if step else 1) + answers) * pace + answers * step
    speeds = f"reads {1 / pace:,.0f} tokens a second"
    speeds += f", writes {1 / step:,.0f}" if step else ""
    return Finding(
        "calibration",
        f"about {timedelta(seconds=round(seconds))} for the built-in prompts: {speeds} "
        f"(tried on {tokens})",
    )


def _length(document: Document) -> int:
    return sum(len(message.content) for message in document.messages)
