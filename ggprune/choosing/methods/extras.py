"""Methods that need more than the statistics file holds: they run the model over the text again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ggprune.calibration.extra_observers import ChangeObserver, RoutingRecorder
from ggprune.calibration.run import Run, Settings
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.ranking import Ranking, make_plan
from ggprune.errors import InputError
from ggprune.evaluation.masking import MaskObserver
from ggprune.llama.callback import Observer
from ggprune.model import MoeModel
from ggprune.plan import Plan
from ggprune.text.builtin import CALIBRATION, builtin_texts
from ggprune.text.documents import Source
from ggprune.types import Floats

if TYPE_CHECKING:
    from ggprune.choosing.choose import Request, Resources

#: Methods of this module, with the source of each.
EXTRA = {
    "easy-ep": "arXiv 2504.06792",
    "shape": "Shapley-MoE",
}


def extra_ranking(statistics: Statistics, request: Request, have: Resources) -> Ranking:
    """Scores of ``easy-ep`` or ``shape``.

    Args:
        statistics: of the same text.
        request: names the method.
        have: the model, and the text it was calibrated on.

    Raises:
        InputError: no model, or an architecture whose residual stream has no name.
    """
    if request.method == "shape":
        return Ranking.of(statistics, request, have.say, scores=_shapley(statistics, have))
    by_domain = _changes(statistics, have)
    total = by_domain.sum(axis=0)
    return Ranking.of(statistics, request, have.say, scores=total, by_domain=by_domain)


def iterated(ranking: Ranking, request: Request, have: Resources, keep: int) -> Plan:
    """Drop part of the experts, see where routing moves, drop the next part.

    Costs one calibration a round after the first.

    Args:
        ranking: by the statistics of the whole model.
        request: with the number of rounds.
        have: the model, and the text it was calibrated on.
        keep: experts a layer at the end.

    Raises:
        InputError: no model.
    """
    statistics, current = ranking.statistics, ranking
    counts = statistics.identity.counts
    gone = np.zeros((len(statistics.layers), counts.experts), np.bool_)
    for number in range(1, request.rounds + 1):
        left = counts.experts - (counts.experts - keep) * number / request.rounds
        stays = keep if number == request.rounds else counts.rounded(round(left), "up")
        scores = np.where(gone, -np.inf, current.ranked(stays)[0])
        kept = current.kept(scores, stays)
        gone[:] = True
        np.put_along_axis(gone, kept, False, axis=1)
        if number < request.rounds:
            have.say(f"round {number} of {request.rounds}: {stays} experts, calibrating again")
            fresh = _again(statistics, request, have, gone)
            current = replace(ranking, scores=fresh.scores, by_domain=fresh.by_domain)
    settings = {"rounds": request.rounds, "coverage": ranking.coverage(kept)}
    return make_plan(
        statistics,
        keep,
        ranking.method,
        scores=(~gone).astype(np.float64),
        seed=request.seed,
        settings=settings,
    )


def _again(
    statistics: Statistics, request: Request, have: Resources, gone: npt.NDArray[np.bool_]
) -> Ranking:
    """A ranking by statistics gathered with experts masked."""
    model = _model(have, f"--rounds {request.rounds}")
    dropped = {
        layer: np.flatnonzero(row).tolist()
        for layer, row in zip(statistics.layers, gone, strict=True)
    }
    mask = MaskObserver(model, dropped)
    return Ranking.of(_run(statistics, have, _sources(have), mask), request)


def _changes(statistics: Statistics, have: Resources) -> Floats:
    model = _model(have, "--method easy-ep")
    observer = ChangeObserver(model.architecture, statistics.layers, model.experts)
    found = []
    for domain in statistics.domains:
        _run(statistics, have, _of_domain(have, domain.name), observer)
        found.append(observer.take())
    if not observer.seen:
        name = statistics.identity.architecture
        raise InputError(
            f"--method easy-ep: llama.cpp does not name the residual stream of {name}",
            remedy="Use another method; contribution is the nearest.",
        )
    return np.array(found)


def _shapley(statistics: Statistics, have: Resources) -> Floats:
    model = _model(have, "--method shape")
    recorder = RoutingRecorder(model.architecture, statistics.layers, cut=False)
    parts = []
    for domain in statistics.domains:
        _run(statistics, have, _of_domain(have, domain.name), recorder)
        parts.append(recorder.take().experts)
    chosen = np.concatenate(parts)
    rows = [shapley(chosen[:, row], model.experts) for row in range(len(statistics.layers))]
    return np.array(rows)


def shapley(chosen: npt.NDArray[np.integer], experts: int) -> Floats:
    """Shapley share of the observed top-k sets (Shapley-MoE).

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
    shares = np.zeros(experts)
    for group, count in seen.items():
        for at, expert in enumerate(group):
            shares[expert] += count - least[expert] * without[group[:at] + group[at + 1 :]]
    return shares


def _run(
    statistics: Statistics, have: Resources, sources: Sequence[Source], observer: Observer
) -> Statistics:
    """Calibrate again with one more observer, as the statistics say it was done."""
    assert have.model is not None
    assert have.options is not None
    told = statistics.settings
    settings = Settings(
        ctx=int(told.get("ctx", 2048)),
        max_tokens=int(told.get("max_tokens", 0)) or None,
        generate=int(told.get("generate", 0)),
        seed=int(told.get("seed", 0)),
    )
    run = Run(have.model, sources, settings, have.options, have.progress, observers=(observer,))
    return run.run()


def _sources(have: Resources) -> tuple[Source, ...]:
    return have.sources or builtin_texts(CALIBRATION)


def _of_domain(have: Resources, name: str) -> list[Source]:
    found = [source for source in _sources(have) if source.domain == name]
    if not found:
        raise InputError(
            f"the statistics have a domain {name!r} that no text is given for",
            remedy=f"Give the text they were gathered on: --text {name}=PATH",
        )
    return found


def _model(have: Resources, option: str) -> MoeModel:
    if have.model is None or have.options is None:
        raise InputError(f"{option}: runs the model", remedy="Give it: --model MODEL")
    return have.model
