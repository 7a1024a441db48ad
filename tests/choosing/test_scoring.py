"""Scores: each method by hand on one layer, and against a loop over tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggprune.calibration.statistics import PER_EXPERT, ExpertSums
from ggprune.choosing.methods import METHODS, find
from ggprune.choosing.scores import choose_all, retained
from ggprune.errors import InputError

#: Three tokens in a layer of four experts, top-2: (expert, gate, norm of the output).
TOKENS = [[(0, 0.75, 4.0), (1, 0.25, 8.0)], [(0, 0.5, 2.0), (2, 0.5, 6.0)], [(0, 1.0, 1.0)]]

#: Worked by hand from TOKENS.
BY_HAND = {
    "frequency": [3, 1, 1, 0],
    "gate": [2.25, 0.25, 0.5, 0],
    "ean": [7, 8, 6, 0],
    "man": [7 / 3, 8, 6, 0],
    "msan": [(16 + 4 + 1) / 3, 64, 36, 0],
    "contribution": [3 + 1 + 1, 2, 3, 0],
    "reap": [5 / 3, 2, 3, 0],
}


def sums_of(tokens: list[list[tuple[int, float, float]]], experts: int = 4) -> ExpertSums:
    sums = ExpertSums.zeros(1, experts)
    sums.tokens[0] = len(tokens)
    for token in tokens:
        for expert, gate, norm in token:
            sums.count[0, expert] += 1
            sums.gate_sum[0, expert] += gate
            sums.norm_sum[0, expert] += norm
            sums.norm_sq_sum[0, expert] += norm**2
            sums.contribution_sum[0, expert] += gate * norm
            sums.norm_max[0, expert] = max(sums.norm_max[0, expert], norm)
    return sums


def score(method: str, sums: ExpertSums, seed: int = 0) -> np.ndarray:
    function = find(method).sums
    assert function is not None
    return function(sums, seed)


@pytest.mark.parametrize("method", BY_HAND)
def test_by_hand(method: str) -> None:
    assert score(method, sums_of(TOKENS))[0] == pytest.approx(BY_HAND[method])


def test_every_method_is_covered() -> None:
    assert {name for name, m in METHODS.items() if m.sums} == {*BY_HAND, "random"}


INDEPENDENT: dict[str, Any] = {
    "frequency": lambda g, f: len(g),
    "gate": lambda g, f: sum(g),
    "ean": lambda g, f: sum(f),
    "man": lambda g, f: np.mean(f) if len(f) else 0,
    "msan": lambda g, f: np.mean(np.square(f)) if len(f) else 0,
    "contribution": lambda g, f: float(np.dot(g, f)),
    "reap": lambda g, f: np.mean(np.multiply(g, f)) if len(f) else 0,
}


@settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 5), st.floats(0.01, 2), st.floats(0, 50)),
            min_size=1,
            max_size=3,
            unique_by=lambda use: use[0],
        ),
        max_size=12,
    )
)
def test_against_lists_of_tokens(tokens: list[list[tuple[int, float, float]]]) -> None:
    sums = sums_of(tokens, 6)
    for method, formula in INDEPENDENT.items():
        expected = [
            formula(
                [g for token in tokens for e, g, _ in token if e == expert],
                [f for token in tokens for e, _, f in token if e == expert],
            )
            for expert in range(6)
        ]
        assert score(method, sums)[0] == pytest.approx(expected)


def test_random_is_seeded_and_differs_by_seed() -> None:
    sums = sums_of(TOKENS)
    one, same, other = (score("random", sums, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="nonsense") as raised:
        find("nonsense")
    assert all(name in raised.value.remedy for name in METHODS)
    assert len(METHODS) >= 14


@pytest.mark.parametrize(
    ("typed", "meant"), [("rep", "reap"), ("Cover", "cover"), ("shap", "shape")]
)
def test_a_mistyped_method_is_recognised(typed: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"method={typed}: .* Did you mean {meant}"):
        find(typed)


def test_additive_methods_add_up_over_domains() -> None:
    one, other = sums_of(TOKENS[:1]), sums_of(TOKENS[1:])
    whole = sums_of(TOKENS)
    for name, method in METHODS.items():
        if method.sums is None or method.is_control:
            continue
        added = method.sums(one, 0) + method.sums(other, 0)
        assert np.allclose(added, method.sums(whole, 0)) == method.additive, name


def choose(scores: np.ndarray, keep: int, groups: int = 1) -> list[int]:
    """One layer, expert by expert."""
    size = len(scores) // groups
    best = []
    for start in range(0, len(scores), size):
        inside = sorted(range(start, start + size), key=lambda e: (-scores[e], e))
        best += inside[: keep // groups]
    return sorted(best)


def test_choose_takes_the_lower_index_at_a_tie() -> None:
    assert choose_all(np.array([[1.0, 3, 3, 1, 2]]), 3).tolist() == [[1, 2, 4]]
    assert choose_all(np.zeros((1, 5)), 2).tolist() == [[0, 1]]


def test_choose_within_groups() -> None:
    scores = np.array([[9.0, 8, 7, 6, 1, 2, 3, 4]])
    assert choose_all(scores, 4, groups=2).tolist() == [[0, 1, 6, 7]]


@settings(deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**32 - 1), st.data()
)
def test_all_layers_at_once_as_one_by_one(
    layers: int, size: int, groups: int, seed: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, size)) * groups
    scores = np.random.default_rng(seed).integers(0, 4, (layers, size * groups)).astype(float)
    together = choose_all(scores, keep, groups)
    for row in range(layers):
        assert together[row].tolist() == choose(scores[row], keep, groups)


def test_retained_by_hand() -> None:
    sums = sums_of(TOKENS)
    assert retained(sums, 0, np.array([0, 2])) == pytest.approx(8 / 10)
    assert retained(ExpertSums.zeros(1, 4), 0, np.array([0])) == 1.0
    assert "contribution_sum" in PER_EXPERT
