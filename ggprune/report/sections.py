"""The parts of the report that are computed from statistics, plan and drop metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ggprune.calibration.statistics import Statistics
from ggprune.choosing import blend
from ggprune.choosing.methods import METHODS
from ggprune.choosing.methods.method import Method
from ggprune.choosing.scores import retained as retained_share
from ggprune.plan import Plan
from ggprune.report import concentration as measures
from ggprune.types import Floats, Json

MEASURE = "Σ g‖f‖"
_TOP = 8
_SHARE = 0.8
_FALLBACK_SCORE = "contribution"


def model(statistics: Statistics | None, plan: Plan | None, metadata: Mapping[str, Any]) -> Json:
    """Say what was pruned, and to how many experts."""
    identity = statistics.identity if statistics else plan.identity if plan else None
    source = metadata.get("source") or {}
    method = METHODS.get(plan.method) if plan else None
    return {
        "name": (identity.name if identity else "") or source.get("name", ""),
        "architecture": identity.architecture if identity else plan.architecture if plan else "",
        "layers": identity.layers if identity else None,
        "moe_layers": len(statistics.layers) if statistics else len(plan.layers) if plan else None,
        "experts": (identity.experts if identity else plan.experts if plan else 0) or None,
        "experts_used": identity.experts_used if identity else None,
        "keep": plan.keep if plan else None,
        "keep_used": (plan.experts_used or None) if plan else None,
        "method": plan.method if plan else None,
        "formula": method.formula if method else None,
    }


def size(metadata: Mapping[str, Any]) -> Json | None:
    """Compare bytes before and after."""
    before = (metadata.get("source") or {}).get("size_bytes")
    after = (metadata.get("result") or {}).get("size_bytes")
    if not before or not after:
        return None
    saved = before - after
    return {"before": before, "after": after, "saved": saved, "saved_share": saved / before}


def retained(
    statistics: Statistics | None, plan: Plan | None, limit: float | None = None
) -> Json | None:
    """Give the share of Σ g‖f‖ each layer keeps: from the plan, else from the statistics.

    Layers below ``limit`` are marked; none without one, since the cost was measured.
    """
    if plan is None:
        return None
    total = statistics.total if statistics else None
    rows = {layer: row for row, layer in enumerate(statistics.layers)} if statistics else {}
    layers: list[Json] = []
    for layer, part in sorted(plan.layers.items()):
        share = part.retained
        if share is None and total is not None and layer in rows:
            share = retained_share(total, rows[layer], np.array(part.keep))
        low = share is not None and limit is not None and share < limit
        layers.append({"layer": layer, "share": share, "low": low, "rule": part.rule})
    summary = _worst_and_mean([(part["share"], part["layer"]) for part in layers])
    return {"measure": MEASURE, "limit": limit, **summary, "layers": layers} if summary else None


def _worst_and_mean(shares: Sequence[tuple[float | None, int]]) -> Json | None:
    known = [(share, layer) for share, layer in shares if share is not None]
    if not known:
        return None
    share, layer = min(known)
    mean = sum(share for share, _ in known) / len(known)
    return {"worst": {"layer": layer, "share": share}, "mean": mean}


def _scores(statistics: Statistics, plan: Plan | None) -> tuple[Method, str, Floats]:
    """Compute the scores: the plan's method, a note where that is not all, [layers, experts]."""
    fallback = METHODS[_FALLBACK_SCORE]
    method = METHODS.get(plan.method) if plan else fallback
    settings = plan.settings if plan else {}
    weights = settings.get("weights")
    if method is None or method.sums is None:
        note = f"The method of the plan, {plan and plan.method}, is not one score; shown instead:"
        assert fallback.sums is not None
        return fallback, note, fallback.sums(statistics.total, 0)
    names = [domain.name for domain in statistics.domains]
    if isinstance(weights, Mapping) and set(weights) == set(names):
        parts = method.by_domain(statistics)
        blended = blend.blended(parts, np.array([float(weights[name]) for name in names]))
        return method, "Domains are blended with the weights of the plan.", blended
    return method, "", method.sums(statistics.total, int(settings.get("seed") or 0))


def heat_map(statistics: Statistics | None, plan: Plan | None) -> Json | None:
    """List scores and counts of all experts, [layers][experts], and which are dropped."""
    if statistics is None:
        return None
    method, note, scores = _scores(statistics, plan)
    total = statistics.total
    planned = plan.layers if plan else ()
    return {
        "score": method.name,
        "formula": method.formula,
        "note": note,
        "layers": list(statistics.layers),
        "tokens": total.tokens.tolist(),
        "scores": [[_short(value) for value in row] for row in scores.tolist()],
        "relative": measures.relative(scores).round(3).tolist(),
        "counts": total.count.tolist(),
        "dropped": [
            list(plan.dropped(layer)) if plan and layer in planned else []
            for layer in statistics.layers
        ],
    }


def concentration(statistics: Statistics | None) -> Json | None:
    """Measure how unevenly the experts of each layer contribute."""
    if statistics is None:
        return None
    rows = statistics.total.contribution_sum
    layers: list[Json] = [
        {
            "layer": layer,
            "top_share": measures.top_share(row, _TOP),
            "experts_for_share": measures.experts_for(row, _SHARE),
            "gini": measures.gini(row),
        }
        for layer, row in zip(statistics.layers, rows, strict=True)
    ]
    names = ("top_share", "experts_for_share", "gini")
    mean = {name: float(np.mean([each[name] for each in layers])) for name in names}
    return {"measure": MEASURE, "top": _TOP, "share": _SHARE, "mean": mean, "layers": layers}


def domains(statistics: Statistics | None, plan: Plan | None) -> Json | None:
    """Compare the top experts of kinds of text, and what each of them keeps."""
    if statistics is None:
        return None
    experts = statistics.identity.experts
    # A quarter of all, 32 of 128, and never more.
    top = min(32, max(1, experts // 4))
    sums = [domain.sums.contribution_sum for domain in statistics.domains]
    overlap = measures.overlap(sums, top) if len(sums) > 1 else None
    return {
        "names": [domain.name for domain in statistics.domains],
        "tokens": [domain.tokens for domain in statistics.domains],
        "top": top,
        "by_chance": top * top / experts,
        "overlap": overlap.tolist() if overlap is not None else None,
        "retained": _retained_by_domain(statistics, plan) if plan else None,
    }


def _retained_by_domain(statistics: Statistics, plan: Plan) -> list[Json | None]:
    """Compute the share of its own Σ g‖f‖ that each domain keeps: mean and worst layer."""
    rows = [(row, layer) for row, layer in enumerate(statistics.layers) if layer in plan.layers]
    keep = {layer: np.array(plan.layers[layer].keep) for _, layer in rows}
    return [
        _worst_and_mean([(retained_share(domain.sums, row, keep[n]), n) for row, n in rows])
        for domain in statistics.domains
    ]


def _short(value: float) -> float:
    """Round to four significant digits: what a tooltip shows, and a fifth of the bytes."""
    return float(f"{value:.4g}") if math.isfinite(value) else value
