"""The score that needs no run."""

from __future__ import annotations

from ggprune.calibration.statistics import Statistics
from ggprune.choosing.methods.method import Method, register
from ggprune.choosing.request import Request, Resources
from ggprune.choosing.scores import Scores
from ggprune.choosing.weights import weight_scores


def _score(statistics: Statistics, request: Request, resources: Resources) -> Scores:
    model = resources.model_for(f"method={request.method}")
    return Scores(total=weight_scores(model, statistics.layers))


register(
    Method(
        name="weights",
        formula="-mean|w| / rms(w) over gate, up and down",
        source="AIMER, arXiv 2603.18492",
        needs="weights",
        score=_score,
    )
)
