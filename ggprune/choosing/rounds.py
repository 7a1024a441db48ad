"""Dropping in rounds: part of the experts, another calibration, the next part."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from ggprune.calibration.statistics import Statistics
from ggprune.choosing.methods.method import Method
from ggprune.choosing.ranking import Decision, Ranking
from ggprune.choosing.request import Request, Resources
from ggprune.choosing.rerun import calibrate_again
from ggprune.choosing.scores import additive, marked
from ggprune.evaluation.masking import MaskObserver

log = logging.getLogger(__name__)


def decide_in_rounds(
    ranking: Ranking,
    method: Method,
    statistics: Statistics,
    request: Request,
    resources: Resources,
    keep: int,
) -> Decision:
    """Drop part of the experts, see where routing moves, drop the next part.

    Each round after the first costs a calibration; ``ranking`` is of the whole model.

    Raises:
        InputError: there is no model.
    """
    counts, current = statistics.identity.counts, ranking
    gone = np.zeros((len(statistics.layers), counts.experts), np.bool_)
    for number in range(1, request.rounds + 1):
        left = counts.experts - (counts.experts - keep) * number / request.rounds
        stays = keep if number == request.rounds else counts.rounded(round(left), "up")
        scores = np.where(gone, -np.inf, current.scored(stays)[0])
        kept = ranking.protection.kept(scores, stays)
        gone = ~marked(kept, counts.experts)
        if number < request.rounds:
            log.info("round %d of %d: %d experts, calibrating again", number, request.rounds, stays)
            mask = {
                layer: np.flatnonzero(row).tolist()
                for layer, row in zip(statistics.layers, gone, strict=True)
            }
            what = f"rounds={request.rounds}"
            model, _ = resources.runnable_for(what)
            observer = MaskObserver(model, mask, zero_bias=request.router_bias == "zero")
            again = calibrate_again(what, statistics, resources, observer)
            fresh = method.scores(again, request, resources)
            current = replace(ranking, scores=fresh, by_domain=additive(fresh, again))
    facts = {"rounds": request.rounds, "coverage": ranking.coverage(kept)}
    return Decision(method=method.name, kept=kept, facts=facts)
