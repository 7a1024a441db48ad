"""The report as one HTML file: template, styles, libraries and numbers, all inlined."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, Template
from markupsafe import Markup, escape

from ggprune.gguf_file import write_text
from ggprune.report import view
from ggprune.report.data import ReportInput, build

_ASSETS = files("ggprune.report") / "assets"
#: What charts are drawn from; the rest is in tables already.
_CHARTED = ("model", "retained", "heat_map", "concentration", "evaluation", "frontier")


def write_report(path: Path, given: ReportInput) -> dict[str, Any]:
    """Write the page, whole or not at all.

    Args:
        path: of the HTML file; replaced if it exists.
        given: whatever a run has.

    Returns:
        The report's numbers, as ``ggprune report --json`` prints them.

    Raises:
        InputError: nothing is given, or a part is damaged.
        MismatchError: parts are of different models.
        OutputError: it cannot be written.
    """
    report = build(given)
    write_text(path, render(report))
    return report


def render(report: Mapping[str, Any]) -> str:
    """Render the page for numbers made by ``build``."""
    sweep = view.sweep(report)
    charted = {name: report[name] for name in _CHARTED}
    charted["sweep"] = sweep
    return _template().render(
        report=report,
        sweep=sweep,
        answers=view.answers(report),
        css=_verbatim("report.css"),
        d3=_verbatim("vendor/d3.min.js"),
        plot=_verbatim("vendor/plot.umd.min.js"),
        script=_verbatim("report.js"),
        numbers=_script_json(charted),
    )


def _script_json(value: Any) -> Markup:
    """Write JSON that cannot end the script element it is in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _with_code(text: str) -> Markup:
    """Show `commands` as code, which is not broken in two."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


@functools.cache
def _text(name: str) -> str:
    return _ASSETS.joinpath(name).read_text(encoding="utf-8")


def _verbatim(name: str) -> Markup:
    return Markup(_text(name))


@functools.cache
def _template() -> Template:
    # Evaluations come from files that may lack parts: what is missing shows as a dash.
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=ChainableUndefined
    )
    filters = {
        "pct": view.percent,
        "num": view.number,
        "fixed": view.fixed,
        "points": view.points,
        "code": _with_code,
        "count": view.count,
        "size": view.size,
        "settings": view.settings,
    }
    environment.filters.update(filters)
    return environment.from_string(_text("report.html.j2"))
