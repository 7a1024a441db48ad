"""The report's numbers as people read them: what template and charts need beyond data.build."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Template
from markupsafe import Markup, escape

from ggprune import util
from ggprune.evaluation.verdict import answers_in_a_line
from ggprune.util import human_size

Report = Mapping[str, Any]
MISSING = "\N{EN DASH}"


def percent(value: Any, digits: int = 1) -> str:
    """Write a share as 99.01 %; never 100 % for less than all."""
    if not _is_number(value):
        return MISSING
    text = f"{value:.{digits}%}"
    if value < 1 and text == f"{1:.{digits}%}":
        text = f"{1 - 10 ** -(digits + 2):.{digits}%}"
    return text.replace("%", "\u202f%")


def number(value: Any, digits: int = 3) -> str:
    """Write significant digits, without an exponent where that is readable."""
    if not _is_number(value):
        return MISSING
    if value == 0:
        return "0"
    # "#" keeps zeros at the end: 7.0 ± 0.5 says how exact it is.
    text = f"{value:#.{digits}g}"
    return f"{float(text):.0f}" if "e+" in text and value < 1e9 else text.removesuffix(".")


def fixed(value: Any, digits: int = 3) -> str:
    """Write digits after the point."""
    return f"{value:.{digits}f}" if _is_number(value) else MISSING


def points(value: Any, signed: bool = True) -> str:
    """Write a difference of shares in percentage points."""
    if not _is_number(value):
        return MISSING
    return f"{100 * value:{'+' if signed else ''}.2f}".replace("-", "\N{MINUS SIGN}")


def count(value: Any) -> str:
    """Write a whole number with thousands apart."""
    return f"{value:,}".replace(",", "\u202f") if _is_number(value) else MISSING


def settings(values: Mapping[str, Any]) -> str:
    """Write settings on one line; those that are long are left to the JSON form."""
    shown = {name: _setting(value) for name, value in values.items()}
    return "; ".join(f"{name}: {text}" for name, text in shown.items() if 0 < len(text) < 200)


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        parts = {key: _setting(item) for key, item in value.items()}
        return ", ".join(
            f"{key} ({text})" if isinstance(value[key], Mapping) else f"{key} {text}"
            for key, text in parts.items()
            if text
        )
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def size(value: float) -> str:
    """Write a file size that is not broken in two."""
    return human_size(value).replace(" ", "\u202f")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def sweep(report: Report) -> dict[str, Any] | None:
    """Prepare the curve: points with a size for people, cliff and smallest count by method."""
    given = report["sweep"]
    if not given or not given.get("points"):
        return None
    cliffs = {name: keep for name, keep in (given.get("cliff") or {}).items() if keep}
    points = []
    for point in given["points"]:
        own = {name: value for name, value in point.items() if name != "domains"}
        own["size"] = size(point["size_bytes"]) if point.get("size_bytes") else ""
        own["cliff"] = cliffs.get(point["method"]) == point["keep"]
        points.append(own)
    methods = list(dict.fromkeys(point["method"] for point in points))
    by_place = {(point["keep"], point["method"]): point for point in points}
    sizes = {point["keep"]: point["size"] for point in points}
    return {
        "points": points,
        "methods": methods,
        "rows": [
            {
                "keep": keep,
                "size": sizes[keep],
                "cells": [by_place.get((keep, method), {}) for method in methods],
            }
            for keep in sorted(sizes, reverse=True)
        ],
        "cliffs": cliffs,
        "smallest": {name: keep for name, keep in (given.get("smallest") or {}).items() if keep},
        "keep": report["model"]["keep"],
    }


_LONGEST_PROMPT = 1500


def answers(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Group the probes by kind of prompt: each prompt with its probe in every mode."""
    prompts: dict[str, dict[str, Any]] = {}
    for mode, part in ((report["probe"] or {}).get("modes") or {}).items():
        for probe in part.get("probes") or []:
            name, prompt = str(probe["id"]), str(probe.get("prompt", ""))
            more = " …" if len(prompt) > _LONGEST_PROMPT else ""
            kind = str(probe.get("kind", "")).replace("_", " ")
            entry = {"name": name, "kind": kind, "prompt": prompt[:_LONGEST_PROMPT] + more}
            prompts.setdefault(name, {**entry, "modes": {}})["modes"][mode] = probe
    kinds: dict[str, list[dict[str, Any]]] = {}
    for entry in prompts.values():
        kinds.setdefault(entry["kind"], []).append(entry)
    return kinds


def with_code(text: str) -> Markup:
    """Show `commands` as code, which is not broken in two."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


@functools.cache
def asset(name: str) -> str:
    """Read a file of the folder ``assets``."""
    return files("ggprune.report").joinpath("assets", name).read_text(encoding="utf-8")


@functools.cache
def template(name: str, **options: Any) -> Template:
    """Return a template of the folder ``assets`` with this module's functions as its filters."""
    filters = {
        "pct": percent,
        "num": number,
        "fixed": fixed,
        "points": points,
        "gate": answers_in_a_line,
        "code": with_code,
        "count": count,
        "size": size,
        "settings": settings,
    }
    # What an evaluation from a file lacks shows as a dash.
    return util.template("ggprune.report", f"assets/{name}", filters, **options)
