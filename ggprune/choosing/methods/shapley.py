"""Shapley shares of the observed top-k sets (Shapley-MoE)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from ggprune.calibration.observers import RoutingRecorder
from ggprune.calibration.statistics import WEIGHT, Statistics
from ggprune.choosing.methods.method import Method, register
from ggprune.choosing.request import Request, Resources
from ggprune.choosing.rerun import calibrate_again, text_of_domain
from ggprune.choosing.scores import Scores
from ggprune.errors import InputError
from ggprune.types import Floats


def shapley(chosen: npt.NDArray[np.integer], experts: int) -> Floats:
    """Compute the Shapley share of each expert in the observed top-k sets.

    For a set A seen v(A) times and an expert j of it, n(A-j) is how often sets containing the
    others were seen, and a_j = min v(A) / n(A-j) over the sets with j: what the others would get
    without it. phi_j = Σ over A containing j of v(A) - a_j · n(A-j).

    Args:
        chosen: experts of each token, [tokens, used].
        experts: in the layer.

    Returns:
        [experts]; 0 for those never chosen.
    """
    seen = Counter(tuple(sorted(row)) for row in chosen.tolist())
    without: Counter[tuple[int, ...]] = Counter()
    for group, count in seen.items():
        for at in range(len(group)):
            without[group[:at] + group[at + 1 :]] += count
    least = np.full(experts, np.inf)
    for group, count in seen.items():
        for at, expert in enumerate(group):
            least[expert] = min(least[expert], count / without[group[:at] + group[at + 1 :]])
    result = np.zeros(experts)
    for group, count in seen.items():
        for at, expert in enumerate(group):
            result[expert] += count - least[expert] * without[group[:at] + group[at + 1 :]]
    return result


def _score(statistics: Statistics, request: Request, resources: Resources) -> Scores:
    what = f"method={request.method}"
    if WEIGHT in statistics.settings:
        raise InputError(
            f"{what}: counts all tokens alike, and the statistics give them weights",
            remedy="Use another method, or calibrate without weights.",
        )
    model, _ = resources.runnable_for(what)
    recorder = RoutingRecorder(model.architecture, statistics.layers, cut=False)
    parts = []
    for domain in statistics.domains:
        text = text_of_domain(resources, domain.name)
        calibrate_again(what, statistics, resources, recorder, text)
        parts.append(recorder.take()[0])
    chosen = np.concatenate(parts)
    rows = [shapley(chosen[:, row], model.experts) for row in range(len(statistics.layers))]
    return Scores(total=np.array(rows))


register(
    Method(
        name="shape",
        formula="Shapley share of the observed top-k sets",
        source="Shapley-MoE",
        needs="run",
        score=_score,
    )
)
