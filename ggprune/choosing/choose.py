"""From statistics and a request to a plan: method, count, ranking, plan."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ggprune.calibration.statistics import Statistics
from ggprune.choosing.check import check_request
from ggprune.choosing.count import count_retaining, known_count
from ggprune.choosing.methods import METHODS, Method, find
from ggprune.choosing.protect import Protection
from ggprune.choosing.ranking import Decision, Ranking
from ggprune.choosing.request import (
    DEFAULT,
    DEFAULT_OF_SUMS,
    MEASURED,
    QUALITY_RULES,
    Request,
    Resources,
)
from ggprune.choosing.rounds import decide_in_rounds
from ggprune.choosing.scores import Scores, additive, choose_all, retained
from ggprune.choosing.search.contest import contest
from ggprune.choosing.search.measuring import best, decide_measured
from ggprune.choosing.trust import find_trust
from ggprune.choosing.weights import MTP_RULE, weight_scores
from ggprune.errors import InputError
from ggprune.model import MoeModel
from ggprune.model.architectures import Kind
from ggprune.plan import LayerPlan, Plan

log = logging.getLogger(__name__)


def choose_plan(
    statistics: Statistics,
    request: Request,
    resources: Resources | None = None,
    *,
    by_layer: bool = False,
) -> Plan:
    """Choose which experts stay.

    Args:
        statistics: what calibration observed.
        request: what is asked for.
        resources: what may be used.
        by_layer: let layers keep different numbers, the budget's on average, for a masked copy.

    Raises:
        InputError: an impossible budget, an unknown method or domain, a rule that needs the
            model and has none, or a promise that counts by layer cannot keep.
    """
    resources = resources or Resources()
    asked = request.method
    method = find(asked or default_method(statistics, request, None if by_layer else resources))
    request = replace(request, method=method.name)
    domains = [domain.name for domain in statistics.domains]
    identity = statistics.identity
    check_request(request, identity.architecture, statistics.layers, identity.counts, domains)
    promises = request.rounds > 1 or request.protect_domains or is_measured(request)
    if by_layer and (promises or request.budget.rule not in ("keep", "ratio")):
        raise InputError(
            "by_layer=True: counts by layer come from scores and one total",
            remedy="Give keep=N or ratio=R, a method of scores, no rounds and no protect_domains.",
        )
    rankings = rank(method, statistics, request, resources)
    keep = known_count(request.budget, statistics.identity.counts, resources.model)
    is_contest = method.decide is best and keep is not None and not _finds_settings(request)
    if is_measured(request) and not is_contest:
        decision = decide_measured(
            method.decide or best,
            rankings,
            statistics,
            request,
            resources,
            default=default_method(statistics, request),
            find_used=_finds_used(request),
        )
    elif is_contest and keep is not None:
        try:
            decision = contest(rankings, statistics, request, resources, keep)
        except InputError as error:
            if asked:
                raise
            log.info("methods are not compared: %s", error.message)
            decision = next(iter(rankings.values())).decided(keep)
    else:
        (ranking,) = rankings.values()
        if keep is None:
            keep = count_retaining(request.budget, ranking, statistics.total)
        if request.rounds > 1:
            decision = decide_in_rounds(ranking, method, statistics, request, resources, keep)
        else:
            decision = ranking.decided(keep, by_layer=by_layer)
    return plan_of(decision, statistics, request, resources.model)


def default_method(
    statistics: Statistics, request: Request, resources: Resources | None = None
) -> str:
    """Return the best method that statistics, request and resources allow (docs/evidence.md)."""
    if resources and resources.search_sources and may_be_measured(request, resources.model):
        return MEASURED
    by_sums = request.blend or request.rounds > 1 or not statistics.tells_routing
    return DEFAULT_OF_SUMS if by_sums else DEFAULT


def may_be_measured(request: Request, model: MoeModel | None) -> bool:
    """Whether methods are compared on the search text, if there is one."""
    causal = model is not None and model.architecture.kind is Kind.CAUSAL
    asked = request.method or request.rounds > 1 or request.budget.rule == "retain"
    return causal and not asked


def is_measured(request: Request) -> bool:
    """Whether choosing measures plans on the search text."""
    limited = request.budget.rule in QUALITY_RULES
    named = request.method is not None and find(request.method).decide is not None
    return named or limited or _finds_settings(request)


def rank(
    method: Method, statistics: Statistics, request: Request, resources: Resources
) -> dict[str, Ranking]:
    """Rank the experts by a method; by every candidate, if it decides among them.

    Raises:
        InputError: a method needs something that is missing, or its scores cannot be blended.
    """
    supers = request.super_experts and not method.is_control
    protection = Protection.of(statistics, request, super_experts=supers)
    trust = find_trust(statistics, resources.model) if method.observes else None
    rankings: dict[str, Ranking] = {}
    known: dict[str, Scores] = {}
    for name, (one, blend) in _candidates(method, statistics, request).items():
        asked = replace(request, method=one.name)
        scores = known.get(one.name) or one.scores(statistics, asked, resources)
        known |= scores.parts
        rankings[name] = Ranking(
            method=one.name,
            scores=scores,
            by_domain=additive(scores, statistics),
            protection=protection,
            blend=blend,
            trust=trust,
        )
    return rankings


def _candidates(
    method: Method, statistics: Statistics, request: Request
) -> dict[str, tuple[Method, str | None]]:
    """Methods to rank by, each with its blend; of several, the default first."""
    if method.decide is None:
        return {method.name: (method, request.blend)}
    several = len(statistics.domains) > 1
    tried: list[tuple[Method, str | None]] = [(find(default_method(statistics, request)), None)]
    for each in (method for method in METHODS.values() if method.candidate):
        tried += [(each, blend) for blend in (each.blends if several else (None,))]
    if not statistics.tells_routing:
        tried = [(each, blend) for each, blend in tried if each.needs != "routing"]
    if request.blend:
        tried = [(each, request.blend) for each, _ in tried if each.additive]
    return {f"{each.name}, {blend}" if blend else each.name: (each, blend) for each, blend in tried}


def _finds_used(request: Request) -> bool:
    """Whether the number of experts a token uses is to be found."""
    by_itself = request.method is not None and find(request.method).finds_used
    return request.experts_used == "auto" or (request.experts_used is None and by_itself)


def _finds_settings(request: Request) -> bool:
    """Whether more than who stays is to be found."""
    return _finds_used(request) or request.router_bias == "auto"


def plan_of(
    decision: Decision,
    statistics: Statistics,
    request: Request,
    model: MoeModel | None = None,
) -> Plan:
    """Make a plan of a decision, with a choice for MTP layers if there is a model."""
    identity, total = statistics.identity, statistics.total
    keep = sum(map(len, decision.kept)) // len(decision.kept)
    layers = {
        layer: LayerPlan(tuple(kept.tolist()), retained(total, row, kept))
        for row, (layer, kept) in enumerate(zip(statistics.layers, decision.kept, strict=True))
    }
    plan = Plan(
        keep=keep,
        layers={**layers, **_mtp_layers(model, keep)},
        method=decision.method,
        experts=identity.experts,
        architecture=identity.architecture,
        identity=identity,
        settings={
            "seed": request.seed,
            **_settings(request),
            **decision.facts,
            # So that whoever measures the plan on the same text is told.
            "calibration": {domain.name: domain.sha256 for domain in statistics.domains},
        },
    )
    used = request.fixed_used or decision.experts_used
    identity.counts.check_used(used, keep)
    zero_bias = decision.zero_bias or request.router_bias == "zero"
    return replace(plan, experts_used=used, zero_bias=zero_bias)


def _mtp_layers(model: MoeModel | None, keep: int) -> dict[int, LayerPlan]:
    """Choose for layers that decoding does not run (MTP), by their weights.

    Without the model they are left out of the plan; writing the file then applies the last
    layer's choice to them (see rewrite).
    """
    layers = [n for n in model.mtp_layers if n in model.expert_layers] if model else []
    if model is None or not layers:
        return {}
    kept = choose_all(weight_scores(model, layers), keep, model.counts.groups)
    return {
        layer: LayerPlan(tuple(row.tolist()), None, MTP_RULE)
        for layer, row in zip(layers, kept, strict=True)
    }


def _settings(request: Request) -> Mapping[str, Any]:
    """Record in the plan's file what was asked for."""
    budget = request.budget
    asked: dict[str, Any] = {budget.rule: getattr(budget, budget.rule)}
    if budget.multiple_of > 1:
        asked["multiple_of"] = budget.multiple_of
    for name in ("blend", "protect_domains", "always_keep"):
        if value := getattr(request, name):
            asked[name] = value
    return asked
