"""Search against a world where the truth is known."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from ggprune.calibration.routing import Shares
from ggprune.choosing.cover import cover_scores
from ggprune.choosing.scores import choose_all
from ggprune.choosing.search import credit, search
from ggprune.choosing.search.credit import Observed
from ggprune.choosing.search.search import Rules, Text
from ggprune.types import Ints

LAYERS, EXPERTS, USED, KEEP, CHUNKS, TOKENS = 3, 24, 4, 12, 60, 48


class World:
    """Divergence grows exponentially with what is lost, and is larger where a token is hard."""

    def __init__(self, seed: int, noise: float = 0.2) -> None:
        random = np.random.default_rng(seed)
        self.worth = random.lognormal(0, 0.7, (LAYERS, EXPERTS))
        popular = random.gumbel(size=(1, 1, LAYERS, EXPERTS))
        router = popular + random.gumbel(size=(CHUNKS, TOKENS, LAYERS, EXPERTS))
        self.experts = np.argsort(-router, axis=-1)[..., :USED]
        shares = random.random((CHUNKS, TOKENS, LAYERS, USED)) + 0.2
        self.shares = shares / shares.sum(axis=-1, keepdims=True)
        self.hard = random.lognormal(0, 1.0, (CHUNKS, TOKENS))
        self.noise = noise

    @property
    def usage(self) -> np.ndarray:
        return self.text().sums(EXPERTS)

    def text(self) -> Shares:
        return Shares.joined([self.routing(chunk) for chunk in range(CHUNKS)])

    def best(self) -> np.ndarray:
        return cover_scores(self.text(), KEEP, EXPERTS, worth=self.worth, beta=4.0)

    def expected(self, kept: Ints, chunk: int) -> np.ndarray:
        dropped = np.ones((LAYERS, EXPERTS))
        np.put_along_axis(dropped, kept, 0, axis=1)
        lost = np.zeros(TOKENS)
        for layer in range(LAYERS):
            each = (dropped * self.worth)[layer][self.experts[chunk, :, layer]]
            lost += (each * self.shares[chunk, :, layer]).sum(axis=1)
        return np.exp(4.0 * lost / LAYERS) * self.hard[chunk] / 10

    def token_kl(self, kept: Ints, chunk: int) -> np.ndarray:
        # The same plan on the same chunk always gives the same, as in a model.
        seed = zlib.crc32(kept.tobytes() + bytes([chunk]))
        noise = np.random.default_rng(seed).lognormal(0, self.noise, TOKENS)
        return self.expected(kept, chunk) * noise

    def kl(self, kept: Ints, chunks: Sequence[int]) -> np.ndarray:
        return np.array([self.token_kl(kept, chunk).mean() for chunk in chunks])

    def routing(self, chunk: int) -> Shares:
        return Shares(self.experts[chunk].astype(np.int16), self.shares[chunk].astype(np.float16))


def choose(scores: np.ndarray) -> Ints:
    return choose_all(scores, KEEP)


RULES = Rules(KEEP, choose, np.zeros((LAYERS, EXPERTS), bool))


def text_of(world: World) -> Text:
    return Text(list(range(40)), list(range(40, CHUNKS)), world.routing)


@pytest.mark.parametrize("seed", range(3))
def test_search_beats_a_one_shot_score_on_text_it_never_saw(seed: int) -> None:
    world = World(seed)
    prior = world.usage
    found = search.search(world, {"usage": prior}, RULES, text_of(world), 240, seed=seed)

    def divergence(kept: Ints) -> float:
        return float(np.mean([world.expected(kept, chunk).mean() for chunk in range(CHUNKS)]))

    before, after, best = (divergence(k) for k in (choose(prior), found.kept, choose(world.best())))
    assert found.name == "search"
    assert after < before - 0.4 * (before - best)


def test_a_perfect_score_is_left_alone() -> None:
    world = World(5)
    truth = world.best()
    found = search.search(world, {"truth": truth}, RULES, text_of(world), 48, seed=1)
    assert found.name == "truth"
    assert np.array_equal(found.kept, choose(truth))


def test_chance_alone_seldom_wins() -> None:
    """Where plans do not matter, the test of significance stops nearly all searches."""
    believed = 0
    for seed in range(12):
        world = World(seed, noise=0.5)
        world.worth[:] = 0
        world.hard[:] = 1
        world.expected = lambda kept, chunk: np.ones(TOKENS)  # type: ignore[method-assign]
        prior = np.random.default_rng(seed).random((LAYERS, EXPERTS)) + 0.5
        found = search.search(world, {"prior": prior}, RULES, text_of(world), 48, seed=seed)
        believed += found.name == "search"
    assert believed <= 4


def kl_by_number(*kl: float) -> Callable[[int], np.ndarray]:
    """Mean KL if 8, 7, … experts are used, the same in chunks but for a little."""
    return lambda used: kl[8 - used] * (1 + 0.01 * np.random.default_rng(used).random(20))


def test_fewer_experts_are_used_for_as_long_as_that_helps() -> None:
    used, seen = search.best_used(kl_by_number(0.30, 0.28, 0.27, 0.29, 0.1), 8, 12)
    assert used == 6
    assert list(seen) == [8, 7, 6, 5]
    assert seen[6] == pytest.approx(0.27, rel=0.01)


def test_more_experts_are_used_where_fewer_do_not_help() -> None:
    kl = {7: 0.31, 8: 0.30, 9: 0.28, 10: 0.27, 11: 0.28, 12: 0.1}

    def measure(used: int) -> np.ndarray:
        return kl[used] * (1 + 0.01 * np.random.default_rng(used).random(20))

    used, seen = search.best_used(measure, 8, 16)
    assert used == 10 and list(seen) == [8, 7, 9, 10, 11]
    assert search.best_used(measure, 8, 9)[0] == 9
    assert list(search.best_used(measure, 8, 8)[1]) == [8, 7], "no more are kept"


def test_as_many_experts_as_the_model_uses_unless_the_gain_is_sure() -> None:
    assert search.best_used(kl_by_number(0.27, 0.30, 0.1), 8, 8)[0] == 8
    noise = np.random.default_rng(0).normal(0, 0.1, 20)
    doubtful = {8: np.full(20, 0.3), 7: 0.299 + noise - noise.mean(), 6: np.full(20, 0.4)}
    used, seen = search.best_used(doubtful.__getitem__, 8, 8)
    assert used == 8 and list(seen) == [8, 7, 6]
    assert search.best_used(lambda used: np.ones(3), 1, 1) == (1, {1: 1.0})


def test_the_same_seed_finds_the_same() -> None:
    results = []
    for _ in range(2):
        world = World(3)
        results.append(
            search.search(world, {"usage": world.usage}, RULES, text_of(world), 48, seed=7)
        )
    assert np.array_equal(results[0].kept, results[1].kept)
    assert results[0].kl == results[1].kl


def observed(world: World, plans: int) -> list[Observed]:
    random = np.random.default_rng(0)
    parts = []
    for chunk in range(CHUNKS):
        part = Observed(world.routing(chunk))
        for _ in range(plans):
            kept = choose(random.random((LAYERS, EXPERTS)))
            dropped = np.ones((LAYERS, EXPERTS), bool)
            np.put_along_axis(dropped, kept, False, axis=1)
            part.dropped.append(dropped)
            part.divergence.append(world.token_kl(kept, chunk))
        parts.append(part)
    return parts


def test_credit_recovers_what_experts_are_worth() -> None:
    world = World(0, noise=0.05)
    world.hard[:] = 1
    world.worth /= 10  # Close enough to a straight line.
    (fitted,) = credit.fit(observed(world, 12), (LAYERS, EXPERTS), [2.0])
    for layer in range(LAYERS):
        seen = world.usage[layer] > np.median(world.usage[layer])
        assert np.corrcoef(fitted[layer][seen], world.worth[layer][seen])[0, 1] > 0.9


def test_credit_agrees_with_least_squares_written_out() -> None:
    """The sums over plans and tokens apart are those over all differences together."""
    world = World(1)
    parts = observed(world, 4)[:6]
    equations = credit._equations(parts, LAYERS, EXPERTS)
    everything = np.mean([np.mean(part.divergence) for part in parts])
    layer = 1
    rows, values, weights = [], [], []
    for part in parts:
        kl = np.array(part.divergence)
        for plan in range(4):
            for token in range(TOKENS):
                shares, mean = np.zeros(EXPERTS), kl[:, token].mean()
                shares[part.routing.experts[token, layer]] = part.routing.shares[token, layer]
                off = np.mean([d[layer] for d in part.dropped], axis=0)
                rows.append(mean * shares * (part.dropped[plan][layer] - off))
                values.append(kl[plan, token] - mean)
                weights.append(1 / (mean + 0.3 * everything) ** 2)
    z, w = np.array(rows), np.array(weights)
    assert equations.gram[layer] == pytest.approx(z.T @ (z * w[:, None]), rel=1e-9, abs=1e-12)
    assert equations.right[layer] == pytest.approx(z.T @ (w * values), rel=1e-9, abs=1e-12)
    assert equations.squares == pytest.approx((w * np.array(values) ** 2).sum())


def test_a_strong_prior_stays() -> None:
    world = World(1)
    none, weak, strong = credit.fit(observed(world, 3), (LAYERS, EXPERTS), [0.0, 0.5, 1e-6])
    assert (none == none[:, :1]).all()
    assert none.mean() == pytest.approx(1)
    assert strong == pytest.approx(none, rel=1e-4)
    assert weak.std() > 0.05


def test_halving_measures_the_winner_on_everything() -> None:
    world = World(2)
    truth = world.best()
    plans = {"good": choose(truth), "bad": choose(-truth), "flat": choose(np.ones_like(truth))}
    result = search.compare_one_shot(world, plans, search.quarters(range(20)))
    assert next(iter(result)) == "good"
    assert all(len(values) == 20 for values in result.values())


def test_a_lucky_plan_is_not_believed() -> None:
    """What is better in every chunk is believed, what is better here and worse there less."""

    class Given:
        def __init__(self, better: np.ndarray) -> None:
            self.kl_of = {1: np.ones(20), 2: better, 3: np.full(20, 0.97)}

        def kl(self, kept: Ints, chunks: Sequence[int]) -> np.ndarray:
            return self.kl_of[int(kept[0, 0])][list(chunks)]

        def token_kl(self, kept: Ints, chunk: int) -> np.ndarray:
            raise NotImplementedError

    plans = {name: np.array([[n]]) for n, name in ((1, "first"), (2, "better"), (3, "sure"))}
    # Both are better by a tenth in the mean.
    steady, lucky = np.full(20, 0.9), np.tile([2.0, -0.2], 10)
    for better, wins in ((steady, "better"), (lucky, "sure")):
        result = search.compare_one_shot(Given(better), plans, search.quarters(range(20)))
        assert next(iter(result)) == wins
    assert [search.survivors(plans) for plans in (1, 2, 3, 4, 6, 11)] == [1, 2, 3, 3, 4, 6]


def test_paired_difference_by_hand() -> None:
    gain, error = search.paired(np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.0, 2.0]))
    assert gain == pytest.approx(-0.25)
    # Differences -0.5, 0, -1: standard deviation 0.5, error 0.5 / sqrt(3), over the mean of 2.
    assert error == pytest.approx(0.5 / 3**0.5 / 2)


def test_drawn_plans_exchange_the_share_asked_for() -> None:
    scores = np.random.default_rng(0).gamma(2, 1, (LAYERS, EXPERTS))
    random = np.random.default_rng(1)
    spread = search.spread_for(scores, choose, 0.2, random)
    centre = search._dropped(choose(scores), EXPERTS)
    changed = [
        (centre & ~search._dropped(choose(search.drawn(scores, spread, random)), EXPERTS)).sum()
        for _ in range(200)
    ]
    assert np.mean(changed) / centre.sum() == pytest.approx(0.2, abs=0.06)
