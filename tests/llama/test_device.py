"""All that touches a model, on a device other than the CPU, beside the same on the CPU.

Runs where llama.cpp has such a device: a GPU, or Vulkan in software (``make test-vulkan``). What
is measured is printed, for docs/scaling.md.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import ggprune
from ggprune.calibration.checkpoint import Checkpoint
from ggprune.calibration.generate import generate
from ggprune.calibration.statistics import Statistics
from ggprune.errors import Interrupted
from ggprune.evaluation.probe import builtin_probes
from ggprune.llama import devices, norms
from ggprune.llama.callback import layer_node
from ggprune.llama.devices import offload_devices
from ggprune.llama.library import library
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.llama.tensor import TensorView
from tests.support.evaluating import random_plan
from tests.support.tiny import write_tiny

# As text: to look is to load llama.cpp.
pytestmark = [
    pytest.mark.llama,
    pytest.mark.timeout(3000),
    pytest.mark.skipif("not offload_devices()", reason="llama.cpp has no device but the CPU"),
]

EXACT: dict[str, Any] = {
    **{"threads": 1, "repack": False, "flash_attn": "off"},
    **{"cache_type_k": "f32", "cache_type_v": "f32"},
}
DEVICE = RunOptions(**EXACT)
# No device at all: with gpu_layers=0 large products would still be computed there.
CPU = RunOptions(**EXACT, split_mode="none", main_gpu=-1)

TEXT = Path(__file__).parents[2] / "fixtures" / "search"
SETTINGS = ggprune.Settings(ctx=128, generate=0, max_tokens=128)
#: A token's experts may differ where two of them are nearly as good: relative difference of the
#: last chosen score and the first one not chosen.
NEAR = 0.02
#: Devices multiply in half precision unless they are told not to; then weights in single precision
#: give the same choices, and sums within this.
PRECISE = "GGML_VK_DISABLE_F16" in os.environ
FLOAT = 1e-3
#: Share of choices that may differ.
MOVED = 0.01


@pytest.fixture(scope="module", params=["trained", "sigmoid", "grouped"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Softmax, and trained; sigmoid with a selection bias; the same in groups of experts."""
    if request.param == "trained":
        found: Path = request.getfixturevalue("trained")
        return found
    architecture = {"sigmoid": "glm4moe", "grouped": "bailingmoe2"}[request.param]
    file = tmp_path_factory.mktemp("model") / f"{request.param}.gguf"
    return write_tiny(file, architecture, layers=5)


