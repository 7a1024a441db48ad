"""EASY-EP: contribution where it turns the residual stream (arXiv 2504.06792)."""

from __future__ import annotations

import numpy as np

from ggprune.calibration.observers import ChangeObserver
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.methods.method import Method, register
from ggprune.choosing.request import Request, Resources
from ggprune.choosing.rerun import calibrate_again, text_of_domain
from ggprune.choosing.scores import Scores
from ggprune.errors import InputError


def _score(statistics: Statistics, request: Request, resources: Resources) -> Scores:
    """Sum g‖f‖ · max(1 - cos(x, x + m), 0) over another pass.

    Raises:
        InputError: no model, or an architecture whose residual stream has no name.
    """
    what = f"method={request.method}"
    model, _ = resources.runnable_for(what)
    observer = ChangeObserver(model.architecture, statistics.layers, model.experts)
    parts = []
    for domain in statistics.domains:
        text = text_of_domain(resources, domain.name)
        calibrate_again(what, statistics, resources, observer, text)
        parts.append(observer.take())
    if not observer.seen:
        raise InputError(
            f"{what}: llama.cpp does not name the residual stream of "
            f"{statistics.identity.architecture}",
            remedy="Use another method; contribution is the nearest.",
        )
    by_domain = np.array(parts)
    return Scores(total=by_domain.sum(axis=0), by_domain=by_domain)


register(
    Method(
        name="easy-ep",
        formula="Σ g‖f‖ · max(1 - cos(x, x + m), 0), x the residual stream before the FFN, m what "
        "the experts add",
        source="arXiv 2504.06792",
        needs="run",
        score=_score,
        additive=True,
    )
)
