"""What is written: names, provenance, plans that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from ggprune.errors import InputError, MismatchError, VerificationError
from ggprune.gguf_file import GgufModel, write_files
from ggprune.model import open_model
from ggprune.plan import Plan
from ggprune.rewrite import plan_rewrite, restate, verify_bytes
from tests.support.tiny import write_tiny


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Gemma 4 26B A4B It", "Gemma 4 22.4B A4B It"),
        ("26B-A4B", "22.4B-A4B"),
        ("128x2.6B", "109x2.6B"),
        ("Fancy 128e", "Fancy 109e"),
        ("Fancy 128 experts", "Fancy 109 experts"),
        ("Gemma 4", "Gemma 4"),
        ("Release 128 of 7B", "Release 128 of 7B"),
        ("v26B4", "v26B4"),
    ],
)
def test_restate(before: str, after: str) -> None:
    total = 25_800_000_000
    assert restate(before, (128, 109), (total, round(total * 22.4 / 26))) == after


def hand_written(path: Path, keep: int, layers: dict[str, list[int]]) -> Plan:
    entries = {layer: {"keep": kept} for layer, kept in layers.items()}
    plan = {"format": "ggprune-plan", "version": 1, "keep": keep, "layers": entries}
    path.write_text(json.dumps(plan))
    return Plan.load(path)


def test_hand_written_plan(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.gguf", "olmoe", layers=2))
    plan = hand_written(tmp_path / "p.json", 5, {"0": [9, 1, 2, 3, 15], "1": [0, 1, 2, 3, 4]})
    rewrite = plan_rewrite(model, plan, tmp_path / "o.gguf")
    write_files(rewrite.files, model.gguf)
    source = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    reader = gguf.GGUFReader(tmp_path / "o.gguf")
    result = {t.name: t for t in reader.tensors}
    up = "blk.0.ffn_up_exps.weight"
    assert np.array_equal(result[up].data, source[up].data[[1, 2, 3, 9, 15]])
    assert reader.fields["olmoe.expert_count"].contents() == 5
    assert reader.fields["ggprune.source"].contents() == "m.gguf"
    assert reader.fields["ggprune.source_experts"].contents() == 16
    assert reader.fields["ggprune.plan_sha256"].contents() == rewrite.plan.hash


@pytest.mark.parametrize(
    ("keep", "layers", "message"),
    [
        (5, {"0": [0, 1, 2, 3, 4]}, "no layer 1"),
        (4, {"0": [0, 1, 2, 3], "1": [0, 1, 2, 16]}, "number 16"),
        (4, {"0": [0, 1, 2, 3], "1": [0, 1, 2, 3, 4]}, "keeps 5 experts"),
        (4, {"0": [0, 1, 2, 3], "1": [0, 1, 2, 3], "2": [0, 1, 2, 3]}, "layer 2"),
        (3, {"0": [0, 1, 2], "1": [0, 1, 2]}, "at least 4 must stay"),
        (17, {"0": list(range(17)), "1": list(range(17))}, "16 experts"),
    ],
)
def test_plans_that_do_not_fit(tmp_path: Path, keep: int, layers, message: str) -> None:
    model = open_model(write_tiny(tmp_path / "m.gguf", "olmoe", layers=2))
    plan = hand_written(tmp_path / "p.json", keep, layers)
    with pytest.raises(InputError, match=message):
        plan_rewrite(model, plan, tmp_path / "o.gguf")


def test_groups_must_stay_equal(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.gguf", "qwen3moe", layers=1, groups=(4, 2)))
    uneven = hand_written(tmp_path / "p.json", 8, {"0": [0, 1, 2, 4, 8, 9, 12, 13]})
    with pytest.raises(InputError, match="by group"):
        plan_rewrite(model, uneven, tmp_path / "o.gguf")


def test_plan_of_another_model(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.gguf", "olmoe", layers=1))
    other = open_model(write_tiny(tmp_path / "n.gguf", "olmoe", layers=1, seed=5))
    plan = hand_written(tmp_path / "p.json", 4, {"0": [0, 1, 2, 3]})
    complete = plan_rewrite(other, plan, tmp_path / "o.gguf").plan
    complete.save(tmp_path / "full.json")
    with pytest.raises(MismatchError, match="router"):
        plan_rewrite(model, Plan.load(tmp_path / "full.json"), tmp_path / "o.gguf")


def test_maverick_count(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama4", experts=160)
    model = open_model(path)
    kept = {str(layer): list(range(128)) for layer in model.moe_layers}
    plan = hand_written(tmp_path / "p.json", 128, kept)
    with pytest.raises(InputError, match="exactly 128"):
        plan_rewrite(model, plan, tmp_path / "o.gguf")


def test_verify_notices_a_changed_byte(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.gguf", "olmoe", layers=1))
    plan = hand_written(tmp_path / "p.json", 4, {"0": [0, 5, 6, 3]})
    rewrite = plan_rewrite(model, plan, tmp_path / "o.gguf")
    write_files(rewrite.files, model.gguf)
    with GgufModel(tmp_path / "o.gguf") as result:
        victim = next(t for t in result.tensors if t.name.endswith("ffn_down_exps.weight"))
        assert verify_bytes(model, rewrite, result) == sum(t.nbytes for t in result.tensors)
    with open(tmp_path / "o.gguf", "r+b") as stream:
        stream.seek(victim.offset + victim.nbytes - 1)
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 1]))
    with (
        GgufModel(tmp_path / "o.gguf") as result,
        pytest.raises(VerificationError, match="ffn_down_exps"),
    ):
        verify_bytes(model, rewrite, result)


def test_shards_in_and_out(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.gguf", "olmoe", layers=2))
    plan = hand_written(tmp_path / "p.json", 16, {"0": list(range(16)), "1": list(range(16))})
    limit = max(t.nbytes for t in model.gguf.tensors) * 2
    split = plan_rewrite(model, plan, tmp_path / "s.gguf", split_max_size=limit)
    assert len(split.files) > 2
    write_files(split.files, model.gguf)
    for file in split.files:
        again = open_model(file.path)
        assert len(again.gguf.files) == len(split.files)
    joined = plan_rewrite(again, plan, tmp_path / "j.gguf")
    write_files(joined.files, again.gguf)
    assert (tmp_path / "j.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()