@pytest.fixture(scope="module")
def reference(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in F32: the CPU rounds activations for quantized ones, a device does not."""
    if path.stem in ("sigmoid", "grouped"):
        return path
    folder = tmp_path_factory.mktemp("f32")
    options = ggprune.QuantizeOptions(allow_requantize=True)
    ggprune.quantize(path, ["F32"], folder, options=options)
    return next(folder.glob("*.gguf"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "m.gguf", "glm4moe", layers=6)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Any:
    """Print past what pytest captures."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(f"\n  {line}", end="", flush=True)

    return show


def texts(*names: str) -> dict[str, Path]:
    return {name: TEXT / f"{name}.txt" for name in names}


def calibrated(path: Path, options: RunOptions, **more: Any) -> Statistics:
    how = {"text": texts("german"), "settings": SETTINGS, **more}
    return ggprune.calibrate(path, options=options, **how)


def buffers(lines: list[str]) -> dict[str, float]:
    """MiB of weights by buffer, as llama.cpp logs them."""
    found = re.findall(r"(\S+) model buffer size = +([\d.]+) MiB", "".join(lines))
    return {name: float(size) for name, size in found}


class Routing:
    """What the router scored, and which experts were chosen, by layer; nothing is reduced."""

    SCORES = ("ffn_moe_probs", "ffn_moe_probs_biased", "ffn_moe_probs_masked")

    def __init__(self) -> None:
        self.scores: dict[int, np.ndarray] = {}
        self.chosen: dict[int, np.ndarray] = {}
        self.elsewhere = 0

    def wants(self, name: str) -> bool:
        node = layer_node(name)
        return node is not None and node[0] in (*self.SCORES, "ffn_moe_topk")

    def receive(self, name: str, tensor: TensorView) -> bool:
        node = layer_node(name)
        assert node is not None
        self.elsewhere += not tensor.on_host
        kept = self.chosen if node[0] == "ffn_moe_topk" else self.scores
        kept[node[1]] = tensor.array()[0, 0].copy()
        return True


def routing(path: Path, options: RunOptions) -> Routing:
    found = Routing()
    with LlamaModel(path, options) as model:
        ids = model.tokenize((TEXT / "german.txt").read_text()[:2000])[:128]
        with LlamaContext(model, n_ctx=128, observers=[found]) as context:
            context.decode([Tokens(0, 0, ids, "all")])
    return found


def test_every_token_that_chooses_otherwise_had_a_near_tie(
    path: Path, reference: Path, say: Any
) -> None:
    """Up to the first other choice a token can know of: what follows is computed from it."""
    ours, theirs = routing(path, DEVICE), routing(reference, CPU)
    assert ours.elsewhere > 0 and theirs.elsewhere == 0
    assert ours.chosen.keys() == theirs.chosen.keys()
    clean, other, gaps = np.iinfo(np.int32).max, 0, [0.0]
    for layer in sorted(theirs.chosen):
        mine, others = (np.sort(each.chosen[layer], axis=1) for each in (ours, theirs))
        differing = np.flatnonzero((mine != others).any(axis=1))
        other += len(differing)
        for token in differing[differing < clean]:
            scores = np.sort(theirs.scores[layer][token])[::-1]
            last, first = scores[mine.shape[1] - 1], scores[mine.shape[1]]
            gaps.append(float((last - first) / abs(last)))
        clean = min(clean, *differing, clean)
    total = sum(len(each) for each in theirs.chosen.values())
    say(f"{path.stem}: {other} of {total} tokens chose otherwise; widest tie {max(gaps):.1e}")
    assert max(gaps) < NEAR


def test_calibration_gives_the_cpus_statistics(
    path: Path, reference: Path, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduced: list[str] = []
    copied: list[str] = []
    reduce, read = norms._DeviceNorms.__call__, TensorView.array

    def counting(self: Any, tensor: TensorView) -> Any:
        reduced.append(tensor.name)
        return reduce(self, tensor)

    def reading(self: TensorView) -> Any:
        if not self.on_host and 0 not in self.shape:
            copied.append(self.name)
        return read(self)

    monkeypatch.setattr(norms._DeviceNorms, "__call__", counting)
    monkeypatch.setattr(TensorView, "array", reading)
    ours = calibrated(path, DEVICE).total
    assert reduced and not any("weighted" in name or "down" in name for name in copied)
    monkeypatch.undo()
    theirs = calibrated(reference, CPU).total

    assert np.array_equal(ours.tokens, theirs.tokens)
    assert np.array_equal(ours.count.sum(axis=1), theirs.count.sum(axis=1))
    other = np.abs(ours.count - theirs.count)
    same = (other == 0) & (theirs.count > 0)
    apart = {}
    for name in ("gate_sum", "norm_sum", "norm_sq_sum", "contribution_sum", "norm_max"):
        mine, others = getattr(ours, name)[same], getattr(theirs, name)[same]
        apart[name] = float(np.max(np.abs(mine - others) / np.abs(others)))
    moved = other.sum() / 2
    whole = ours.contribution_sum.sum() / theirs.contribution_sum.sum() - 1
    say(
        f"{path.stem}: {moved:.0f} of {theirs.count.sum()} choices differ, so "
        f"{(other > 0).sum()} of {other.size} counts, by {other.max()} at most;"
        f" where they agree Σ g‖f‖ by {apart['contribution_sum']:.1e}, in all {abs(whole):.1e}"
    )
    assert moved <= MOVED * theirs.count.sum()
    assert abs(whole) < 1e-2
    if PRECISE and path.stem in ("sigmoid", "grouped"):
        assert not other.any() and max(apart.values()) < FLOAT


def test_an_importance_matrix(path: Path, reference: Path, tmp_path: Path, say: Any) -> None:
    files = {}
    for name, model, options in (("device", path, DEVICE), ("cpu", reference, CPU)):
        files[name] = tmp_path / f"{name}.gguf"
        ggprune.imatrix(model, files[name], text=texts("german"), ctx=64, chunks=1, options=options)
    ours, theirs = (
        {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(file).tensors}
        for file in files.values()
    )
    assert ours.keys() == theirs.keys()
    dense = [name for name in ours if name.endswith(".in_sum2") and "exps" not in name]
    apart = max(
        float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max())
        for name in dense
    )
    counts = [name for name in ours if name.endswith(".counts")]
    other = sum(float(np.abs(ours[name] - theirs[name]).sum()) / 2 for name in counts)
    whole = sum(float(theirs[name].sum()) for name in counts)
    say(f"{path.stem}: importance matrix within {apart:.1e}, counts {other:.0f} of {whole:.0f}")
    assert apart < 0.02
    assert other <= MOVED * whole


def test_a_mask_costs_what_the_pruned_file_costs(
    path: Path, reference: Path, tmp_path: Path, say: Any
) -> None:
    with ggprune.open_model(path) as model:
        plan = random_plan(model, model.experts * 3 // 4)
    pruned = tmp_path / "pruned.gguf"
    ggprune.apply(path, plan, pruned)
    how: dict[str, Any] = {"text": texts("german"), "ctx": 64, "max_tokens": 64}
    masked = ggprune.evaluate(path, plan, options=DEVICE, **how).total
    cpu = ggprune.evaluate(reference, plan, options=CPU, **how).total
    file = ggprune.evaluate(path, pruned, options=DEVICE, **how).total
    say(f"{path.stem}: KL masked {masked.kld_mean:.4f}, file {file.kld_mean:.4f}, "
        f"masked on the CPU {cpu.kld_mean:.4f}")  # fmt: skip
    assert masked.kld_mean == pytest.approx(file.kld_mean, rel=1e-3, abs=1e-6)
    assert masked.kld_mean == pytest.approx(cpu.kld_mean, rel=0.05, abs=1e-4)
    assert masked.ppl_ratio == pytest.approx(cpu.ppl_ratio, rel=0.01)


def test_an_importance_matrix_of_experts_on_the_cpu(tiny: Path, tmp_path: Path) -> None:
    """Their products may be computed on the device all the same, from copies of the weights."""
    names = []
    for name, options in (("some", PLACES["no experts"]), ("cpu", CPU)):
        file = tmp_path / f"{name}.gguf"
        ggprune.imatrix(tiny, file, text=texts("german"), ctx=64, chunks=1, options=options)
        names.append({tensor.name for tensor in gguf.GGUFReader(file).tensors})
    assert names[0] == names[1]


PLACES = {
    "three layers": RunOptions(**EXACT, gpu_layers=3),
    "no experts": RunOptions(**EXACT, cpu_moe=True),
    "experts of the first layers": RunOptions(**EXACT, n_cpu_moe=3),
    "a pattern": RunOptions(**EXACT, override_tensor=(r"blk\.[24]\.ffn_down_exps=CPU",)),
}


@pytest.fixture(scope="module")
def on_cpu(tiny: Path) -> Statistics:
    return calibrated(tiny, CPU)


def assert_near(found: Statistics, wanted: Statistics) -> None:
    ours, theirs = found.total, wanted.total
    assert np.array_equal(ours.tokens, theirs.tokens)
    assert np.abs(ours.count - theirs.count).sum() / 2 <= MOVED * theirs.count.sum()
    np.testing.assert_allclose(
        ours.contribution_sum.sum(axis=1), theirs.contribution_sum.sum(axis=1), rtol=2e-3
    )


@pytest.mark.parametrize("place", PLACES)
def test_a_part_on_the_device(place: str, tiny: Path, on_cpu: Statistics, say: Any) -> None:
    with library().listening() as lines:
        found = calibrated(tiny, PLACES[place])
    sizes = buffers(lines)
    name = offload_devices()[0].name
    assert sizes[name] > 0 and any(key.startswith("CPU") for key in sizes), sizes
    say(f"{place}: " + ", ".join(f"{key} {size} MiB" for key, size in sizes.items()))
    assert_near(found, on_cpu)


def test_what_fits_into_free_memory(
    tiny: Path, on_cpu: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device says how much is free; half of the model's bytes are, and the rest stays out."""
    device = offload_devices()[0]
    assert 0 < device.free <= device.total
    room = devices._MARGIN + tiny.stat().st_size // 2 + 300 * 512 * 4
    small = replace(device, free=room)
    monkeypatch.setattr(devices, "offload_devices", lambda: [small])
    with library().listening() as lines:
        found = calibrated(tiny, DEVICE)
    sizes = buffers(lines)
    assert 0 < sizes[device.name] < tiny.stat().st_size / 2 / 2**20, sizes
    assert_near(found, on_cpu)


def test_greedy_answers(trained: Path) -> None:
    """The same words until two are nearly as likely; the first tokens never are here."""
    answers = []
    for options in (DEVICE, CPU):
        with LlamaModel(trained, options) as model:
            prompts = [model.tokenize(text) for text in ("Die Kirche", "the people of")]
            answers.append(generate(model, prompts, max_tokens=6, parallel=2))
    same = sum(mine == others for mine, others in zip(*answers, strict=True))
    assert same >= 1, answers


def test_probe(tiny: Path) -> None:
    with ggprune.open_model(tiny) as model:
        plan = random_plan(model, 12)
    how: dict[str, Any] = {"modes": ("greedy",), "max_tokens": 2, "probes": builtin_probes()[:2]}
    found = ggprune.probe(tiny, plan, options=DEVICE, **how)
    wanted = ggprune.probe(tiny, plan, options=CPU, **how)
    assert found.keys() == wanted.keys()


@dataclass
class Asked:
    """Statistics on a file of their own, so that choosing may run the model again."""

    model: Path
    statistics: Path


@pytest.fixture(scope="module")
def asked(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    file = tmp_path_factory.mktemp("statistics") / "s.gguf"
    calibrated(tiny, CPU, output=file)
    return Asked(tiny, file)


def test_sweep(asked: Asked) -> None:
    how: dict[str, Any] = {"keeps": (12, 8), "text": texts("german"), "ctx": 64, "max_tokens": 64}
    curves = [
        ggprune.sweep(asked.model, asked.statistics, options=options, **how)
        for options in (DEVICE, CPU)
    ]
    ours, theirs = ([point.evaluation.total.kld_mean for point in curve.points] for curve in curves)
    np.testing.assert_allclose(ours, theirs, rtol=0.02)


@pytest.mark.parametrize("method", ["search", "easy-ep"])
def test_methods_that_run_the_model(method: str, asked: Asked, tmp_path: Path) -> None:
    unseen = tmp_path / "french.txt"
    unseen.write_text((TEXT / "french.txt").read_text()[:900])
    how: dict[str, Any] = {
        **{"model": asked.model, "keep": 8, "method": method, "search_plans": 1},
        **{"text": texts("german"), "search_text": {"french": unseen}, "super_experts": False},
    }
    ours, theirs = (
        ggprune.choose(asked.statistics, options=options, **how) for options in (DEVICE, CPU)
    )
    kept = [{(n, e) for n, layer in p.layers.items() for e in layer.keep} for p in (ours, theirs)]
    assert len(kept[0] & kept[1]) >= 0.9 * len(kept[1])


class Stopping:
    """A progress bar that gets Ctrl-C after some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, total: int, what: str, unit: str, *, initial: int = 0) -> Any:
        return self

    def __enter__(self) -> Any:
        return self.step

    def __exit__(self, *_: object) -> None: ...

    def step(self, _: int) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def default_signals() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupting:
    """Gets Ctrl-C at the first node of many."""

    def __init__(self) -> None:
        self.seen = 0

    def wants(self, name: str) -> bool:
        return name.startswith("ffn_moe_topk-")

    def receive(self, name: str, tensor: TensorView) -> bool:
        self.seen += 1
        if self.seen == 1:
            signal.raise_signal(signal.SIGINT)
        return True


@pytest.mark.usefixtures("default_signals")
def test_ctrl_c_ends_a_batch(tiny: Path) -> None:
    """llama.cpp asks whether to go on only while the CPU computes."""
    observer = Interrupting()
    with (
        LlamaModel(tiny, replace(DEVICE, gpu_layers=999)) as model,
        LlamaContext(model, n_ctx=64, observers=[observer]) as context,
        pytest.raises(KeyboardInterrupt),
    ):
        context.decode([Tokens(0, 0, range(3, 35))])
    assert observer.seen == 1


@pytest.mark.usefixtures("default_signals")
def test_ctrl_c_in_the_middle(tiny: Path, tmp_path: Path) -> None:
    """What was gathered is kept, memory of the device is given back, and the run goes on."""
    settings = ggprune.Settings(ctx=16, generate=0, max_tokens=256)
    how: dict[str, Any] = {"settings": settings, "text": texts("german")}
    options = replace(DEVICE, ubatch=16)
    output = tmp_path / "s.gguf"
    free = offload_devices()[0].free
    with pytest.raises(Interrupted):
        calibrated(tiny, options, output=output, progress=Stopping(2), **how)
    assert Checkpoint.load(tmp_path / "s.gguf.partial").done > 0
    assert offload_devices()[0].free >= free - (64 << 20)
    ours = calibrated(tiny, options, output=output, **how)
    assert_near(ours, calibrated(tiny, options, **how))
