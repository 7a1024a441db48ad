"""Statistics against an independent computation: each MoE layer once more, in NumPy.

The layer's input is read from the running graph; routing and experts are computed from the
weights in the file (read with the gguf package), by the formulas of the model's paper.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from ggprune.calibration.observers import RoutingObserver
from ggprune.calibration.statistics import PER_EXPERT, ExpertSums
from ggprune.errors import LlamaError
from ggprune.llama.norms import NormReader
from ggprune.llama.options import RunOptions
from ggprune.llama.runtime import TENSOR_NB
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.llama.tensor import TensorView
from ggprune.model import open_model
from ggprune.text.builtin import HELD_OUT, builtin_texts
from tests.support.llama_ctypes import loaded
from tests.support.tiny import write_tiny

TOKENS = np.random.default_rng(7).integers(3, 259, 60).tolist()
Array = NDArray[np.float64]


def options(**changes: object) -> RunOptions:
    return RunOptions(**{"threads": 1, "gpu_layers": 0, "repack": False, **changes})


def observed(
    path: Path,
    tokens: Sequence[int] = TOKENS,
    norms: NormReader | None = None,
    **changes: object,
) -> ExpertSums:
    """What ggprune's observer sees."""
    model = open_model(path)
    architecture = model.architecture
    assert architecture is not None
    observer = RoutingObserver(architecture, model.moe_layers, model.experts, norms=norms)
    with (
        LlamaModel(path, options(**changes)) as llama,
        LlamaContext(llama, n_ctx=max(256, len(tokens)), observers=[observer]) as context,
    ):
        for at in range(0, len(tokens), context.n_batch):
            context.decode([Tokens(0, at, tokens[at : at + context.n_batch])])
    return observer.take()


@dataclass
class Layer:
    """Weights of one layer as float64, and the model's keys."""

    weights: dict[str, Array]
    keys: dict[str, object]
    used: int

    def __getitem__(self, name: str) -> Array:
        return self.weights[name]


def layers_of(path: Path) -> dict[int, Layer]:
    reader = gguf.GGUFReader(path)
    keys = {field.rpartition(".")[2]: value.contents() for field, value in reader.fields.items()}
    found: dict[int, Layer] = {}
    for tensor in reader.tensors:
        prefix, number, name = [*tensor.name.split(".", 2), "", ""][:3]
        if prefix == "blk":
            layer = found.setdefault(int(number), Layer({}, keys, int(keys["expert_used_count"])))
            data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            layer.weights[name] = np.asarray(data, np.float64)
    return {n: layer for n, layer in found.items() if "ffn_gate_inp.weight" in layer.weights}


def rms_norm(x: Array, layer: Layer, weight: str = "") -> Array:
    scale = np.sqrt((x * x).mean(-1, keepdims=True) + layer.keys["layer_norm_rms_epsilon"])
    return x / scale * (layer[weight] if weight else 1.0)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@dataclass
class Routed:
    """Of one layer: chosen experts and gates [tokens, used], outputs [tokens, used, n_embd]."""

    chosen: NDArray[np.int64]
    gates: Array
    outputs: Array


def gemma4(attn_out: Array, layer: Layer, chosen: NDArray[np.integer] | None = None) -> Routed:
    """Gemma 4: router on the scaled input, softmax, renormalised; GELU; a scale for each expert."""
    x = rms_norm(attn_out, layer, "pre_ffw_norm_2.weight")
    router_input = rms_norm(attn_out, layer) / np.sqrt(x.shape[-1]) * layer["ffn_gate_inp.scale"]
    probs = softmax(router_input @ layer["ffn_gate_inp.weight"].T)
    if chosen is None:
        chosen = np.argsort(-probs, axis=-1, kind="stable")[:, : layer.used]
    gates = np.take_along_axis(probs, chosen, -1)
    gates /= gates.sum(-1, keepdims=True)
    both = np.einsum("td,tufd->tuf", x, layer["ffn_gate_up_exps.weight"][chosen])
    gate, up = np.split(both, 2, axis=-1)
    down = layer["ffn_down_exps.weight"][chosen]
    outputs = np.einsum("tuf,tudf->tud", gelu(gate) * up, down)
    return Routed(chosen, gates, outputs * layer["ffn_down_exps.scale"][chosen][..., None])


