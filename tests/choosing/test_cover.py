"""Choosing token by token, against every possible plan."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from ggprune.calibration.routing import Shares
from ggprune.choosing.cover import cover_scores, losses
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


def test_losses_by_hand() -> None:
    """Two tokens, g‖f‖ of 3 and 4, and of 6 and 8: 7 and 14 together, 10.5 on average."""
    contributions = np.array([[[3.0, 4.0]], [[6.0, 8.0]]])
    routing = Shares.of(np.array([[[0, 1]], [[0, 1]]]), contributions)
    own = [[3 / 7, 4 / 7]] * 2
    assert losses(routing, normed=True).shares[:, 0] == pytest.approx(np.array(own), rel=1e-3)
    mean = contributions[:, 0] / 10.5
    assert losses(routing, normed=False).shares[:, 0] == pytest.approx(mean, rel=1e-3)
    # Statistics from before norms were kept.
    old = losses(replace(routing, norms=None), normed=False)
    assert old.shares[:, 0] == pytest.approx(np.array(own), rel=1e-3)
    # A token that counts three times does so in the mean: (3 · 7 + 14) / 4 = 8.75.
    weighted = replace(routing, weights=np.array([3, 1], np.float32))
    mean = contributions[:, 0] / 8.75
    assert losses(weighted, normed=False).shares[:, 0] == pytest.approx(mean, rel=1e-3)


def test_a_massive_activation_counts_three_times_at_most() -> None:
    outputs = np.ones((100, 1, 2))
    outputs[0] = 1e6
    routing = Shares.of(np.tile(np.array([0, 1]), (100, 1, 1)), outputs)
    sizes = losses(routing, normed=False).shares.astype(float).sum(axis=(1, 2))
    assert sizes[0] == pytest.approx(3, rel=1e-3) and sizes[1:].max() < 0.01
    assert np.isfinite(cover_scores(losses(routing, normed=False), 1, 2)).all()


def test_large_outputs_count_unless_they_are_normalised() -> None:
    """Twelve quiet tokens use experts 0 and 1; ten use 2 and 3, with outputs ten times as large."""
    experts = np.array([[[0, 1]]] * 12 + [[[2, 3]]] * 10, np.int16)
    outputs = np.array([[[1.0, 1.0]]] * 12 + [[[10.0, 10.0]]] * 10)
    given = Shares.of(experts, outputs)
    for normed, kept in ((True, [0, 1]), (False, [2, 3])):
        scores = cover_scores(losses(given, normed=normed), 2, 4, beta=0.1)
        assert choose_all(scores, 2).tolist() == [kept]
