"""Search against a world where the truth is known."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import pytest

from ggprune import credit, search
from ggprune.scoring import choose_all
from ggprune.search import Kept, Text

LAYERS, EXPERTS, KEEP, CHUNKS = 4, 24, 12, 60


class World:
    """Divergence is a noisy sum over dropped experts, by how much a chunk uses them."""

    def __init__(self, seed: int, noise: float = 0.2) -> None:
        random = np.random.default_rng(seed)
        self.truth = random.gamma(1.0, 1.0, (LAYERS, EXPERTS))
        self.usage = random.gamma(2.0, 1.0, (CHUNKS, LAYERS, EXPERTS))
        self.chunk_noise = random.lognormal(0, noise, CHUNKS)
        self.noise, self.asked = noise, 0

    def expected(self, kept: Kept, chunks: Sequence[int]) -> np.ndarray:
        dropped = np.ones((LAYERS, EXPERTS))
        np.put_along_axis(dropped, kept, 0, axis=1)
        return np.array([(dropped * self.truth * self.usage[c]).sum() for c in chunks]) / 100

    def kl(self, kept: Kept, chunks: Sequence[int]) -> np.ndarray:
        self.asked += len(chunks)
        # The same plan on the same chunk always gives the same, as in a model.
        seeds = [zlib.crc32(kept.tobytes() + bytes([c])) for c in chunks]
        noise = [np.random.default_rng(s).lognormal(0, self.noise) for s in seeds]
        return self.expected(kept, chunks) * self.chunk_noise[list(chunks)] * np.array(noise)


def choose(scores: np.ndarray) -> Kept:
    return choose_all(scores, KEEP)


def text_of(world: World) -> Text:
    fitting = list(range(40))
    return Text(fitting, list(range(40, CHUNKS)), world.usage[fitting])


@pytest.mark.parametrize("seed", range(3))
def test_search_beats_a_mediocre_prior_on_chunks_it_never_saw(seed: int) -> None:
    world = World(seed)
    truth = world.truth * world.usage.mean(axis=0)
    prior = truth * np.random.default_rng(seed).lognormal(0, 0.8, truth.shape)
    fresh = World(seed)
    fresh.usage = np.random.default_rng(99).gamma(2.0, 1.0, fresh.usage.shape)
    found = search.search(world, {"prior": prior}, choose, text_of(world), 600, seed=seed)
    before = fresh.expected(choose(prior), range(CHUNKS)).mean()
    after = fresh.expected(found.kept, range(CHUNKS)).mean()
    best = fresh.expected(choose(truth), range(CHUNKS)).mean()
    assert found.name == "search"
    assert after < before - 0.4 * (before - best)


def test_a_perfect_prior_is_left_alone() -> None:
    world = World(5)
    truth = world.truth * world.usage.mean(axis=0)
    found = search.search(world, {"truth": truth}, choose, text_of(world), 60, seed=1)
    assert found.name == "truth"
    assert np.array_equal(found.kept, choose(truth))


def test_noise_alone_never_wins_without_evidence() -> None:
    """Where plans do not matter, about one search in twenty may believe they do; not more."""
    believed = 0
    for seed in range(20):
        world = World(seed, noise=0.5)
        world.truth[:] = 1
        world.usage[:] = 1
        prior = np.random.default_rng(seed).random((LAYERS, EXPERTS)) + 0.5
        found = search.search(world, {"prior": prior}, choose, text_of(world), 60, seed=seed)
        believed += found.name == "search"
    assert believed <= 4


def test_the_same_seed_draws_the_same_plans() -> None:
    results = []
    for _ in range(2):
        world = World(3)
        prior = np.random.default_rng(0).random((LAYERS, EXPERTS))
        results.append(
            search.search(world, {"prior": prior}, choose, text_of(world), 90, seed=7)
        )
    assert np.array_equal(results[0].kept, results[1].kept)
    assert results[0].kl == results[1].kl


def test_credit_recovers_the_truth() -> None:
    random = np.random.default_rng(0)
    truth = random.gamma(1.0, 1.0, (LAYERS, EXPERTS))
    usage = random.gamma(2.0, 1.0, (3000, LAYERS, EXPERTS))
    dropped = random.random(usage.shape) < 0.4
    divergence = (dropped * usage * truth).sum(axis=(1, 2)) * random.lognormal(0, 0.1, 3000)
    measured = credit.Measurements(dropped.astype(float), usage, divergence)
    fitted = credit.fit(measured, np.ones((LAYERS, EXPERTS)), strength=0.5)
    expected = truth * usage.mean(axis=0)
    assert np.corrcoef(fitted.importance.ravel(), expected.ravel())[0, 1] > 0.97
    assert fitted.explained > 0.3


def test_a_strong_prior_stays() -> None:
    random = np.random.default_rng(1)
    prior = random.random((LAYERS, EXPERTS)) + 0.2
    usage = np.ones((50, LAYERS, EXPERTS))
    dropped = (random.random(usage.shape) < 0.5).astype(float)
    measured = credit.Measurements(dropped, usage, random.random(50) + 1)
    fitted = credit.fit(measured, prior, strength=1e6).importance
    shares = fitted / fitted.sum(axis=1, keepdims=True)
    assert shares == pytest.approx(prior / prior.sum(axis=1, keepdims=True), rel=1e-3)


def test_halving_measures_the_winner_on_everything() -> None:
    world = World(2)
    truth = world.truth * world.usage.mean(axis=0)
    plans = {"good": choose(truth), "bad": choose(-truth), "flat": choose(np.ones_like(truth))}
    result = search.compare_one_shot(world, plans, range(20), always=["bad"])
    assert next(iter(result)) == "good"
    assert "bad" in result
    assert all(len(values) == 20 for values in result.values())


def test_paired_difference_by_hand() -> None:
    gain, error = search.paired(np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.0, 2.0]))
    assert gain == pytest.approx(-0.25)
    # Differences -0.5, 0, -1: standard deviation 0.5, error 0.5 / sqrt(3), over the mean of 2.
    assert error == pytest.approx(0.5 / 3**0.5 / 2)
