"""Ranking experts by what several methods agree on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ggprune.calibration.statistics import Statistics
from ggprune.choosing.methods.method import Method, find, register
from ggprune.choosing.request import Request, Resources
from ggprune.choosing.scores import Scores, ranks
from ggprune.types import Floats


def _consensus(statistics: Statistics, request: Request, resources: Resources) -> Scores:
    """Add the ranks of an expert in its layer: by cover, and by a middle of sum and mean.

    Sums spare experts that are chosen often for little, means those that are hardly ever chosen.
    Their geometric mean is √(Σ g‖f‖ · (1/N) Σ g‖f‖) = Σ g‖f‖ / √N.

    Raises:
        InputError: the statistics hold no routing.
    """
    parts = {
        name: find(name).scores(statistics, request, resources)
        for name in ("cover", "contribution", "reap")
    }
    cover, whole, mean = parts.values()
    between = ranks(np.sqrt(whole.total * mean.total))

    def for_count(keep: int, fixed: npt.NDArray[np.bool_], groups: int) -> Floats:
        assert cover.for_count is not None
        return ranks(cover.for_count(keep, fixed, groups)) + between

    return Scores(total=ranks(cover.total) + between, for_count=for_count, parts=parts)


register(
    Method(
        name="consensus",
        formula="rank by cover + rank by Σ g‖f‖ / √N",
        source="docs/methods.md#consensus",
        needs="routing",
        score=_consensus,
        candidate=True,
        summary="the experts to keep are those that several methods agree on (method `consensus`): "
        "the rank in the layer by `cover`, plus that by the geometric mean of `contribution` and "
        "`reap`",
    )
)
