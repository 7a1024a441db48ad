"""Memory: the formula against what llama.cpp plans, and what it really allocates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ggprune.errors import InputError
from ggprune.llama.library import library
from ggprune.llama.memory import Use, planned, weight_bytes
from ggprune.llama.options import CACHE_TYPES
from ggprune.llama.runtime import NEWEST, without_mmap
from ggprune.model import MoeModel, open_model
from tests.support import tiny
from tests.support.kv_cache import cache_bytes
from tests.support.tiny import write_tiny

MIB = 1 << 20
#: llama.cpp prints two decimals of MiB for each of up to two caches.
ROUNDED = 0.011 * MIB

FULL = ["qwen3moe", "llama", "glm4moe"]
SLIDING = [
    "gemma4", "gpt-oss", "afmoe", "cohere2moe", "exaone-moe", "granite_swa", "laguna", "llama4",
    "maple", "mellum", "mimo2", "smallthinker", "step35",
]  # fmt: skip
MLA = ["deepseek2", "mistral4"]


def caches_mtp(model: MoeModel) -> bool:
    """Whether llama.cpp keeps keys and values for layers that decoding does not run."""
    return bool(model.mtp_layers) and library().version != NEWEST


def allocated(path: Path, use: Use) -> tuple[float, float, float]:
    """Load for real: bytes of the buffers for weights, cache and computing."""
    api = library().api
    with library().listening() as lines:
        parameters = api.llama_model_default_params()
        parameters.use_extra_bufts = False
        without_mmap(parameters)
        model = api.llama_model_load_from_file(str(path).encode(), parameters)
        wanted = api.llama_context_default_params()
        wanted.n_ctx, wanted.n_seq_max = use.context * use.parallel, use.parallel
        wanted.type_k = wanted.type_v = CACHE_TYPES[use.kv_type]
        wanted.n_ubatch = use.ubatch
        wanted.swa_full = False
        context = api.llama_init_from_model(model, wanted)
        assert context, lines[-3:]
        api.llama_free(context)
        api.llama_model_free(model)
    text = "".join(lines)

    def found(what: str) -> float:
        return sum(float(n) for n in re.findall(rf"{what} buffer size = +([\d.]+) MiB", text)) * MIB

    return found("model"), found("KV"), found("compute") + found("output")


@pytest.mark.llama
@pytest.mark.parametrize("architecture", FULL + SLIDING + MLA)
@pytest.mark.parametrize(
    "use",
    [Use(context=4096), Use(context=1024, parallel=3)],
    ids=["one sequence", "three"],
)
def test_the_formula_is_what_llama_cpp_plans(architecture: str, use: Use, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", architecture)
    model = open_model(path)
    if caches_mtp(model):
        pytest.skip("this release keeps a cache for MTP layers too")
    formula = cache_bytes(model, use)
    assert formula is not None
    plan = planned(model, use)
    assert abs(formula - plan.cache) <= ROUNDED + 0.01 * plan.cache, (formula, plan.cache)


@pytest.mark.llama
@pytest.mark.parametrize("architecture", ["qwen3moe", "gemma4", "deepseek2"])
@pytest.mark.parametrize("parallel", [1, 4])
def test_within_five_percent_of_what_is_allocated(
    architecture: str, parallel: int, tmp_path: Path
) -> None:
    path = write_tiny(tmp_path / "m.gguf", architecture)
    use = Use(context=8192, parallel=parallel)
    model = open_model(path)
    weights, cache, compute = allocated(path, use)
    plan, formula = planned(model, use), cache_bytes(model, use)
    assert plan.total == pytest.approx(weights + cache + compute, rel=0.05)
    assert plan.weights == pytest.approx(weights, rel=0.05, abs=ROUNDED)
    assert caches_mtp(model) or formula == pytest.approx(cache, rel=0.01, abs=2 * ROUNDED)


@pytest.mark.llama
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_quantized_caches(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny.DIMENSIONS, "head", 64)
    path = tiny.write_tiny(tmp_path / "m.gguf", "qwen3moe")
    use = Use(context=4096, kv_type=kind)
    formula = cache_bytes(open_model(path), use)
    assert formula == pytest.approx(planned(open_model(path), use).cache, abs=2 * ROUNDED)
    # By hand: 2 layers, keys and values of 64, in blocks of 32.
    block = {"f16": 64, "q8_0": 34, "q4_0": 18}[kind]
    assert formula == 4096 * 2 * 2 * 2 * block


def test_weights_with_fewer_experts(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe", experts=16)
    fewer = write_tiny(tmp_path / "f.gguf", "qwen3moe", experts=8)
    expected = sum(tensor.nbytes for tensor in open_model(fewer).gguf.tensors)
    assert weight_bytes(open_model(path), 8) == expected


@pytest.mark.llama
def test_recurrent_layers_are_left_to_llama_cpp(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3next")
    model = open_model(path)
    assert cache_bytes(model, Use(context=1024)) is None
    assert planned(model, Use(context=1024)).cache > 0


@pytest.mark.llama
def test_an_unknown_cache_type(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.gguf", "qwen3moe"))
    with pytest.raises(InputError, match="q3_0"):
        planned(model, Use(context=1024, kv_type="q3_0"))
