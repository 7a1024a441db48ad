"""Made-up statistics of a small model: few experts are popular, some write more loudly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ggprune.calibration.routing import Shares
from ggprune.calibration.statistics import Domain, ExpertSums, Statistics
from ggprune.model import Identity

LAYERS, EXPERTS = 3, 16


def statistics_of(
    *, domains: int = 3, groups: int = 1, tokens: int = 4000, seed: int = 0
) -> Statistics:
    random = np.random.default_rng(seed)
    parts = []
    for number in range(domains):
        sums = ExpertSums.zeros(LAYERS, EXPERTS)
        sums.tokens[:] = tokens
        popular = random.gamma(0.7, 1, (LAYERS, EXPERTS))
        sums.count[:] = (popular / popular.sum(axis=1, keepdims=True) * tokens * 4).astype(int)
        norms = random.lognormal(0, 0.5, (LAYERS, EXPERTS))
        sums.gate_sum[:] = sums.count * random.uniform(0.1, 0.4, (LAYERS, EXPERTS))
        sums.norm_sum[:] = sums.count * norms
        sums.norm_sq_sum[:] = sums.count * norms**2 * 1.1
        sums.contribution_sum[:] = sums.gate_sum * norms
        sums.norm_max[:] = norms * 2
        parts.append(Domain(f"d{number}", tokens, f"hash{number}", sums))
    identity = Identity("qwen3moe", LAYERS, EXPERTS, 4, "", "", groups=groups, groups_used=groups)
    return Statistics(identity, tuple(range(LAYERS)), tuple(parts))


def routed(tokens: int = 300) -> Statistics:
    """Statistics whose sums and routing have nothing to do with each other."""
    random = np.random.default_rng(1)
    draws = random.gumbel(size=(tokens, LAYERS, EXPERTS)) + random.normal(0, 1, (LAYERS, EXPERTS))
    experts = np.argsort(-draws, axis=2)[..., :4]
    shares = random.dirichlet(np.ones(4), (tokens, LAYERS))
    statistics = statistics_of(domains=1)
    given = Shares(experts.astype(np.int16), shares.astype(np.float16))
    return replace(statistics, domains=(replace(statistics.domains[0], shares=given),))
