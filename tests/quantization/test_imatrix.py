"""Importance matrices: the files byte by byte, the sums beside other nodes of the same graph."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from ggprune.calibration.observers import RoutingObserver
from ggprune.cli.slice_imatrix import command as slice_command
from ggprune.errors import FormatError, InputError, LlamaError, MismatchError
from ggprune.gguf_file import GgufModel, write_files
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.llama.tensor import TensorView
from ggprune.model import open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.quantization.imatrix import Entry, Imatrix
from ggprune.quantization.importance import ImatrixObserver, gather
from ggprune.rewrite import plan_rewrite
from tests.support.tiny import write_tiny

OPTIONS = RunOptions(threads=1, gpu_layers=0, repack=False)
TOKENS = np.random.default_rng(5).integers(3, 259, 96).tolist()
DOWN = "blk.0.ffn_down_exps.weight"
ATTENTION = "blk.0.attn_q.weight"


def plan(keep: list[int], experts: int = 4) -> Plan:
    return Plan(len(keep), {0: LayerPlan(tuple(keep))}, experts=experts)


def hand_made() -> Imatrix:
    sums = np.arange(12, dtype=np.float32).reshape(4, 3)
    counts = np.array([2, 0, 5, 1], np.float32)
    dense = Entry(np.array([[4.0, 6.0]], np.float32), np.array([2], np.float32))
    return Imatrix({DOWN: Entry(sums, counts), ATTENTION: dense}, ("a.txt", "b.txt"), 3, 512)


def legacy_bytes() -> bytes:
    """As llama-imatrix wrote it: every number 32 bits, no counts for each expert."""
    data = struct.pack("<i", 2)
    for name, values in ((DOWN, np.arange(12)), (ATTENTION, np.array([4, 6]))):
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 2, len(values))
        data += values.astype("<f4").tobytes()
    return data + struct.pack("<ii", 7, 5) + b"a.txt"


# --- files


def test_gguf_file_as_the_gguf_package_reads_it(tmp_path: Path) -> None:
    hand_made().save(tmp_path / "i.gguf")
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    keys = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert keys == {
        "general.type": "imatrix",
        "imatrix.datasets": ["a.txt", "b.txt"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 512,
    }
    shapes = {t.name: tuple(t.shape.tolist()) for t in reader.tensors}
    assert shapes[f"{DOWN}.in_sum2"] == (3, 4)
    assert shapes[f"{DOWN}.counts"] == (1, 4)
    assert shapes[f"{ATTENTION}.counts"] == (1, 1)


def test_gguf_file_comes_back(tmp_path: Path) -> None:
    hand_made().save(tmp_path / "i.gguf")
    again = Imatrix.load(tmp_path / "i.gguf")
    assert again.datasets == ("a.txt", "b.txt")
    assert (again.chunks, again.chunk_size, again.legacy) == (3, 512, False)
    np.testing.assert_array_equal(again.entries[DOWN].sums, hand_made().entries[DOWN].sums)
    np.testing.assert_array_equal(again.entries[DOWN].counts, [2, 0, 5, 1])


def test_legacy_file_comes_back_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "old.dat").write_bytes(legacy_bytes())
    old = Imatrix.load(tmp_path / "old.dat")
    assert old.legacy and old.chunks == 7 and old.datasets == ("a.txt",)
    # Divided by the number of calls, as llama-quantize does.
    np.testing.assert_array_equal(old.entries[ATTENTION].means(), [2, 3])
    old.save(tmp_path / "new.dat")
    assert (tmp_path / "new.dat").read_bytes() == legacy_bytes()


def test_legacy_file_without_its_last_part(tmp_path: Path) -> None:
    (tmp_path / "old.dat").write_bytes(legacy_bytes()[:-13])
    assert Imatrix.load(tmp_path / "old.dat").chunks == 0


def test_means_are_one_for_experts_never_chosen() -> None:
    means = hand_made().entries[DOWN].means().reshape(4, 3)
    np.testing.assert_array_equal(means[1], [1, 1, 1])
    np.testing.assert_allclose(means[2], np.array([6, 7, 8]) / 5)


@pytest.mark.parametrize("length", [1, 3, 11, 60, 110])
def test_legacy_file_cut_short(tmp_path: Path, length: int) -> None:
    (tmp_path / "old.dat").write_bytes(legacy_bytes()[:length])
    with pytest.raises(InputError, match="not an importance matrix"):
        Imatrix.load(tmp_path / "old.dat")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Once upon a time there was an expert that nobody chose.")
    with pytest.raises(InputError, match="not an importance matrix"):
        Imatrix.load(tmp_path / "text")
    with pytest.raises(InputError, match="not an importance matrix"):
        Imatrix.load(write_tiny(tmp_path / "m.gguf", "qwen3moe", layers=1))
    with pytest.raises(InputError, match="cannot be read"):
        Imatrix.load(tmp_path / "none")
    broken = hand_made().entries[DOWN]
    broken.sums[0, 0] = np.nan
    Imatrix({DOWN: broken}).save(tmp_path / "nan.gguf")
    with pytest.raises(FormatError, match="not finite"):
        Imatrix.load(tmp_path / "nan.gguf")


# --- slicing


def test_slice_takes_the_kept_rows() -> None:
    cut = hand_made().sliced(plan([0, 2]))
    np.testing.assert_array_equal(cut.entries[DOWN].sums, [[0, 1, 2], [6, 7, 8]])
    np.testing.assert_array_equal(cut.entries[DOWN].counts, [2, 5])
    np.testing.assert_array_equal(cut.entries[ATTENTION].sums, [[4, 6]])
    assert (cut.datasets, cut.chunks) == (("a.txt", "b.txt"), 3)


def test_slice_legacy_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "old.dat").write_bytes(legacy_bytes())
    plan([1, 3]).save(tmp_path / "plan.json")
    words = [str(tmp_path / "old.dat"), "--plan", str(tmp_path / "plan.json"), "-o"]
    result = CliRunner().invoke(slice_command, [*words, str(tmp_path / "cut.dat")])
    assert result.exit_code == 0, result.output
    cut = Imatrix.load(tmp_path / "cut.dat")
    np.testing.assert_array_equal(cut.entries[DOWN].sums, [[3, 4, 5, 9, 10, 11]])
    assert cut.legacy and cut.entries[DOWN].counts == [2]


def test_slice_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="has 4 experts, the plan's model has 8"):
        hand_made().sliced(plan([0, 2], experts=8))
    with pytest.raises(MismatchError, match="4 experts"):
        hand_made().sliced(plan([0, 7], experts=0))
    dense = Imatrix({ATTENTION: hand_made().entries[ATTENTION]})
    with pytest.raises(MismatchError, match="no expert tensors"):
        dense.sliced(plan([0, 2]))
    (tmp_path / "old.dat").write_bytes(legacy_bytes())
    with pytest.raises(InputError, match="does not say how many experts"):
        Imatrix.load(tmp_path / "old.dat").sliced(plan([0, 2], experts=0))


# --- gathering


class Nodes:
    """Keeps what named nodes hold: the inputs of weights, from elsewhere in the graph."""

    def __init__(self, *names: str) -> None:
        self.kept: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in names}

    def wants(self, name: str) -> bool:
        return name in self.kept

    def receive(self, name: str, tensor: TensorView) -> bool:
        self.kept[name].append(tensor.array().copy())
        return True


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imatrix")
    return write_tiny(folder / "tiny.gguf", "qwen3moe", experts=32, used=2, layers=3, seed=3)


@pytest.mark.llama
def test_sums_equal_those_of_the_named_inputs(model: Path) -> None:
    """By hand: loops over tokens and experts, on nodes that have names."""
    observer = ImatrixObserver()
    nodes = Nodes("ffn_norm-2", "ffn_moe_topk-2", "attn_norm-1", "ffn_moe_swiglu-2")
    with (
        LlamaModel(model, OPTIONS) as llama,
        LlamaContext(llama, n_ctx=64, observers=[observer, nodes]) as context,
    ):
        context.decode([Tokens(0, 0, TOKENS[:64])])
    entries = observer.result([], 1, 64).entries
    attention = nodes.kept["attn_norm-1"][0][0, 0].astype(np.float64)
    np.testing.assert_allclose(
        entries["blk.1.attn_k.weight"].sums[0], (attention**2).sum(0), rtol=1e-5
    )
    inputs = nodes.kept["ffn_norm-2"][0][0, 0].astype(np.float64)
    hidden = nodes.kept["ffn_moe_swiglu-2"][0][0].astype(np.float64)
    chosen = nodes.kept["ffn_moe_topk-2"][0][0, 0]
    for name, width in (("up", 32), ("down", 64)):
        sums, counts = np.zeros((32, width)), np.zeros(32)
        for token, experts in enumerate(chosen):
            for slot, expert in enumerate(experts):
                x = inputs[token] if name == "up" else hidden[token, slot]
                sums[expert] += x * x
                counts[expert] += 1
        entry = entries[f"blk.2.ffn_{name}_exps.weight"]
        np.testing.assert_array_equal(entry.counts, counts)
        np.testing.assert_allclose(entry.sums, sums, rtol=1e-5)


@pytest.mark.llama
def test_which_weights_are_in_it(model: Path) -> None:
    with LlamaModel(model, OPTIONS) as llama:
        plain, _ = gather(llama, TOKENS, n_ctx=32)
        head, _ = gather(llama, TOKENS, n_ctx=32, head=True)
    with GgufModel(model) as file:
        matrices = {t.name for t in file.tensors if len(t.shape) > 1}
    layers = {name for name in matrices if name.startswith("blk.")}
    assert set(plain.result([], 3, 32).entries) == layers
    assert set(head.result([], 3, 32).entries) == layers | {"output.weight"}


@pytest.mark.llama
def test_every_token_counts_in_every_layer_whatever_the_ubatch(model: Path) -> None:
    results = []
    for ubatch in (16, 48):
        with LlamaModel(
            model, RunOptions(threads=1, gpu_layers=0, ubatch=ubatch, repack=False)
        ) as llama:
            observer, chunks = gather(llama, TOKENS, n_ctx=48)
        assert chunks == 2
        results.append(observer.result([], chunks, 48).entries)
    small, large = results
    for name, entry in small.items():
        np.testing.assert_array_equal(entry.counts, large[name].counts)
        np.testing.assert_allclose(entry.sums, large[name].sums, rtol=1e-3)
        expected = 192 if "exps" in name else 96
        assert entry.counts.sum() == expected, name


@pytest.mark.llama
def test_beside_the_observer_of_calibration(model: Path) -> None:
    description = open_model(model)
    routing = RoutingObserver(
        description.architecture, description.moe_layers, description.experts, cut=False
    )
    observer = ImatrixObserver()
    with (
        LlamaModel(model, OPTIONS) as llama,
        LlamaContext(llama, n_ctx=96, observers=[routing, observer]) as context,
    ):
        context.decode([Tokens(0, 0, TOKENS)])
    counts = routing.take().count
    entries = observer.result([], 1, 96).entries
    for row, layer in enumerate(description.moe_layers):
        np.testing.assert_array_equal(
            entries[f"blk.{layer}.ffn_down_exps.weight"].counts, counts[row]
        )


@pytest.mark.llama
def test_sliced_equals_gathered_on_the_pruned_model(model: Path, tmp_path: Path) -> None:
    """Experts that this text never chooses go, so routing stays as it was."""
    with LlamaModel(model, OPTIONS) as llama:
        observer, _ = gather(llama, TOKENS[:32], n_ctx=32)
    full = observer.result([], 1, 32)
    description = open_model(model)
    chosen = {
        layer: np.flatnonzero(full.entries[f"blk.{layer}.ffn_up_exps.weight"].counts)
        for layer in description.moe_layers
    }
    keep = max(map(len, chosen.values()))
    assert keep < 32
    layers = {}
    for layer, used in chosen.items():
        others = [expert for expert in range(32) if expert not in used]
        kept = sorted([*used.tolist(), *others[: keep - len(used)]])
        layers[layer] = LayerPlan(tuple(kept))
    rewrite = plan_rewrite(description, Plan(keep, layers), tmp_path / "pruned.gguf")
    write_files(rewrite.files, description.gguf)
    with LlamaModel(tmp_path / "pruned.gguf", OPTIONS) as llama:
        observer, _ = gather(llama, TOKENS[:32], n_ctx=32)
    pruned, sliced = observer.result([], 1, 32).entries, full.sliced(rewrite.plan).entries
    assert set(pruned) == set(sliced)
    for name, entry in pruned.items():
        np.testing.assert_array_equal(entry.counts, sliced[name].counts)
        np.testing.assert_allclose(
            entry.sums, sliced[name].sums, rtol=1e-4, atol=1e-9, err_msg=name
        )


@pytest.mark.llama
def test_too_little_text(model: Path) -> None:
    with LlamaModel(model, OPTIONS) as llama, pytest.raises(InputError, match="fewer than one"):
        gather(llama, TOKENS, n_ctx=128)


def test_nothing_gathered() -> None:
    with pytest.raises(LlamaError, match="no products"):
        ImatrixObserver().result([], 1, 32)


@pytest.mark.skipif(not shutil.which("llama-imatrix"), reason="llama-imatrix is not installed")
def test_equals_llama_imatrix(trained: Path, tmp_path: Path) -> None:
    text = Path(__file__).parents[2] / "fixtures" / "heldout" / "english.txt"
    (tmp_path / "t.txt").write_text(text.read_text()[:8000])
    words = ["llama-imatrix", "-m", trained, "-f", "t.txt", "-o", "ref.gguf", "-c", "256"]
    subprocess.run([*words, "-t", "2", "--no-ppl"], cwd=tmp_path, check=True, capture_output=True)
    with LlamaModel(trained, RunOptions(threads=2)) as llama:
        tokens = llama.tokenize((tmp_path / "t.txt").read_text().removesuffix("\n"))
        observer, chunks = gather(llama, tokens, n_ctx=256)
    theirs = Imatrix.load(tmp_path / "ref.gguf")
    ours = observer.result([], chunks, 256).entries
    assert set(ours) == set(theirs.entries) and chunks == theirs.chunks
    for name, entry in theirs.entries.items():
        np.testing.assert_array_equal(ours[name].counts, entry.counts)
        np.testing.assert_allclose(ours[name].sums, entry.sums, rtol=1e-4)


def test_slice_cuts_mtp_layers_by_the_rule_of_the_written_model() -> None:
    mtp = "blk.9.ffn_up_exps.weight"
    entries = {**hand_made().entries, mtp: hand_made().entries[DOWN]}
    cut = replace(hand_made(), entries=entries).sliced(plan([0, 2]))
    np.testing.assert_array_equal(cut.entries[mtp].counts, [2, 5])


def test_slice_refuses_a_layer_that_no_rule_is_for() -> None:
    entries = {**hand_made().entries, "blk.1.ffn_up_exps.weight": hand_made().entries[DOWN]}
    first = plan([0, 2])
    gap = replace(first, layers={0: first.layers[0], 2: first.layers[0]})
    with pytest.raises(MismatchError, match="has experts of layer 1, the plan has no such layer"):
        replace(hand_made(), entries=entries).sliced(gap)
