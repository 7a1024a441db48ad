"""Loading, decoding, observing, generating; where tensors go."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ggprune.calibration.generate import Sampling, generate
from ggprune.cli import options
from ggprune.errors import InputError, LlamaError
from ggprune.gguf_file import GgufModel
from ggprune.llama import devices
from ggprune.llama.callback import layer_node
from ggprune.llama.devices import Device, Kind
from ggprune.llama.library import others_running
from ggprune.llama.options import CACHE_TYPES, RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.llama.tensor import TensorView, node_name
from tests.support.llama_ctypes import loaded
from tests.support.tiny import write_tiny

EXACT = {"threads": 1, "repack": False, "gpu_layers": 0, "flash_attn": "off"}
OPTIONS = RunOptions(**EXACT, cache_type_k="f32", cache_type_v="f32")
TOKENS = np.random.default_rng(7).integers(3, 259, 40).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "m.gguf", "glm4moe", layers=4)


class Watching:
    """Notes which nodes it received; ends the graph after one, or raises at one."""

    def __init__(self, *names: str, last: str = "", failing: str = "") -> None:
        self.names, self.last, self.failing = names, last, failing
        self.seen: list[str] = []

    def wants(self, name: str) -> bool:
        return name in self.names

    def receive(self, name: str, tensor: TensorView) -> bool:
        self.seen.append(name)
        if name == self.failing:
            raise RuntimeError(f"at {name}")
        return name != self.last


def decode(path: Path, *observers: Watching, ubatch: int = 512) -> np.ndarray:
    options = replace(OPTIONS, ubatch=ubatch, flash_attn="off")
    with (
        LlamaModel(path, options) as model,
        LlamaContext(model, n_ctx=256, n_batch=64, observers=observers) as context,
    ):
        context.decode([Tokens(0, 0, TOKENS)])
        return context.all_logits(len(TOKENS)).copy()


@pytest.mark.llama
def test_logits_equal_those_of_plain_llama(path: Path) -> None:
    with loaded(path) as model:
        wanted = model.run(TOKENS)
    np.testing.assert_allclose(decode(path), wanted, atol=1e-4)
    watching = Watching("ffn_moe_topk-1", "ffn_moe_weighted-2")
    np.testing.assert_allclose(decode(path, watching), wanted, atol=1e-4)
    assert watching.seen == ["ffn_moe_topk-1", "ffn_moe_weighted-2"]


@pytest.mark.llama
def test_whole_names_are_matched(path: Path) -> None:
    """``ffn_moe_weighted-1 (view)`` is not ``ffn_moe_weighted-1``."""
    watching = Watching("ffn_moe_weighted-1")
    decode(path, watching)
    assert watching.seen == ["ffn_moe_weighted-1"]
    assert layer_node("ffn_moe_weighted-1 (view)") is None
    assert layer_node("ffn_moe_weighted-12") == ("ffn_moe_weighted", 12)
    assert node_name(b"CUDA0#ffn_moe_topk-3#0") == "ffn_moe_topk-3"


@pytest.mark.llama
def test_the_graph_ends_where_nobody_needs_more(path: Path) -> None:
    first, rest = "ffn_moe_weighted-1", "ffn_moe_weighted-2"
    watching = Watching(first, rest, last=first)
    decode(path, watching)
    assert watching.seen == [first]
    # Each ubatch has a graph of its own.
    watching = Watching(first, rest, last=first)
    decode(path, watching, ubatch=16)
    assert watching.seen == [first] * 3
    # Another observer still wants the rest.
    both = Watching(first, rest, last=first), Watching(first, rest)
    decode(path, *both)
    assert both[1].seen == [first, rest]


@pytest.mark.llama
def test_an_exception_in_an_observer_comes_out(path: Path) -> None:
    """In a ctypes callback it would only be printed, and the run would go on with garbage."""
    watching = Watching("ffn_moe_topk-1", "ffn_moe_topk-2", failing="ffn_moe_topk-1")
    with pytest.raises(RuntimeError, match=r"at ffn_moe_topk-1$"):
        decode(path, watching, ubatch=8)
    assert watching.seen == ["ffn_moe_topk-1"]


@pytest.mark.llama
def test_parallel_answers_equal_single_ones(path: Path) -> None:
    prompts = [TOKENS[:5], TOKENS[5:20], TOKENS[20:23], TOKENS[3:9]]
    for sampling in (Sampling(), Sampling(temperature=0.8, top_p=0.9, seed=3)):
        with LlamaModel(path, OPTIONS) as model:
            together = generate(model, prompts, max_tokens=12, parallel=3, sampling=sampling)
            alone = [
                generate(model, [p], max_tokens=12, sampling=sampling, streams=[i])[0]
                for i, p in enumerate(prompts)
            ]
        assert together == alone


@pytest.mark.llama
def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "glm4moe", keys={"attention.head_count": 0})
    with pytest.raises(LlamaError, match="cannot load this model"):
        LlamaModel(path, OPTIONS)


@pytest.mark.llama
def test_too_many_tokens(path: Path) -> None:
    with LlamaModel(path, OPTIONS) as model, LlamaContext(model, n_ctx=256) as context:
        for start in (0, 256):
            parts = [Tokens(0, start, (TOKENS * 7)[:256])]
            if start:
                with pytest.raises(LlamaError, match="stopped with 1 while"):
                    context.decode(parts)
            else:
                context.decode(parts)


@pytest.mark.llama
@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_every_type_of_cache(tmp_path: Path, kind: str) -> None:
    # Types of blocks need heads of at least 32.
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe", keys={"attention.key_length": 16}, layers=1)
    options = RunOptions(threads=1, repack=False, cache_type_k=kind)
    with LlamaModel(path, options) as model:
        if kind in ("f32", "f16", "bf16"):
            with LlamaContext(model, n_ctx=256) as context:
                context.decode([Tokens(0, 0, TOKENS)])
        else:
            with pytest.raises(LlamaError):
                LlamaContext(model, n_ctx=256)


# Where tensors go.


@pytest.mark.llama
def test_overrides_name_the_buffers_there_are(path: Path) -> None:
    for text in ("exps", "exps=", "exps=CUDA9", "=CPU"):
        with pytest.raises(InputError, match="there is no buffer") as caught:
            LlamaModel(path, RunOptions(override_tensor=(text,)))
        assert "CPU" in caught.value.remedy
    with pytest.raises(InputError, match=r"no tensor of .* matches"):
        LlamaModel(path, RunOptions(override_tensor=("experts=CPU",)))
    with pytest.raises(InputError, match="not a regular expression"):
        LlamaModel(path, RunOptions(override_tensor=("(=CPU",)))
    with pytest.raises(InputError, match="tensor_split=0,0"):
        LlamaModel(path, RunOptions(tensor_split=(0.0, 0.0)))


@pytest.mark.llama
def test_overrides_are_accepted(path: Path) -> None:
    for changes in (
        {"override_tensor": (r"blk\.1\..*=CPU",)},
        {"cpu_moe": True},
        {"n_cpu_moe": 2, "tensor_split": (1.0,)},
        {"split_mode": "none", "main_gpu": -1},
    ):
        options = RunOptions(threads=1, repack=False, **changes)
        with LlamaModel(path, options) as model, LlamaContext(model, n_ctx=256) as context:
            context.decode([Tokens(0, 0, TOKENS)])


@dataclass
class Placed:
    """What is on each device by llama.cpp's rules (load_tensors in src/llama-model.cpp)."""

    gguf: GgufModel
    offload: RunOptions

    def bytes_on(self, count: int) -> list[int]:
        layers = self.gguf.get(f"{self.gguf.get('general.architecture')}.block_count")
        offloaded = self.offload.gpu_layers
        on_gpu = layers + 1 if offloaded is None else min(offloaded, layers + 1)
        start = layers + 1 - on_gpu
        shares = np.cumsum(self.offload.tensor_split or (1.0,)).astype(np.float32)
        shares /= shares[-1]
        used = [0] * count
        for tensor in self.gguf.tensors:
            match = re.match(r"blk\.(\d+)\.", tensor.name)
            layer = int(match[1]) if match else layers
            if not match and not tensor.name.startswith("output"):
                continue
            if layer < start or ("_exps" in tensor.name and layer < self.offload.n_cpu_moe):
                continue
            share = np.float32((layer - start) / on_gpu)
            used[int(np.searchsorted(shares, share, side="right"))] += tensor.nbytes
        return used