def glm4moe(x: Array, layer: Layer, chosen: NDArray[np.integer] | None = None) -> Routed:
    """GLM-4.5: sigmoid; the bias chooses but does not weigh; renormalised and scaled; SwiGLU."""
    probs = 1 / (1 + np.exp(-x @ layer["ffn_gate_inp.weight"].T))
    if chosen is None:
        biased = probs + layer["exp_probs_b.bias"]
        chosen = np.argsort(-biased, axis=-1, kind="stable")[:, : layer.used]
    gates = np.take_along_axis(probs, chosen, -1)
    if layer.keys["expert_weights_norm"]:
        gates /= gates.sum(-1, keepdims=True)
    return Routed(chosen, gates * layer.keys["expert_weights_scale"], swiglu(x, layer, chosen))


def qwen2moe(x: Array, layer: Layer) -> Routed:
    """Qwen 2 MoE: softmax, not renormalised; SwiGLU."""
    probs = softmax(x @ layer["ffn_gate_inp.weight"].T)
    chosen = np.argsort(-probs, axis=-1, kind="stable")[:, : layer.used]
    return Routed(chosen, np.take_along_axis(probs, chosen, -1), swiglu(x, layer, chosen))


def swiglu(x: Array, layer: Layer, chosen: NDArray[np.int64]) -> Array:
    gate = np.einsum("td,tufd->tuf", x, layer["ffn_gate_exps.weight"][chosen])
    up = np.einsum("td,tufd->tuf", x, layer["ffn_up_exps.weight"][chosen])
    return np.einsum("tuf,tudf->tud", silu(gate) * up, layer["ffn_down_exps.weight"][chosen])


#: By architecture: the node that is the input of `compute`, and how the layer continues.
FORWARD: dict[str, tuple[str, Callable[..., Routed]]] = {
    "gemma4": ("attn_out", gemma4),
    "glm4moe": ("post_attn_norm", glm4moe),
    "qwen2moe": ("ffn_norm", qwen2moe),
}


def expected(path: Path, architecture: str, tokens: Sequence[int] = TOKENS) -> dict[int, Routed]:
    """The MoE layers in NumPy, by layer."""
    node, compute = FORWARD[architecture]
    layers = layers_of(path)
    inputs: dict[int, Array] = {}
    names = {f"{node}-{layer}": layer for layer in layers}

    def keep(name: str, seen) -> None:
        inputs[names[name]] = seen.array[0, 0].astype(np.float64)

    with loaded(path) as model:
        model.run(tokens, keep, names.__contains__)
    return {n: compute(inputs[n], layers[n]) for n in sorted(inputs)}


def summed(routed: dict[int, Routed], experts: int) -> ExpertSums:
    """The sums by their definition, token by token."""
    sums = ExpertSums.zeros(len(routed), experts)
    for row, layer in enumerate(routed.values()):
        sums.tokens[row] = len(layer.chosen)
        norms = np.sqrt((layer.outputs**2).sum(-1))
        for token, slot in np.ndindex(layer.chosen.shape):
            expert, g, f = layer.chosen[token, slot], layer.gates[token, slot], norms[token, slot]
            sums.count[row, expert] += 1
            sums.gate_sum[row, expert] += g
            sums.norm_sum[row, expert] += f
            sums.norm_sq_sum[row, expert] += f * f
            sums.contribution_sum[row, expert] += g * f
            sums.norm_max[row, expert] = max(sums.norm_max[row, expert], f)
    return sums


