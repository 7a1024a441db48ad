"""The report's numbers, from whatever a run has left behind; no presentation.

Everything the page shows comes from the one dictionary that :func:`build` returns, which is also
what ``ggprune report --json`` prints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ggprune import blend, scoring
from ggprune.errors import InputError
from ggprune.plan import LayerPlan, Plan
from ggprune.ranking import scores_by_domain
from ggprune.report import concentration
from ggprune.scoring import Floats
from ggprune.statistics import Statistics
from ggprune.verdict import verdict
from ggprune.version import VERSION

FORMAT = "ggprune-report"
_VERSION = 1
_TOP = 8
_SHARE = 0.8
#: As the seed card counts: 32 of 128 experts.
_OVERLAP_PART = 4
_OVERLAP_MOST = 32
_FALLBACK_SCORE = "contribution"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReportInput:
    """What a report is made of; each part may be missing.

    Attributes:
        statistics: of the base model.
        plan: which experts stay.
        metadata: the drop metadata written beside a pruned model.
        evaluation: what ``ggprune evaluate --json`` prints.
        sweep: what ``ggprune sweep`` writes.
        probe: what ``ggprune probe`` writes.
        command: the command line that made the pruned model.
    """

    statistics: Statistics | None = None
    plan: Plan | None = None
    metadata: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    sweep: Mapping[str, Any] | None = None
    probe: Mapping[str, Any] | None = None
    command: str = ""


def build(given: ReportInput) -> Json:
    """Compute everything a report says.

    Parts that cannot be computed from what is given are None.

    Raises:
        InputError: nothing is given.
        MismatchError: statistics and plan are of different models.
    """
    if not any(getattr(given, field.name) for field in fields(given) if field.name != "command"):
        raise InputError(
            "there is nothing to report",
            remedy="Give at least one of --statistics, --plan, --metadata, --evaluation, "
            "--sweep and --probe.",
        )
    metadata = given.metadata or {}
    plan = given.plan or _plan_of(metadata)
    statistics = given.statistics
    if statistics and plan and plan.identity:
        statistics.identity.check_same(plan.identity, "the statistics", "the plan")
    report: Json = {
        "format": FORMAT,
        "version": _VERSION,
        "tool_version": VERSION,
        "model": _model(statistics, plan, metadata),
        "size": _size(metadata),
        "retained": _retained(statistics, plan),
        "heat_map": _heat_map(statistics, plan),
        "concentration": _concentration(statistics),
        "domains": _domains(statistics, plan),
        "evaluation": dict(given.evaluation or metadata.get("evaluation") or {}) or None,
        "sweep": dict(given.sweep) if given.sweep else None,
        "probe": dict(given.probe) if given.probe else None,
        "provenance": _provenance(given, plan, metadata),
    }
    report["findings"] = _findings(report)
    finite: Json = _finite(report)
    return finite


def _findings(report: Json) -> list[Json]:
    """What evaluate's verdict calls bad."""
    layers = (report["retained"] or {}).get("layers") or []
    try:
        found = verdict(
            evaluation=report["evaluation"],
            sweep=report["sweep"],
            keep=report["model"]["keep"],
            retained={each["layer"]: each["share"] for each in layers},
            probe=report["probe"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"the evaluation, sweep or probe is damaged: {error!r}",
            remedy="Give files that `ggprune evaluate`, `sweep` and `probe` wrote with --json.",
        ) from error
    return [each.as_json() for each in found]


def _plan_of(metadata: Mapping[str, Any]) -> Plan | None:
    """The plan that drop metadata states."""
    layers = metadata.get("layers")
    if not isinstance(layers, Mapping) or not layers:
        return None
    try:
        parts = {
            int(layer): LayerPlan(
                tuple(part["keep"]), part.get("retained"), str(part.get("rule", ""))
            )
            for layer, part in layers.items()
        }
        return Plan(
            int(metadata["keep"]),
            parts,
            str(metadata.get("method", "")),
            int(metadata.get("experts") or 0),
            str(metadata.get("architecture", "")),
            None,
            metadata.get("settings") or {},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the drop metadata is damaged: {error!r}") from error


def _model(statistics: Statistics | None, plan: Plan | None, metadata: Mapping[str, Any]) -> Json:
    identity = statistics.identity if statistics else plan.identity if plan else None
    source = metadata.get("source") or {}
    facts: Json = {
        "name": (identity.name if identity else "") or source.get("name", ""),
        "architecture": identity.architecture if identity else plan.architecture if plan else "",
        "layers": identity.layers if identity else None,
        "moe_layers": len(statistics.layers) if statistics else len(plan.layers) if plan else None,
        "experts": (identity.experts if identity else plan.experts if plan else 0) or None,
        "experts_used": identity.experts_used if identity else None,
        "keep": plan.keep if plan else None,
        "method": plan.method if plan else None,
    }
    method = scoring.METHODS.get(plan.method) if plan else None
    facts["formula"] = method.formula if method else None
    return facts


def _size(metadata: Mapping[str, Any]) -> Json | None:
    before = (metadata.get("source") or {}).get("size_bytes")
    after = (metadata.get("result") or {}).get("size_bytes")
    if not before or not after:
        return None
    return {
        "before": before,
        "after": after,
        "saved": before - after,
        "saved_share": (before - after) / before,
    }


def _retained(statistics: Statistics | None, plan: Plan | None) -> Json | None:
    """Share of Σ g‖f‖ each layer keeps: the plan's own numbers, else from the statistics."""
    if plan is None:
        return None
    total = statistics.total if statistics else None
    rows = {layer: row for row, layer in enumerate(statistics.layers)} if statistics else {}
    layers = []
    for layer, part in sorted(plan.layers.items()):
        share = part.retained
        if share is None and total is not None and layer in rows:
            share = scoring.retained(total, rows[layer], np.array(part.keep))
        layers.append({"layer": layer, "share": share, "rule": part.rule})
    known = [(each["share"], each["layer"]) for each in layers if each["share"] is not None]
    if not known:
        return None
    worst = min(known)
    return {
        "measure": "Σ g‖f‖",
        "worst": {"layer": worst[1], "share": worst[0]},
        "mean": sum(share for share, _ in known) / len(known),
        "layers": layers,
    }


def _scores(statistics: Statistics, plan: Plan | None) -> tuple[str, str, Floats]:
    """The plan's score: its name, a note where that is not all, [layers, experts]."""
    method = plan.method if plan else _FALLBACK_SCORE
    settings = plan.settings if plan else {}
    weights = settings.get("weights")
    if method not in scoring.METHODS:
        note = f"The method of the plan, {method}, is not one score; shown instead:"
        return _FALLBACK_SCORE, note, scoring.score(_FALLBACK_SCORE, statistics.total)
    names = [domain.name for domain in statistics.domains]
    if isinstance(weights, Mapping) and set(weights) == set(names):
        parts = scores_by_domain(statistics, method)
        blended = blend.blended(parts, np.array([float(weights[name]) for name in names]))
        return method, "Domains are blended with the weights of the plan.", blended
    return method, "", scoring.score(method, statistics.total, int(settings.get("seed") or 0))


def _heat_map(statistics: Statistics | None, plan: Plan | None) -> Json | None:
    if statistics is None:
        return None
    method, note, scores = _scores(statistics, plan)
    total = statistics.total
    dropped = [
        list(plan.dropped(layer)) if plan and layer in plan.layers else []
        for layer in statistics.layers
    ]
    return {
        "score": method,
        "formula": scoring.METHODS[method].formula,
        "note": note,
        "layers": list(statistics.layers),
        "tokens": total.tokens.tolist(),
        "scores": [[_short(value) for value in row] for row in scores.tolist()],
        "relative": [
            [round(value, 3) for value in row] for row in concentration.relative(scores).tolist()
        ],
        "counts": total.count.tolist(),
        "dropped": dropped,
    }


def _concentration(statistics: Statistics | None) -> Json | None:
    if statistics is None:
        return None
    rows = statistics.total.contribution_sum
    layers: list[Json] = [
        {
            "layer": layer,
            "top_share": concentration.top_share(rows[index], _TOP),
            "experts_for_share": concentration.experts_for(rows[index], _SHARE),
            "gini": concentration.gini(rows[index]),
        }
        for index, layer in enumerate(statistics.layers)
    ]
    names = ("top_share", "experts_for_share", "gini")
    mean = {name: float(np.mean([each[name] for each in layers])) for name in names}
    return {"measure": "Σ g‖f‖", "top": _TOP, "share": _SHARE, "mean": mean, "layers": layers}


def _domains(statistics: Statistics | None, plan: Plan | None) -> Json | None:
    if statistics is None:
        return None
    experts = statistics.identity.experts
    top = min(_OVERLAP_MOST, max(1, experts // _OVERLAP_PART))
    sums = [domain.sums.contribution_sum for domain in statistics.domains]
    overlap = concentration.overlap(sums, top) if len(sums) > 1 else None
    return {
        "names": [domain.name for domain in statistics.domains],
        "tokens": [domain.tokens for domain in statistics.domains],
        "top": top,
        "by_chance": top * top / experts,
        "overlap": overlap.tolist() if overlap is not None else None,
        "retained": _retained_by_domain(statistics, plan) if plan else None,
    }


def _retained_by_domain(statistics: Statistics, plan: Plan) -> list[Json]:
    """What each domain keeps of its own Σ g‖f‖: the mean over layers and the worst one."""
    result = []
    for domain in statistics.domains:
        shares = [
            (scoring.retained(domain.sums, row, np.array(plan.layers[layer].keep)), layer)
            for row, layer in enumerate(statistics.layers)
            if layer in plan.layers
        ]
        if shares:
            worst = min(shares)
            mean = sum(share for share, _ in shares) / len(shares)
            result.append({"mean": mean, "worst": {"layer": worst[1], "share": worst[0]}})
    return result


def _provenance(given: ReportInput, plan: Plan | None, metadata: Mapping[str, Any]) -> Json:
    """How it was made: versions, command, hashes."""
    statistics = given.statistics
    calibration = metadata.get("calibration") or {}
    texts = calibration.get("domains") or {}
    if statistics:
        texts = {d.name: {"tokens": d.tokens, "sha256": d.sha256} for d in statistics.domains}
    identity = statistics.identity if statistics else plan.identity if plan else None
    settings = dict(statistics.settings) if statistics else calibration.get("settings") or {}
    return {
        "command": given.command,
        "tool_version": metadata.get("tool_version") or VERSION,
        "source": metadata.get("source"),
        "result": metadata.get("result"),
        "plan_sha256": plan.hash if plan else None,
        "plan_settings": dict(plan.settings) if plan else {},
        "router_sha256": identity.router if identity else None,
        "tokenizer_sha256": identity.tokenizer if identity else None,
        "calibration_settings": settings,
        "calibration_texts": texts,
    }


def _short(value: float) -> float:
    """Four significant digits: what a tooltip shows, and a fifth of the bytes."""
    return float(f"{value:.4g}") if math.isfinite(value) else value


def _finite(value: Any) -> Any:
    """The same without NaN and infinities, which JSON does not have; keys as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
