"""Choosing experts token by token; see choosing.cover for how."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ggprune.calibration.statistics import Statistics
from ggprune.choosing.cover import GENTLE, cover_scores, losses
from ggprune.choosing.methods.method import Method, register
from ggprune.choosing.request import Request, Resources
from ggprune.choosing.scores import Scores
from ggprune.errors import InputError
from ggprune.model.architectures import ARCHITECTURES, Space
from ggprune.types import Floats


def _cover(statistics: Statistics, request: Request, resources: Resources) -> Scores:
    """Cover the routing of all tokens.

    Raises:
        InputError: the statistics hold none.
    """
    routing, experts = statistics.shares, statistics.identity.experts
    if routing is None:
        raise InputError(
            f"method={request.method}: the statistics hold sums only, not the routing of tokens",
            remedy="Calibrate again, or use another method, for instance contribution.",
        )
    architecture = ARCHITECTURES[statistics.identity.architecture]
    lost = losses(routing, normed=architecture.space is Space.NORMED)

    found: dict[tuple[int, bytes, int], Floats] = {}

    def for_count(keep: int, fixed: npt.NDArray[np.bool_], groups: int) -> Floats:
        asked = keep, fixed.tobytes(), groups
        if asked not in found:
            found[asked] = cover_scores(
                lost, keep, experts, fixed=fixed, groups=groups, beta=GENTLE
            )
        return found[asked]

    return Scores(total=lost.sums(experts), for_count=for_count)


register(
    Method(
        name="cover",
        formula="smallest Σ over tokens of exp(4 · the part of Σ g‖f‖ that is lost)",
        source="docs/methods.md#cover",
        needs="routing",
        score=_cover,
        candidate=True,
        summary="the experts to keep were chosen token by token, so that no token loses most of "
        "what its experts do (method `cover`)",
    )
)