def cards(*free: int) -> list[Device]:
    return [Device(0, f"CUDA{i}", "", Kind.GPU, each, 1 << 50) for i, each in enumerate(free)]


def fitted(gguf: GgufModel, monkeypatch: pytest.MonkeyPatch, *free: int) -> RunOptions:
    monkeypatch.setattr(devices, "_room", lambda device, *_: device.free)
    monkeypatch.setattr(devices, "_CACHE_TOKENS", 0)
    offload = devices.fit(gguf, cards(*free), RunOptions())
    for room, used in zip(free, Placed(gguf, offload).bytes_on(len(free)), strict=True):
        assert used <= room
    return offload


def test_what_fits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with GgufModel(path) as gguf:
        total = sum(tensor.nbytes for tensor in gguf.tensors)
        experts = sum(tensor.nbytes for tensor in gguf.tensors if "_exps" in tensor.name)
        assert devices.fit(gguf, [], RunOptions()) == RunOptions(gpu_layers=0)
        assert fitted(gguf, monkeypatch, total) == RunOptions()
        some = fitted(gguf, monkeypatch, total - experts // 2)
        assert some.gpu_layers is None and 0 < some.n_cpu_moe < 5
        few = fitted(gguf, monkeypatch, (total - experts) // 2)
        assert few.gpu_layers is not None and few.n_cpu_moe == 5
        assert fitted(gguf, monkeypatch, 0) == RunOptions(gpu_layers=0)
        # Less room never puts more on the card.
        sizes = [
            sum(Placed(gguf, fitted(gguf, monkeypatch, room)).bytes_on(1))
            for room in range(0, total, total // 50)
        ]
        assert sizes == sorted(sizes)


@pytest.mark.parametrize("shares", [(1, 1), (3, 1), (1, 5), (1, 2, 3), (1, 0, 1)])
def test_what_fits_on_several(
    path: Path, monkeypatch: pytest.MonkeyPatch, shares: Sequence[int]
) -> None:
    with GgufModel(path) as gguf:
        total = sum(tensor.nbytes for tensor in gguf.tensors)
        for room in range(0, 2 * total, total // 20):
            free = [room * share // sum(shares) for share in shares]
            fitted(gguf, monkeypatch, *free)


def test_memory_that_a_device_does_not_tell(path: Path) -> None:
    unknown = Device(0, "NPU", "", Kind.GPU, 0, 0)
    with GgufModel(path) as gguf:
        assert devices.fit(gguf, [unknown], RunOptions()) == RunOptions()


@pytest.mark.llama
def test_devices() -> None:
    found = devices.devices()
    assert any(device.kind is Kind.CPU and device.total > 0 for device in found)
    assert "CPU" in devices.buffer_types()


def test_options_of_the_command_line() -> None:
    import click

    found: list[RunOptions] = []

    @click.command()
    @options.of(RunOptions)
    def command(**arguments: object) -> None:
        assert set(arguments) == {field.name for field in dataclasses.fields(RunOptions)}
        found.append(options.grouped(arguments, run=RunOptions).pop("run"))

    line = (
        "--threads 3 -ngl 7 --cpu-moe --n-cpu-moe 4 -ot a=CPU,b=CPU -ot c=CPU --split-mode row "
        "--tensor-split 3,1 --main-gpu 1 --flash-attn on --cache-type-k q8_0 --cache-type-v bf16 "
        "--ubatch 64 --no-mmap --no-repack --rpc one:1,two:2 -v"
    )
    for arguments in ("", line):
        result = CliRunner().invoke(command, arguments.split(), catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert found[0] == RunOptions()
    assert found[1] == RunOptions(
        threads=3,
        gpu_layers=7,
        cpu_moe=True,
        n_cpu_moe=4,
        override_tensor=("a=CPU", "b=CPU", "c=CPU"),
        split_mode="row",
        tensor_split=(3.0, 1.0),
        main_gpu=1,
        flash_attn="on",
        cache_type_k="q8_0",
        cache_type_v="bf16",
        ubatch=64,
        mmap=False,
        repack=False,
        rpc=("one:1", "two:2"),
        verbose=True,
    )
    wrong = CliRunner().invoke(command, ["--tensor-split", "3,x"])
    assert "is not a list of numbers" in wrong.output


@pytest.mark.llama
@pytest.mark.parametrize(
    ("running", "given", "found"),
    [
        (0, {}, "5000 None"),
        (999, {}, "None passive"),
        (999, {"GOMP_SPINCOUNT": "7"}, "7 None"),
        (0, {"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_how_threads_wait(running: int, given: dict[str, str], found: str) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = (
        "import os; from ggprune.llama import library; "
        f"library.others_running = lambda: {running}; library.library(); "
        "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.strip().endswith(found)


@pytest.mark.parametrize(
    ("text", "others"), [("9.25 8.0 7.5 5/312 4711\n", 4.0), ("0.0 0.0 0.0 1/9 2\n", 0.0), ("?", 0)]
)
def test_how_many_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, others: float
) -> None:
    (tmp_path / "loadavg").write_text(text)
    monkeypatch.setattr("ggprune.llama.library._RUNNING", tmp_path / "loadavg")
    assert others_running() == others
    monkeypatch.setattr("ggprune.llama.library._RUNNING", tmp_path / "elsewhere")
    assert others_running() == 0


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="Linux only")
def test_who_else_runs() -> None:
    # Not compared with what ran before: tests beside this one come to an end meanwhile.
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(6)]
    try:
        time.sleep(0.5)
        assert others_running() >= 5
    finally:
        for process in busy:
            process.kill()
            process.wait()
