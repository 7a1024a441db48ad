"""Choosing token by token, against every possible plan."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ggprune.calibration.routing import Shares
from ggprune.choosing.cover import by_contribution, cover_scores
from ggprune.choosing.scores import choose_all
from ggprune.types import Ints

LAYERS, EXPERTS, USED, TOKENS, KEEP = 2, 6, 2, 80, 3
BETA = 5.0


def text(seed: int = 0) -> Shares:
    random = np.random.default_rng(seed)
    experts = np.argsort(random.gumbel(size=(TOKENS, LAYERS, EXPERTS)), axis=2)[..., :USED]
    shares = random.random((TOKENS, LAYERS, USED)) + 0.1
    shares /= shares.sum(axis=2, keepdims=True)
    return Shares(experts.astype(np.int16), shares.astype(np.float16))


def objective(given: Shares, kept: Ints, worth: np.ndarray, beta: float = BETA) -> float:
    """The formula, token by token."""
    total, kept = 0.0, [set(row) for row in kept.tolist()]
    # Lists, since numpy's own numbers are slow one by one.
    text = zip(given.experts.tolist(), given.shares.astype(np.float64).tolist(), strict=True)
    for experts, shares in text:
        lost = sum(
            worth[layer, expert] * share
            for layer in range(LAYERS)
            for expert, share in zip(experts[layer], shares[layer], strict=True)
            if expert not in kept[layer]
        )
        total += np.exp(beta * lost / LAYERS)
    return total


def every_plan() -> list[np.ndarray]:
    rows = list(itertools.combinations(range(EXPERTS), KEEP))
    return [np.array(plan) for plan in itertools.product(rows, repeat=LAYERS)]


@pytest.mark.parametrize("seed", range(4))
def test_no_plan_is_much_better(seed: int) -> None:
    given = text(seed)
    worth = np.random.default_rng(seed).lognormal(0, 0.5, (LAYERS, EXPERTS))
    found = choose_all(cover_scores(given, KEEP, EXPERTS, worth=worth, beta=BETA), KEEP)
    values = [objective(given, plan, worth) for plan in every_plan()]
    mine = objective(given, found, worth)
    assert mine <= min(values) * 1.03
    assert mine < np.quantile(values, 0.02)


@pytest.mark.parametrize("seed", range(4))
def test_no_swap_of_neighbours_in_rank_helps(seed: int) -> None:
    given, worth = text(seed), np.ones((LAYERS, EXPERTS))
    scores = cover_scores(given, KEEP, EXPERTS, beta=BETA)
    kept = choose_all(scores, KEEP)
    before = objective(given, kept, worth)
    for layer in range(LAYERS):
        order = np.argsort(-scores[layer])
        other = kept.copy()
        other[layer] = np.sort([*order[: KEEP - 1], order[KEEP]])
        assert objective(given, other, worth) >= before * (1 - 1e-6)


def test_small_beta_is_the_sum_over_tokens() -> None:
    given = text()
    kept = choose_all(cover_scores(given, KEEP, EXPERTS, beta=1e-3), KEEP)
    assert np.array_equal(kept, choose_all(given.sums(EXPERTS), KEEP))


def test_tokens_that_lose_much_count_more() -> None:
    """Ten tokens use experts 0 and 1, three use 2 and 3: sums would leave these with nothing."""
    experts = np.array([[[0, 1]]] * 10 + [[[2, 3]]] * 3, np.int16)
    given = Shares(experts, np.array([[[0.6, 0.4]]] * 13, np.float16))
    assert choose_all(given.sums(4), 2).tolist() == [[0, 1]]
    assert choose_all(cover_scores(given, 2, 4, beta=8.0), 2).tolist() == [[0, 2]]


def test_fixed_experts_stay() -> None:
    given, fixed = text(1), np.zeros((LAYERS, EXPERTS), bool)
    worst = cover_scores(given, KEEP, EXPERTS).argmin(axis=1)
    fixed[np.arange(LAYERS), worst] = True
    kept = choose_all(cover_scores(given, KEEP, EXPERTS, fixed=fixed), KEEP)
    assert all(expert in row for expert, row in zip(worst, kept, strict=True))


def test_as_many_stay_in_each_group() -> None:
    scores = cover_scores(text(2), 4, EXPERTS, groups=2)
    kept = choose_all(scores, 4, 2)
    assert ((kept < EXPERTS // 2).sum(axis=1) == 2).all()


def test_shares_add_up_to_what_experts_contribute() -> None:
    given = text(3)
    contribution = np.random.default_rng(0).gamma(1, 1, (LAYERS, EXPERTS))
    scaled = by_contribution(given, contribution)
    expected = contribution / contribution.sum(axis=1, keepdims=True) * TOKENS
    assert scaled.sums(EXPERTS) == pytest.approx(expected, rel=1e-3)
    # Within an expert, tokens keep their proportions: those of g‖f‖, not of its square.
    uses = given.experts[:, 0, 0] == 0
    roots = np.sqrt(given.shares[uses, 0].astype(float))
    roots = roots[:, 0] / roots.sum(axis=1)
    assert scaled.shares[uses, 0, 0] / scaled.shares[uses, 0, 0][0] == pytest.approx(
        roots / roots[0], rel=5e-3
    )


def test_large_outputs_count_although_shares_hide_them() -> None:
    """Twelve quiet tokens use experts 0 and 1; ten use 2 and 3, with outputs ten times as large."""
    experts = np.array([[[0, 1]]] * 12 + [[[2, 3]]] * 10, np.int16)
    given = Shares(experts, np.array([[[0.5, 0.5]]] * 22, np.float16))
    loud = np.array([[12.0, 12.0, 100.0, 100.0]])
    assert choose_all(cover_scores(given, 2, 4, beta=0.1), 2).tolist() == [[0, 1]]
    assert choose_all(cover_scores(by_contribution(given, loud), 2, 4, beta=0.1), 2).tolist() == [
        [2, 3]
    ]
