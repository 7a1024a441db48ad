"""Choosing experts token by token; see choosing.cover for how."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ggprune.calibration.routing import Shares
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.cover import BETA, GENTLE, by_contribution, cover_scores
from ggprune.choosing.methods.method import Method, register
from ggprune.choosing.request import Request, Resources
from ggprune.choosing.scores import Scores
from ggprune.errors import InputError
from ggprune.types import Floats

_SUMMARY = (
    "the experts to keep were chosen token by token, so that no token loses most of what its "
    "experts do (method `{}`)"
)


def _routing(statistics: Statistics, request: Request) -> Shares:
    """Return the routing of all tokens.

    Raises:
        InputError: the statistics hold none.
    """
    routing = statistics.shares
    if routing is None:
        raise InputError(
            f"method={request.method}: the statistics hold sums only, not the routing of tokens",
            remedy="Calibrate again, or use another method, for instance contribution.",
        )
    return routing


def _covering(routing: Shares, experts: int, beta: float) -> Scores:
    def for_count(keep: int, fixed: npt.NDArray[np.bool_], groups: int) -> Floats:
        return cover_scores(routing, keep, experts, fixed=fixed, groups=groups, beta=beta)

    return Scores(total=routing.sums(experts), for_count=for_count)


def _cover(statistics: Statistics, request: Request, resources: Resources) -> Scores:
    return _covering(_routing(statistics, request), statistics.identity.experts, BETA)


def _cover_sum(statistics: Statistics, request: Request, resources: Resources) -> Scores:
    routing = by_contribution(_routing(statistics, request), statistics.total.contribution_sum)
    return _covering(routing, statistics.identity.experts, GENTLE)


register(
    Method(
        name="cover",
        formula="smallest Σ over tokens of exp(5 · share of its experts' output that is lost)",
        source="docs/methods.md#cover",
        needs="routing",
        score=_cover,
        candidate=True,
        summary=_SUMMARY.format("cover"),
    )
)
register(
    Method(
        name="cover-sum",
        formula="smallest Σ over tokens of exp(2 · Σ g‖f‖ that is lost, over the mean)",
        source="docs/methods.md#cover",
        needs="routing",
        score=_cover_sum,
        candidate=True,
        summary=_SUMMARY.format("cover-sum"),
    )
)
