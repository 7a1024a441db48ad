"""Blends of domains, coverage, protection."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ggprune.choosing import blend, protect
from ggprune.choosing.scores import choose_all
from ggprune.errors import InputError
from ggprune.model import ExpertCounts

#: Two domains, one layer, four experts.
TWO = np.array([[[6.0, 3.0, 1.0, 0.0]], [[0.0, 1.0, 2.0, 7.0]]])


def test_coverage_by_hand() -> None:
    # Domain 0 holds 6 + 0 of 10 with experts 0 and 3, the best two hold 9; domain 1: 7 of 9.
    covered = blend.Coverage(TWO, 2).of(np.array([[0, 3]]))
    assert covered == pytest.approx([6 / 9, 7 / 9])


def test_coverage_is_a_mean_over_layers() -> None:
    layers = np.concatenate([TWO, TWO], axis=1)
    covered = blend.Coverage(layers, 2).of(np.array([[0, 3], [0, 1]]))
    assert covered == pytest.approx([(6 / 9 + 1) / 2, (7 / 9 + 1 / 9) / 2])


def test_blended_by_hand() -> None:
    weights = np.array([0.25, 0.75])
    assert blend.blended(TWO, weights)[0] == pytest.approx([0.15, 0.15, 0.175, 0.525])


def test_the_amount_of_text_does_not_matter() -> None:
    more = TWO * np.array([100.0, 1.0])[:, None, None]
    weights = np.array([0.5, 0.5])
    assert blend.blended(more, weights) == pytest.approx(blend.blended(TWO, weights))


def test_a_domain_without_text_changes_nothing() -> None:
    silent = np.concatenate([TWO, np.zeros_like(TWO[:1])])
    weights = np.array([0.4, 0.4, 0.2])
    order = np.argsort(-blend.blended(silent, weights)[0]).tolist()
    assert order == np.argsort(-blend.blended(TWO, np.array([0.5, 0.5]))[0]).tolist()


def best_possible(by_domain: np.ndarray, keep: int) -> float:
    """Try all sets of experts of a single layer."""
    served = blend.Coverage(by_domain, keep)
    sets = itertools.combinations(range(by_domain.shape[2]), keep)
    return max(float(served.of(np.array([each])).min()) for each in sets)


@pytest.mark.parametrize("seed", range(6))
def test_max_min_raises_the_worst_domain(seed: int) -> None:
    random = np.random.default_rng(seed)
    by_domain = random.gamma(0.3, 1, (3, 1, 10)) * np.array([10.0, 1.0, 1.0])[:, None, None]
    keep = 4

    def choice(scores: np.ndarray) -> np.ndarray:
        return choose_all(scores, keep)

    served = blend.Coverage(by_domain, keep)
    weights = blend.max_min_weights(by_domain, keep, choice)
    found = served.of(choice(blend.blended(by_domain, weights))).min()
    pooled = served.of(choice(by_domain.sum(axis=0))).min()
    uniform = served.of(choice(blend.blended(by_domain, np.full(3, 1 / 3)))).min()
    assert weights.sum() == pytest.approx(1)
    assert found >= max(pooled, uniform) - 1e-12
    # A ranking by weights cannot reach every set, but comes near the best of all of them.
    assert found >= 0.85 * best_possible(by_domain, keep)


def test_max_min_is_deterministic() -> None:
    by_domain = np.random.default_rng(0).gamma(0.5, 1, (4, 3, 16))
    runs = [
        blend.max_min_weights(by_domain, 8, lambda scores: choose_all(scores, 8)) for _ in range(2)
    ]
    assert np.array_equal(*runs)


def test_weights_are_read() -> None:
    names = ["code", "math", "prose"]
    assert blend.parse_weights("code=2,math=1", names) == pytest.approx([2 / 3, 1 / 3, 0])
    assert blend.parse_weights("prose", names) == pytest.approx([0, 0, 1])


@pytest.mark.parametrize("text", ["law=1", "code=x", "code=-1", "code=0", "code=inf", ""])
def test_weights_that_are_none(text: str) -> None:
    with pytest.raises(InputError):
        blend.parse_weights(text, ["code", "math"])


def test_super_experts() -> None:
    """Above the 99.5th percentile and a tenth of the largest, in the first three quarters."""
    norm_max = np.ones((8, 64))
    norm_max[1, 5] = 1000.0
    norm_max[2, 7] = 150.0
    norm_max[3, 9] = 90.0  # Below a tenth of the largest.
    norm_max[7, 3] = 900.0  # Too late in the model.
    found = protect.find_super_experts(norm_max, range(8), depth=8)
    assert found == {1: frozenset({5}), 2: frozenset({7})}


def test_super_experts_in_a_model_with_leading_dense_layers() -> None:
    norm_max = np.ones((4, 100))
    norm_max[:, 0] = [50, 60, 70, 80]
    # Of 8 layers the last four have experts: 4 and 5 are in the first three quarters.
    found = protect.find_super_experts(norm_max, [4, 5, 6, 7], depth=8)
    assert set(found) <= {4, 5}


def test_nothing_was_observed() -> None:
    assert protect.find_super_experts(np.zeros((2, 4)), [0, 1], 2) == {}


def test_always_keep_is_read() -> None:
    read = protect.parse_always_keep(["3:17,44", "5:1;3:2"], [3, 5], 64)
    assert read == {3: frozenset({2, 17, 44}), 5: frozenset({1})}


@pytest.mark.parametrize("text", ["3", "3:", "3:a", "4:1", "3:64", "3:1,", "-3:1"])
def test_always_keep_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match="always_keep"):
        protect.parse_always_keep([text], [3, 5], 64)


def test_more_protected_than_room() -> None:
    forced = {0: frozenset({0, 1, 2})}
    protect.Protection((0,), ExpertCounts(8, 2), forced, (), {}).check_room(4)
    with pytest.raises(InputError, match="of group 0"):
        protect.Protection((0,), ExpertCounts(8, 2, groups=2), forced, (), {}).check_room(4)
