"""The report as one HTML file: template, styles, libraries and numbers, all inlined."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ggprune.gguf_file import write_text
from ggprune.report import view
from ggprune.report.data import ReportInput, build

#: What charts are drawn from; the rest is in tables already.
_CHARTED = ("model", "retained", "heat_map", "concentration", "evaluation", "frontier")


def write_report(path: Path, given: ReportInput) -> dict[str, Any]:
    """Write the page, whole or not at all; return the numbers that ``build`` makes.

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
    return view.template("report.html.j2", autoescape=True).render(
        report=report,
        sweep=sweep,
        answers=view.answers(report),
        css=Markup(view.asset("report.css")),
        d3=Markup(view.asset("vendor/d3.min.js")),
        plot=Markup(view.asset("vendor/plot.umd.min.js")),
        script=Markup(view.asset("report.js")),
        numbers=_script_json(charted),
    )


def _script_json(value: Any) -> Markup:
    """Write JSON that cannot end the script element it is in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
