"""Tables of experts by token: what becomes of them when experts are dropped."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from ggprune.errors import UnsupportedModelError
from ggprune.model import MoeModel, open_model
from ggprune.model.hash_routing import hash_table, nearest_experts, order_by_cosine, remapped
from tests.support.slicing import router_rows, stand_ins
from tests.support.tiny import write_tiny


def test_the_nearest_by_hand() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.3], [-1.0, 0.0]])
    assert order_by_cosine(rows).tolist() == [
        [0, 2, 1, 3],
        [1, 2, 0, 3],
        [2, 0, 1, 3],
        [3, 1, 2, 0],
    ]


def test_a_row_never_names_an_expert_twice() -> None:
    random = np.random.default_rng(0)
    nearest = order_by_cosine(random.standard_normal((12, 5)))
    rows = random.permuted(np.tile(np.arange(12, dtype=np.int32), (500, 1)), axis=1)[:, :4]
    for count in (4, 5, 11, 12):
        kept = sorted(random.choice(12, count, replace=False).tolist())
        found = remapped(rows, kept, nearest)
        assert set(found.ravel().tolist()) <= set(kept)
        assert all(len(set(row)) == 4 for row in found.tolist())
        stays = np.isin(rows, kept)
        assert (found[stays] == rows[stays]).all()


def test_the_table_against_one_made_expert_by_expert(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "deepseek4", mtp=0)
    kept = [0, 2, 3, 7, 8, 11, 15]
    with open_model(path) as model:
        assert isinstance(model, MoeModel)
        assert sorted(model.hash_tables) == [0]
        found = remapped(hash_table(model, 0), kept, nearest_experts(model, 0))
    reader = gguf.GGUFReader(path)
    (table,) = [t.data for t in reader.tensors if t.name == "blk.0.ffn_gate_tid2eid.weight"]
    rows = router_rows(reader, 0)
    assert found.tolist() == [stand_ins(row, kept, rows) for row in table.tolist()]


def test_a_table_that_names_no_expert_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "deepseek4", mtp=0)
    with open_model(path) as model:
        tensor = model.hash_tables[0]
    with open(path, "rb+") as stream:
        stream.seek(tensor.offset)
        stream.write((99).to_bytes(4, "little"))
    with (
        open_model(path) as model,
        pytest.raises(UnsupportedModelError, match="up to 99, the layer has 16"),
    ):
        hash_table(model, 0)
