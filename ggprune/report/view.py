"""The report's numbers as people read them: what template and charts need beyond data.build."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ggprune.util import human_size

Report = Mapping[str, Any]
MISSING = "\N{EN DASH}"


def percent(value: Any, digits: int = 1) -> str:
    """A share as 99.01 %; never 100 % for less than all."""
    if not _is_number(value):
        return MISSING
    text = f"{value:.{digits}%}"
    if value < 1 and text == f"{1:.{digits}%}":
        text = f"{1 - 10 ** -(digits + 2):.{digits}%}"
    return text.replace("%", "\u202f%")


def number(value: Any, digits: int = 3) -> str:
    """Significant digits, without an exponent where that is readable."""
    if not _is_number(value):
        return MISSING
    if value == 0:
        return "0"
    # "#" keeps zeros at the end: 7.0 ± 0.5 says how exact it is.
    text = f"{value:#.{digits}g}"
    return f"{float(text):.0f}" if "e+" in text and value < 1e9 else text.removesuffix(".")


def fixed(value: Any, digits: int = 3) -> str:
    """Digits after the point."""
    return f"{value:.{digits}f}" if _is_number(value) else MISSING


def points(value: Any, signed: bool = True) -> str:
    """A difference of shares in percentage points."""
    if not _is_number(value):
        return MISSING
    return f"{100 * value:{'+' if signed else ''}.2f}".replace("-", "\N{MINUS SIGN}")


def count(value: Any) -> str:
    """A whole number with thousands apart."""
    return f"{value:,}".replace(",", "\u202f") if _is_number(value) else MISSING


def settings(values: Mapping[str, Any]) -> str:
    """Settings on one line; those that are long are left to the JSON form."""
    shown = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {number(item)}" for key, item in value.items())
        text = f"{name}: {value}"
        if value not in ("", None) and len(text) < 200:
            shown.append(text)
    return "; ".join(shown)


def tiles(report: Report) -> list[dict[str, str]]:
    """The numbers on top of the page: name, value, detail."""
    found: list[tuple[str, str, str]] = []
    model, size = report["model"], report["size"]
    retained, evaluation = report["retained"], report["evaluation"] or {}
    if size:
        before, after = human_size(size["before"]), human_size(size["after"])
        detail = f"before {before}, \N{MINUS SIGN}{percent(size['saved_share'])}"
        found.append(("Size", after, detail))
    if model["keep"]:
        now_used = model["keep_used"] or model["experts_used"]
        used = f", {now_used} used" if now_used else ""
        found.append(("Experts a layer", str(model["keep"]), f"of {model['experts'] or '?'}{used}"))
    if retained:
        worst = retained["worst"]
        name = "Worst layer retains"
        detail = f"layer {worst['layer']}; mean {percent(retained['mean'], 2)}"
        found.append((name, percent(worst["share"], 2), detail))
    if _is_number(evaluation.get("ppl_ratio")):
        detail = f"± {fixed(evaluation.get('ppl_ratio_se'))}, pruned over base"
        found.append(("Perplexity ratio", fixed(evaluation["ppl_ratio"]), detail))
    if _is_number(evaluation.get("kld_mean")):
        detail = f"99 % of tokens below {number(evaluation.get('kld_p99'), 2)}"
        found.append(("Mean KL divergence", number(evaluation["kld_mean"]), detail))
    if _is_number(evaluation.get("top1_agreement")):
        found.append(("Same top token", percent(evaluation["top1_agreement"]), "as the base model"))
    return [{"name": name, "value": value, "detail": detail} for name, value, detail in found]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def sweep(report: Report) -> dict[str, Any] | None:
    """The curve: points with a size for people, the cliff and the smallest count by method."""
    given = report["sweep"]
    if not given or not given.get("points"):
        return None
    cliffs = {name: keep for name, keep in (given.get("cliff") or {}).items() if keep}
    points = []
    for point in given["points"]:
        size = point.get("size_bytes")
        own = {name: value for name, value in point.items() if name != "domains"}
        own["size"] = human_size(size) if size else ""
        own["cliff"] = cliffs.get(point["method"]) == point["keep"]
        points.append(own)
    methods = list(dict.fromkeys(point["method"] for point in points))
    return {
        "points": points,
        "methods": methods,
        "rows": _rows(points, methods),
        "cliffs": cliffs,
        "smallest": {name: keep for name, keep in (given.get("smallest") or {}).items() if keep},
        "keep": report["model"]["keep"],
    }


def _rows(points: Sequence[Report], methods: Sequence[str]) -> list[dict[str, Any]]:
    """One row a count, larger ones first, with a cell a method."""
    by_place = {(point["keep"], point["method"]): point for point in points}
    sizes = {point["keep"]: point["size"] for point in points}
    return [
        {
            "keep": keep,
            "size": sizes[keep],
            "cells": [by_place.get((keep, method), {}) for method in methods],
        }
        for keep in sorted(sizes, reverse=True)
    ]


_PROBE_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("mean_words", "Mean words", lambda value: fixed(value, 0)),
    ("distinct4", "Distinct 4-grams", lambda value: fixed(value, 2)),
    ("loop_rate", "Loops", lambda value: percent(value, 0)),
    ("collapse_rate", "Collapses", lambda value: percent(value, 0)),
    ("ended_rate", "Ended by itself", lambda value: percent(value, 0)),
    ("json_rate", "JSON parses", lambda value: percent(value, 0)),
)
_SIDES = (("base", "Base"), ("candidate", "Pruned"))
_FLAGS = (("loop", "loop"), ("collapse", "collapse"))
_LONGEST_PROMPT = 1500


def probes(report: Report) -> dict[str, Any] | None:
    """Rows of the probes' table, and the texts by kind of prompt."""
    modes = (report["probe"] or {}).get("modes") or {}
    if not modes:
        return None
    rows = [
        {
            "mode": name,
            "side": title,
            "cells": [show((mode.get(side) or {}).get(key)) for key, _, show in _PROBE_COLUMNS],
        }
        for name, mode in modes.items()
        for side, title in _SIDES
    ]
    columns = [title for _, title, _ in _PROBE_COLUMNS]
    return {"columns": columns, "rows": rows, "kinds": _texts_by_kind(modes)}


def _texts_by_kind(modes: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Answers of both sides in every mode, by prompt."""
    prompts: dict[str, dict[str, Any]] = {}
    for name, mode in modes.items():
        for probe in mode.get("probes") or []:
            prompt = str(probe.get("prompt", ""))
            if len(prompt) > _LONGEST_PROMPT:
                prompt = prompt[:_LONGEST_PROMPT] + " …"
            entry = prompts.setdefault(
                str(probe["id"]),
                {"kind": str(probe.get("kind", "")), "prompt": prompt, "modes": []},
            )
            sides = [_side(probe.get(side) or {}, title) for side, title in _SIDES]
            entry["modes"].append({"name": name, "sides": sides})
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, entry in prompts.items():
        kinds.setdefault(entry["kind"].replace("_", " "), []).append({"name": name, **entry})
    return kinds


def _side(answer: Mapping[str, Any], title: str) -> dict[str, Any]:
    flags = [name for key, name in _FLAGS if answer.get(key)]
    if answer.get("json") is False:
        flags.append("not JSON")
    return {"name": title, "text": answer.get("text", ""), "flags": flags}
