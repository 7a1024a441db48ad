"""The report's numbers, from whatever a run has left behind; no presentation.

Everything the page shows comes from the one dictionary that :func:`build` returns, which is also
what ``ggprune report --json`` prints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from ggprune import plan as plans
from ggprune.calibration.statistics import Statistics
from ggprune.errors import InputError
from ggprune.evaluation.verdict import MIN_RETAINED, scale, verdict
from ggprune.plan import Plan
from ggprune.report import sections
from ggprune.rewrite.drop_metadata import calibration_texts, images_note
from ggprune.types import Json
from ggprune.util import check_shape
from ggprune.version import VERSION

FORMAT = "ggprune-report"
_VERSION = 1
_ANY: Json = {}
#: What the page reads of files that people may have edited.
_SHAPES: Json = {
    "metadata": {
        **{f"{key}?": _ANY for key in ("source", "result", "calibration", "evaluation", "probe")},
        "settings?": _ANY,
        "images?": _ANY,
        "keep?": int,
        "experts?": int,
        "layers?": {str: {"keep": [int], "retained?": float, "rule?": str}},
    },
    "evaluation": {"base?": _ANY, "candidate?": _ANY, "domains?": {str: _ANY}},
    "sweep": {"points?": [{"method": str, "keep": int}], "cliff?": _ANY, "smallest?": _ANY},
    "frontier": {
        "points": [{"keep": int, "types": str, "size_bytes": int, "kld_mean": float}],
        "model?": str,
    },
    "tasks": {"tasks?": [{"task": str, "base": Any, "candidate": Any}]},
    "probe": {"modes?": {str: {"probes?": [{"id": str}]}}},
}


@dataclass(frozen=True, slots=True)
class ReportInput:
    """What a report is made of; each part may be missing.

    Attributes:
        metadata: the drop metadata written beside a pruned model.
        evaluation, sweep, probe, frontier: what the commands of these names write as JSON.
        command: the command line that made the pruned model.
        tasks: what ``ggprune bench-tasks --read FOLDER --json`` prints.
    """

    statistics: Statistics | None = None
    plan: Plan | None = None
    metadata: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    sweep: Mapping[str, Any] | None = None
    probe: Mapping[str, Any] | None = None
    command: str = ""
    tasks: Mapping[str, Any] | None = None
    frontier: Mapping[str, Any] | None = None


def build(given: ReportInput) -> Json:
    """Compute everything a report says; what cannot be computed from the parts is None.

    Raises:
        InputError: nothing is given.
        MismatchError: statistics and plan are of different models.
    """
    if not any(getattr(given, field.name) for field in fields(given) if field.name != "command"):
        raise InputError(
            "there is nothing to report",
            remedy="Give at least one of statistics, plan, metadata, evaluation, sweep, probe, "
            "tasks and frontier.",
        )
    for name, shape in _SHAPES.items():
        if (part := getattr(given, name)) is not None:
            check_shape(part, shape, f"the {name} is damaged")
    metadata = given.metadata or {}
    plan = given.plan or _plan_of(metadata)
    statistics = given.statistics
    if statistics and plan and plan.identity:
        statistics.identity.check_same(plan.identity, "the statistics", "the plan")
    evaluation = dict(given.evaluation or metadata.get("evaluation") or {})
    measured = evaluation.get("kld_mean") is not None
    report: Json = {
        "format": FORMAT,
        "version": _VERSION,
        "tool_version": VERSION,
        "model": sections.model(statistics, plan, metadata),
        "size": sections.size(metadata),
        "images": images_note(metadata),
        "retained": sections.retained(statistics, plan, None if measured else MIN_RETAINED),
        "heat_map": sections.heat_map(statistics, plan),
        "concentration": sections.concentration(statistics),
        "domains": sections.domains(statistics, plan),
        "evaluation": evaluation or None,
        "sweep": given.sweep or None,
        "probe": given.probe or metadata.get("probe") or None,
        "tasks": (given.tasks or {}).get("tasks") or None,
        "frontier": given.frontier or None,
        "provenance": _provenance(given, plan, metadata),
    }
    report["findings"] = _findings(report)
    report["scale"] = scale(evaluation.get("kld_mean"))
    finite: Json = _finite(report)
    return finite


def _findings(report: Json) -> list[Json]:
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
    return [asdict(each) for each in found]


def _plan_of(metadata: Mapping[str, Any]) -> Plan | None:
    """Read the plan that drop metadata states."""
    if not metadata.get("layers"):
        return None
    used = metadata.get("experts_used")
    fewer = used if used != metadata.get("source_experts_used", used) else 0
    stated = {**metadata, "format": plans.FORMAT, "version": plans.VERSION, "experts_used": fewer}
    return Plan.from_json(stated, "the drop metadata")


def _provenance(given: ReportInput, plan: Plan | None, metadata: Mapping[str, Any]) -> Json:
    statistics = given.statistics
    calibration = metadata.get("calibration") or {}
    texts = calibration_texts(metadata) or calibration_texts({"settings": plan and plan.settings})
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


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None; keys become text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
