"""Random experts: the control that no claim is made without."""

from __future__ import annotations

import numpy as np

from ggprune.calibration.statistics import ExpertSums
from ggprune.choosing.methods.method import of_sums
from ggprune.types import Floats


@of_sums(
    "random",
    "seeded",
    "control",
    needs="nothing",
    candidate=False,
    summary="the experts to keep were drawn at random: a control, not a good model",
)
def random(sums: ExpertSums, seed: int = 0) -> Floats:
    """Draw uniform numbers."""
    return np.random.default_rng(seed).random(sums.count.shape)
