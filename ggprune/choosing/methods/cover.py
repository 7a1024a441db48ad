"""Choosing experts token by token; see choosing.cover for how."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ggprune.calibration.statistics import Statistics
from ggprune.choosing.cover import cover_scores
from ggprune.choosing.methods.method import Method, register
from ggprune.choosing.request import Request, Resources
from ggprune.choosing.scores import Scores
from ggprune.errors import InputError
from ggprune.types import Floats


def _score(statistics: Statistics, request: Request, resources: Resources) -> Scores:
    """Score by cover, which depends on how many experts stay.

    Raises:
        InputError: the statistics do not tell the routing of tokens.
    """
    routing, experts = statistics.shares, statistics.identity.experts
    if routing is None:
        raise InputError(
            f"method={request.method}: the statistics hold sums only, not the routing of tokens",
            remedy="Calibrate again, or use another method, for instance contribution.",
        )

    def for_count(keep: int, fixed: npt.NDArray[np.bool_], groups: int) -> Floats:
        return cover_scores(routing, keep, experts, fixed=fixed, groups=groups)

    return Scores(total=routing.sums(experts), for_count=for_count)


register(
    Method(
        name="cover",
        formula="smallest Σ over tokens of exp(5 · share of its experts' output that is lost)",
        source="docs/methods.md#cover",
        needs="routing",
        score=_score,
        candidate=True,
        summary="the experts to keep were chosen token by token, so that no token loses most of "
        "what its experts do (method `cover`)",
    )
)