def assert_equal(found: ExpertSums, wanted: ExpertSums, tolerance: float = 1e-3) -> None:
    assert np.array_equal(found.tokens, wanted.tokens)
    assert np.array_equal(found.count, wanted.count)
    for name in PER_EXPERT:
        np.testing.assert_allclose(
            getattr(found, name), getattr(wanted, name), rtol=tolerance, err_msg=name
        )


@pytest.mark.llama
@pytest.mark.parametrize("architecture", FORWARD)
def test_sums_equal_a_forward_pass_in_numpy(tmp_path: Path, architecture: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", architecture)
    found = observed(path)
    assert_equal(found, summed(expected(path, architecture), experts=16))
    assert (found.tokens == len(TOKENS)).all(), "the last layer sees every token too"


class Inputs:
    """Keeps the inputs of the layers with experts, and which experts llama.cpp chose."""

    def __init__(self, node: str) -> None:
        self.kinds = (node, "ffn_moe_topk")
        self.seen: dict[str, NDArray[Any]] = {}

    def wants(self, name: str) -> bool:
        return name.rpartition("-")[0] in self.kinds

    def receive(self, name: str, tensor: TensorView) -> bool:
        self.seen[name] = tensor.array()[0, 0].copy()
        return True


def given_routing(path: Path, architecture: str) -> tuple[ExpertSums, ExpertSums]:
    """Sums as observed, and in NumPy from what each layer got and chose in the same pass.

    Rounding differs between processors, and of two experts that are nearly as good another may
    be chosen; what a layer does with its inputs does not.
    """
    model = open_model(path)
    node, compute = FORWARD[architecture]
    inputs = Inputs(node)
    observer = RoutingObserver(model.architecture, model.moe_layers, model.experts, cut=False)
    with (
        LlamaModel(path, options()) as llama,
        LlamaContext(llama, n_ctx=256, observers=[inputs, observer]) as context,
    ):
        context.decode([Tokens(0, 0, TOKENS)])
    routed = {
        number: compute(
            inputs.seen[f"{node}-{number}"].astype(np.float64),
            layer,
            inputs.seen[f"ffn_moe_topk-{number}"],
        )
        for number, layer in layers_of(path).items()
        if number in model.moe_layers
    }
    return observer.take(), summed(routed, experts=model.experts)


@pytest.mark.llama
def test_sums_equal_a_forward_pass_in_numpy_for_f16(tmp_path: Path) -> None:
    # llama.cpp rounds a matrix product's input to F16 for F16 weights; that stays below 1e-3.
    path = write_tiny(tmp_path / "m.gguf", "glm4moe", dtype="F16")
    assert_equal(*given_routing(path, "glm4moe"))


@pytest.mark.llama
def test_sums_of_the_trained_model_equal_a_forward_pass_in_numpy(trained: Path) -> None:
    """Q8_0: llama.cpp rounds the inputs of a product to 8 bits.

    That is a part in 254 of the largest number in a block, twice in an expert; over the tokens of
    a layer it averages out.
    """
    found, wanted = given_routing(trained, "gemma4")
    assert np.array_equal(found.count, wanted.count)
    np.testing.assert_allclose(found.gate_sum, wanted.gate_sum, rtol=1e-5)
    for name in ("norm_sum", "norm_sq_sum", "contribution_sum", "norm_max"):
        values, others = getattr(found, name), getattr(wanted, name)
        np.testing.assert_allclose(values, others, rtol=4e-2, err_msg=name)
        np.testing.assert_allclose(values.sum(1), others.sum(1), rtol=1e-2, err_msg=name)


@pytest.mark.llama
def test_chosen_experts_are_a_strided_view(tmp_path: Path) -> None:
    """Read linearly, the ids are plausible nonsense: this shows that the data is strided."""
    path = write_tiny(tmp_path / "m.gguf", "glm4moe")
    strided, linear = [], []

    def look(name: str, node) -> None:
        array = node.array
        strided.append(array[0, 0].copy())
        flat = np.ndarray(array.shape, array.dtype, array.base, strides=None)
        linear.append(flat[0, 0].copy())

    with loaded(path) as model:
        model.run(TOKENS, look, {"ffn_moe_topk-1", "ffn_moe_topk-2"}.__contains__)
    found = observed(path).count
    for row, (right, wrong) in enumerate(zip(strided, linear, strict=True)):
        assert np.array_equal(found[row], np.bincount(right.ravel(), minlength=16))
        assert not np.array_equal(found[row], np.bincount(wrong.ravel(), minlength=16))


@pytest.mark.llama
@pytest.mark.parametrize("architecture", ["gemma4", "glm4moe", "jamba"])
@pytest.mark.parametrize("changes", [{"threads": 2}, {"ubatch": 32}, {"ubatch": 7}])
def test_how_it_is_computed_does_not_change_counts(
    tmp_path: Path, architecture: str, changes: dict[str, object]
) -> None:
    path = write_tiny(tmp_path / "m.gguf", architecture)
    assert_equal(observed(path, **changes), observed(path), tolerance=1e-5)


@pytest.mark.llama
@pytest.mark.parametrize("architecture", ["gemma4", "glm4moe", "llama4", "nemotron_h_moe"])
def test_norms_on_a_device_equal_those_in_place(tmp_path: Path, architecture: str) -> None:
    """Without another device, the graph that reduces there runs on the CPU's."""
    path = write_tiny(tmp_path / "m.gguf", architecture)
    assert_equal(observed(path, norms=NormReader(on_device=True)), observed(path), 1e-6)


@pytest.mark.llama
def test_norms_on_a_device_of_many_shapes(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "glm4moe")
    # Batches of 1, 2, … tokens: plans are made anew and thrown away.
    for size in (1, 2, 3, 4, 5, 6):
        found = observed(path, TOKENS[: size * 6], ubatch=size, norms=NormReader(on_device=True))
        assert_equal(found, observed(path, TOKENS[: size * 6], ubatch=size), 1e-6)


@pytest.mark.llama
def test_norms_on_a_device_of_no_tokens(tmp_path: Path) -> None:
    """Without logits, many architectures leave the last layer out."""
    with open_model(write_tiny(tmp_path / "m.gguf", "qwen3moe")) as model:
        observer = RoutingObserver(
            model.architecture, model.moe_layers, model.experts, norms=NormReader(on_device=True)
        )
        with (
            LlamaModel(model.gguf.path, RunOptions(threads=1)) as llama,
            LlamaContext(llama, n_ctx=64, observers=[observer]) as context,
        ):
            context.decode([Tokens(0, 0, [3, 4, 5], "none")])
    assert observer.take().tokens.tolist() == [3] * (len(model.moe_layers) - 1) + [0]


@pytest.mark.llama
def test_norms_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny(tmp_path / "m.gguf", "glm4moe")
    wanted = observed(path)
    monkeypatch.setattr("ggprune.llama.norms._PARALLEL_BYTES", 0)
    monkeypatch.setattr("ggprune.llama.norms._THREADS", 3)
    assert_equal(observed(path), wanted, 1e-12)


@pytest.mark.llama
def test_repacked_weights_give_the_same(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "glm4moe", dtype="Q8_0")
    found, wanted = observed(path, repack=True), observed(path)
    # Of two experts that are nearly as good, another may be chosen.
    np.testing.assert_allclose(found.norm_sum.sum(1), wanted.norm_sum.sum(1), rtol=1e-2)


class _Spoiled(RoutingObserver):
    """Makes one layer's ids linear, as a naive reader would see them."""

    def receive(self, name: str, tensor: TensorView) -> bool:
        if name.startswith("ffn_moe_topk"):
            import ctypes

            strides = (ctypes.c_size_t * 4).from_address(tensor.address + TENSOR_NB)
            kept = strides[1]
            strides[1] = 4 * tensor.shape[-1]
            try:
                return super().receive(name, tensor)
            finally:
                strides[1] = kept
        return super().receive(name, tensor)


@pytest.mark.llama
def test_reading_linearly_would_be_noticed(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "glm4moe")
    model = open_model(path)
    observer = _Spoiled(model.architecture, model.moe_layers, model.experts)
    with (
        LlamaModel(path, options()) as llama,
        LlamaContext(llama, n_ctx=256, observers=[observer]) as context,
    ):
        context.decode([Tokens(0, 0, TOKENS)])
    with pytest.raises(AssertionError):
        assert_equal(observer.take(), summed(expected(path, "glm4moe"), experts=16))


@pytest.mark.llama
def test_values_that_are_not_finite_stop_the_run(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen2moe")
    reader = gguf.GGUFReader(path, "r+")
    tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_down_exps.weight")
    tensor.data[:] = np.inf
    reader.data.flush()
    with pytest.raises(LlamaError, match="layer 1: experts compute values that are not finite"):
        observed(path)


@pytest.mark.train
def test_sums_equal_the_transformers_model() -> None:
    """Hooks on the transformers model, on the same tokens.

    GGPRUNE_HF_MODEL is the checkpoint, GGPRUNE_HF_GGUF the same model as a GGUF file in F32 or
    F16.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, path = os.environ.get("GGPRUNE_HF_MODEL"), os.environ.get("GGPRUNE_HF_GGUF")
    if not folder or not path:
        pytest.skip("GGPRUNE_HF_MODEL and GGPRUNE_HF_GGUF are not set")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with LlamaModel(Path(path), options()) as llama:
        text = builtin_texts(HELD_OUT)[0].documents[0].messages[-1].content
        tokens = llama.tokenize(text)[:200]
    exact = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attn": "off"}
    found = observed(Path(path), tokens, **exact)
    wanted = summed(hooked(model, tokens, torch), experts=found.count.shape[1])
    # llama.cpp takes GELU from a table of F16 numbers, so from the second layer on inputs differ a
    # little, and a token may choose another one of two experts that are equally good.
    moved = np.abs(found.count - wanted.count).sum(1) / wanted.count.sum(1)
    assert moved[0] == 0 and moved.max() < 0.01, moved
    same = found.count == wanted.count
    for name in PER_EXPERT:
        ours, theirs = (np.where(same, getattr(sums, name), 0) for sums in (found, wanted))
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-3, err_msg=name)
        difference = np.abs(ours - theirs).sum(1) / np.abs(theirs).sum(1)
        assert difference.max() < 1e-3, (name, difference)


def hooked(model, tokens: Sequence[int], torch) -> dict[int, Routed]:
    """Run a Gemma 4 model of transformers, and compute each chosen expert's output by itself."""
    routed: dict[int, Routed] = {}
    for number, layer in enumerate(model.model.layers):
        # The scale of an expert multiplies its gate here and its output in llama.cpp.
        scale = layer.router.per_expert_scale.detach()

        def hook(module, arguments, output, number=number, scale=scale) -> None:
            x, chosen, gates = (each.detach() for each in arguments)
            outputs = torch.zeros(*chosen.shape, x.shape[-1])
            for token, slot in np.ndindex(*chosen.shape):
                expert = chosen[token, slot]
                gate, up = (module.gate_up_proj[expert] @ x[token]).chunk(2)
                hidden = module.act_fn(gate) * up
                outputs[token, slot] = scale[expert] * (module.down_proj[expert] @ hidden)
            both = (gates / scale[chosen], outputs)
            arrays = (each.numpy().astype(np.float64) for each in both)
            routed[number] = Routed(chosen.numpy(), *arrays)

        layer.experts.register_forward_hook(hook)
    with torch.no_grad():
        model(torch.tensor([tokens]))
    return routed
