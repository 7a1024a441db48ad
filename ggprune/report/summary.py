"""The report in under 25 lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggprune.report.view import fixed, number, percent
from ggprune.util import human_size

_MOST_LINES = 24
_MOST_FINDINGS = 5
_MOST_TASKS = 3


def summary_lines(report: Mapping[str, Any], most: int = _MOST_LINES) -> list[str]:
    """List the essential in fewer than 25 lines.

    Args:
        report: as ``build`` or ``write_report`` return it.
        most: lines at most; what is bad goes before what is merely interesting.
    """
    rows = [
        ("model", str(report["model"]["name"] or "")),
        ("size", _size(report)),
        ("experts", _experts(report)),
        ("retained", _retained(report)),
        *_evaluation(report),
        ("for scale", report["scale"]),
        ("by domain", _by_domain(report)),
        *_probes(report),
        *_tasks(report),
        ("sweep", _sweep(report)),
        ("concentration", _concentration(report)),
        ("domains", _overlap(report)),
    ]
    bad = _findings(report)
    shown = [(name, text) for name, text in rows if text][: max(most - len(bad), 0)]
    width = max((len(name) for name, _ in shown), default=0)
    lines = [f"{name.ljust(width)}  {text}" for name, text in shown] + bad
    return [line.replace("\u202f", " ") for line in lines]


def _size(report: Mapping[str, Any]) -> str:
    size = report["size"]
    if not size:
        return ""
    before, after = human_size(size["before"]), human_size(size["after"])
    return f"{before} -> {after} (-{percent(size['saved_share'])})"


def _experts(report: Mapping[str, Any]) -> str:
    model = report["model"]
    if not model["keep"]:
        return f"{model['experts']} a layer, no plan given" if model["experts"] else ""
    fewer = f"{model['experts_used'] or '?'} -> {model['keep_used']} used, "
    used = fewer if model["keep_used"] else ""
    return f"{model['experts'] or '?'} -> {model['keep']} a layer, {used}by {model['method']}"


def _retained(report: Mapping[str, Any]) -> str:
    retained = report["retained"]
    if not retained:
        return ""
    worst = retained["worst"]
    return (
        f"worst layer {worst['layer']} keeps {percent(worst['share'], 2)} of Σ g‖f‖, "
        f"mean {percent(retained['mean'], 2)}"
    )


def _evaluation(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = report["evaluation"]
    if not found:
        return []
    base, candidate = found.get("base") or {}, found.get("candidate") or {}
    return [
        (
            "perplexity",
            f"{number(base.get('ppl'), 4)} -> {number(candidate.get('ppl'), 4)}, ratio "
            f"{fixed(found.get('ppl_ratio'))} ± {fixed(found.get('ppl_ratio_se'))}",
        ),
        (
            "KL divergence",
            f"mean {number(found.get('kld_mean'))} ± {number(found.get('kld_se'), 2)}, "
            f"99 % of tokens below {number(found.get('kld_p99'))}",
        ),
        ("same top token", percent(found.get("top1_agreement"))),
    ]


def _by_domain(report: Mapping[str, Any]) -> str:
    domains = (report["evaluation"] or {}).get("domains") or {}
    known = [(part["kld_mean"], name) for name, part in domains.items() if part.get("kld_mean")]
    if len(known) < 2:
        return ""
    (low, best), (high, worst) = min(known), max(known)
    return f"mean KL from {number(low)} ({best}) to {number(high)} ({worst})"


def _tasks(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            str(row["task"]),
            f"{percent((row['base'] or {}).get('score'))} -> "
            f"{percent((row['candidate'] or {}).get('score'))}",
        )
        for row in (report["tasks"] or [])[:_MOST_TASKS]
    ]


def _sweep(report: Mapping[str, Any]) -> str:
    found = report["sweep"] or {}
    told = []
    for key, text in (("cliff", "cliff below"), ("smallest", "within the tolerance")):
        known = [f"{keep} ({method})" for method, keep in (found.get(key) or {}).items() if keep]
        if known:
            told.append(f"{text} {', '.join(known)}")
    if not told and found.get("points"):
        return f"{len(found['points'])} plans, no cliff"
    return "; ".join(told)


def _probes(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for name, mode in list(((report["probe"] or {}).get("modes") or {}).items())[:2]:
        base, candidate = mode.get("base") or {}, mode.get("candidate") or {}
        told = ", ".join(
            f"{what} {percent(base.get(key), 0)} -> {percent(candidate.get(key), 0)}"
            for key, what in (("loop_rate", "loops"), ("collapse_rate", "collapses"))
        )
        lines.append((name, told))
    return lines


def _concentration(report: Mapping[str, Any]) -> str:
    found = report["concentration"]
    if not found:
        return ""
    mean = found["mean"]
    return (
        f"top {found['top']} experts have {percent(mean['top_share'], 0)} of Σ g‖f‖; "
        f"{fixed(mean['experts_for_share'], 0)} reach {percent(found['share'], 0)}; "
        f"Gini {fixed(mean['gini'], 2)}"
    )


def _overlap(report: Mapping[str, Any]) -> str:
    domains = report["domains"]
    if not domains or not domains["overlap"]:
        return ""
    names, overlap = domains["names"], domains["overlap"]
    pairs = [
        (overlap[i][j], names[i], names[j])
        for i in range(len(names))
        for j in range(i)
        if overlap[i][j] is not None
    ]
    if not pairs:
        return ""
    shared, one, other = min(pairs)
    return f"least alike: {other} and {one} share {fixed(shared, 1)} of their top {domains['top']}"


def _findings(report: Mapping[str, Any]) -> list[str]:
    found = report["findings"]
    lines: list[str] = []
    for each in found[:_MOST_FINDINGS]:
        lines += [f"BAD: {each['text']}", f"  -> {each['remedy']}"]
    if len(found) > _MOST_FINDINGS:
        lines.append(f"and {len(found) - _MOST_FINDINGS} more: see the report")
    return lines
