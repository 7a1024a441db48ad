"""Groups of tensors: every tensor in one, few enough, and patterns that match exactly them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ggprune.fitting import kinds
from ggprune.fitting.groups import Group, groups_of, part_of
from ggprune.model import MoeModel, open_model


@pytest.fixture(scope="module")
def model(trained: Path) -> MoeModel:
    return open_model(trained)


def matrices(model: MoeModel) -> list[str]:
    return [
        tensor.name
        for tensor in model.gguf.tensors
        if len(tensor.shape) > 1 and "gate_inp" not in tensor.name
    ]


@pytest.mark.parametrize("most", [25, 20, 12, 5])
def test_each_tensor_is_in_one_group(model: MoeModel, most: int) -> None:
    names = matrices(model)
    groups = groups_of(model, names, most)
    assert len(groups) == most
    assert sorted(t.name for group in groups for t in group.tensors) == sorted(names)
    for group in groups:
        matched = {name for name in names if re.search(group.pattern, name)}
        assert matched == {tensor.name for tensor in group.tensors}
        assert len({part_of(name) for name in matched}) == 1
        assert "_norm" not in group.pattern


def test_layers_of_a_group_are_neighbours(model: MoeModel) -> None:
    groups = groups_of(model, matrices(model), 14)
    by_part: dict[str, list[Group]] = {}
    for group in groups:
        by_part.setdefault(group.part, []).append(group)
    for each in by_part.values():
        layers = [layer for g in each if g.layers for layer in range(g.layers[0], g.layers[1] + 1)]
        assert layers in ([], list(range(6)))


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        (512, "Q4_K", "Q4_K"),
        (64, "Q4_K", "Q5_0"),
        (64, "IQ3_S", "IQ4_NL"),
        (64, "Q2_K", "Q4_0"),
        (48, "Q4_K", "F16"),
        (48, "Q8_0", "F16"),
    ],
)
def test_rows_that_blocks_do_not_divide(row: int, kind: str, expected: str) -> None:
    assert kinds.resolved(row, kind) == expected
