"""How far scores can be believed in layers that saw little text."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from ggprune.calibration.statistics import Statistics
from ggprune.choosing.scores import comparable, fractions, ranks
from ggprune.choosing.weights import weight_scores
from ggprune.model import MoeModel
from ggprune.types import Floats

log = logging.getLogger(__name__)

#: Tokens that an evenly used expert needs to see for its score to stand on its own.
JUDGED = 32


@dataclass(frozen=True, slots=True)
class Trust:
    """Scores to fall back on, and how far.

    Attributes:
        share: of a layer's own scores, 0 to 1, [layers].
        fallback: scores from the weights alone, [layers, experts].
    """

    share: Floats
    fallback: Floats

    def mixed(self, scores: Floats) -> Floats:
        """Pull layers that saw too little text toward the fallback."""
        share = self.share[:, None]
        pulled: Floats = share * comparable(scores)
        return pulled + (1 - share) * fractions(ranks(self.fallback))


def trust_of(statistics: Statistics) -> Floats:
    """Compute how far each layer's scores can be believed, 0 to 1: tokens an expert over JUDGED.

    Tokens an expert are those of an evenly used one: tokens · used / experts. An expert that was
    hardly chosen among many tokens is judged well; one among few tokens is not.
    """
    even = statistics.total.count.sum(axis=1) / max(statistics.identity.experts, 1)
    trusted: Floats = np.minimum(even / JUDGED, 1.0)
    return trusted


def find_trust(statistics: Statistics, model: MoeModel | None) -> Trust | None:
    """Find whether layers saw too little text, note it, and give their scores a fallback.

    Returns:
        None if all of them saw enough, or there is no model to score the weights of.
    """
    share = trust_of(statistics)
    few = int((share < 1).sum())
    if not few:
        return None
    layers = f"{few} of {len(share)} layers saw fewer than {JUDGED} tokens an expert"
    if model is None:
        log.warning("%s: their choice is a guess; calibrate on more text, or give model", layers)
        return None
    log.info("%s: their scores are pulled toward the weights' own", layers)
    return Trust(share, weight_scores(model, statistics.layers))
