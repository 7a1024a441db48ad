"""Descriptions: what is refused and why, identity across quantizations, sizes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from ggprune.errors import InputError, MismatchError, UnsupportedModelError
from ggprune.model import ExpertCounts, describe, open_model
from ggprune.model.architectures import ARCHITECTURES, gating_of
from tests.support.tiny import write_tiny


def write(path: Path, architecture: str, keys: dict[str, object], **tensors: object) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        (writer.add_array if isinstance(value, list) else add)(key, value)
    for name, data in tensors.items():
        writer.add_tensor(name.replace("__", "."), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_describes(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.gguf", "deepseek2"))
    assert model.refusal is None
    assert (model.experts, model.experts_used) == (16, 4)
    assert len(model.mtp_layers) == 1 and model.mtp_layers[0] == model.layers - 1
    assert 0 not in model.moe_layers, "the first layer is dense"
    per_expert = sum(
        tensor.nbytes
        for tensor in model.gguf.tensors
        if "_exps." in tensor.name or "gate_inp." in tensor.name or "exp_probs" in tensor.name
    )
    assert model.expert_bytes == per_expert


@pytest.mark.parametrize(
    ("keys", "tensors", "reason"),
    [
        ({"llama.block_count": 1}, {}, "dense"),
        ({"general.type": "mmproj"}, {}, "mmproj"),
        ({"general.type": "adapter"}, {}, "adapter"),
        ({"general.type": "imatrix"}, {}, "importance matrix"),
        ({"llama.expert_count": 4, "llama.expert_used_count": 2}, {}, "no expert tensors"),
        (
            {"llama.expert_count": 4, "llama.expert_used_count": 2, "llama.block_count": 1},
            {"blk__0__ffn_mystery_exps__weight": np.zeros((4, 2, 32), np.float32)},
            "ffn_mystery_exps.weight",
        ),
        (
            {"llama.expert_count": 4, "llama.expert_used_count": 2, "llama.block_count": 1},
            {"blk__0__ffn_up_exps__weight": np.zeros((3, 2, 32), np.float32)},
            "32 x 2 x 3, not 4 experts",
        ),
        (
            {"llama.expert_count": 4, "llama.expert_used_count": 2, "llama.block_count": 1},
            {"blk__0__ffn_up_exps__weight": np.zeros((4, 2, 32), np.float32)},
            "no router",
        ),
        (
            {"llama.expert_count": 4, "llama.expert_used_count": 5, "llama.block_count": 1},
            {"blk__0__ffn_up_exps__weight": np.zeros((4, 2, 32), np.float32)},
            "5 of 4 experts are used",
        ),
        (
            {"llama.expert_count": 1100, "llama.expert_used_count": 2, "llama.block_count": 1},
            {
                "blk__0__ffn_up_exps__weight": np.zeros((1100, 1, 32), np.float32),
                "blk__0__ffn_gate_inp__weight": np.zeros((1100, 32), np.float32),
            },
            "1,100 experts in a layer; llama.cpp aborts at more than 1,024",
        ),
        (
            {"llama.expert_count": [4, 4], "llama.expert_used_count": 2, "llama.block_count": 2},
            {},
            "expert_count is a list, one number for each layer",
        ),
        (
            {"llama.expert_count": [4, 4], "llama.expert_used_count": 2, "llama.block_count": 2},
            {"blk__0__ffn_up_exps__weight": np.zeros((4, 2, 32), np.float32)},
            "expert_count is a list, one number for each layer",
        ),
    ],
)
def test_refuses(tmp_path: Path, keys, tensors, reason: str) -> None:
    model = describe(write(tmp_path / "m.gguf", "llama", keys, **tensors))
    assert reason in str(model.refusal)
    with pytest.raises(UnsupportedModelError, match=r"m\.gguf: cannot be pruned"):
        model.prunable()


def test_refuses_unknown_architectures(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "novelmoe", {"novelmoe.expert_count": 4})
    assert "novelmoe" in str(describe(path).refusal)


def test_unknown_tensor_is_named_with_its_shape(tmp_path: Path) -> None:
    keys = {"llama.expert_count": 4, "llama.expert_used_count": 2}
    data = np.zeros((4, 2, 32), np.float32)
    path = write(tmp_path / "m.gguf", "llama", keys, blk__0__ffn_new_exps__weight=data)
    assert "blk.0.ffn_new_exps.weight" in str(describe(path).refusal)
    assert "32 x 2 x 4" in str(describe(path).refusal)


def test_identity_ignores_quantization(tmp_path: Path) -> None:
    one = open_model(write_tiny(tmp_path / "f32.gguf", "qwen3moe", dtype="F32")).identity()
    two = open_model(write_tiny(tmp_path / "q8.gguf", "qwen3moe", dtype="Q8_0")).identity()
    other = open_model(write_tiny(tmp_path / "b.gguf", "qwen3moe", seed=1)).identity()
    assert one == two
    one.check_same(two, "a", "b")
    with pytest.raises(MismatchError, match="router"):
        one.check_same(other, "a", "b")


@pytest.mark.parametrize("counts", [ExpertCounts(64, 8), ExpertCounts(256, 8, 8, 4)])
def test_possible_counts(counts: ExpertCounts) -> None:
    for keep in range(counts.experts + 3):
        # llama.cpp: as many in each group, two at least, enough for the top-k.
        per_group, rest = divmod(keep, counts.groups)
        fits = (
            rest == 0
            and keep <= counts.experts
            and per_group * counts.groups_used >= counts.used
            and (counts.groups == 1 or per_group >= 2)
        )
        if fits:
            counts.check(keep)
        else:
            with pytest.raises(InputError, match=f"keep={keep}:"):
                counts.check(keep)


def test_nearest_counts_are_named() -> None:
    with pytest.raises(InputError) as caught:
        ExpertCounts(256, 8, 8, 4).check(100)
    assert "96 or 104" in caught.value.remedy
    with pytest.raises(InputError) as caught:
        ExpertCounts(64, 8).check(3)
    assert "8" in caught.value.remedy
    # All 64 would be refused again: nothing would be pruned.
    for counts, most in ((ExpertCounts(64, 8), 63), (ExpertCounts(64, 8, 8, 4), 56)):
        with pytest.raises(InputError, match="keep=65: the model has 64") as caught:
            counts.check(65)
        assert caught.value.remedy == f"The largest count that prunes: {most}."


def test_describe_does_not_need_a_name(tmp_path: Path) -> None:
    from ggprune.gguf_file import GgufModel

    with GgufModel(write_tiny(tmp_path / "m.gguf", "olmoe")) as files:
        assert describe(files).name == "tiny olmoe"


def test_billions_of_claimed_layers(tmp_path: Path) -> None:
    keys = {"nextn_predict_layers": 2**32 - 1}
    path = write_tiny(tmp_path / "m.gguf", "deepseek2", keys=keys, layers=2)
    assert "MTP" in (describe(path).refusal or "MTP")


def test_architecture_that_is_not_a_string(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.kv_data[0].pop("general.architecture")
    writer.add_array("general.architecture", [1, 2, 3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "no general.architecture" in str(describe(tmp_path / "m.gguf").refusal)


@pytest.mark.parametrize(
    ("layers", "tokens", "gating"),
    [
        (47, 154880, "sigmoid"),
        (48, 154880, "sigmoid"),
        (47, 1000, "softmax"),
        (27, 154880, "softmax"),
    ],
)
@pytest.mark.parametrize("mtp", [0, 1])
def test_glm_flash_is_sigmoid_without_the_key(
    tmp_path: Path, layers: int, tokens: int, gating: str, mtp: int
) -> None:
    """As llama.cpp decides (src/models/deepseek2.cpp); block_count includes MTP layers."""
    metadata = {"block_count": layers + mtp, "nextn_predict_layers": mtp, "vocab_size": tokens}
    row = ARCHITECTURES["deepseek2"]
    assert gating_of(row, metadata).value == gating
    assert gating_of(row, {**metadata, "expert_gating_func": 1}).value == "softmax"


def test_the_vocabulary_is_counted_where_no_key_says(tmp_path: Path) -> None:
    with describe(write_tiny(tmp_path / "m.gguf", "qwen3moe")) as model:
        assert model.metadata["vocab_size"] == len(model.gguf.get("tokenizer.ggml.tokens"))


def test_a_gating_that_llama_cpp_does_not_know_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "glm4moe", keys={"expert_gating_func": 9})
    assert "expert_gating_func is 9" in str(describe(path).refusal)
