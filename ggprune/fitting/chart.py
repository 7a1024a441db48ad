"""A chart of divergence against bytes, as SVG without a program to draw it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ggprune.util import template

_LEFT, _TOP, _RIGHT, _BOTTOM, _WIDTH, _HEIGHT = 64, 28, 610, 416, 760, 460
_COLOURS = ("#3b6fb6", "#c2571a", "#3a8a4d", "#8a4fa3", "#9a7b1c", "#666666")


def svg(points: Sequence[Mapping[str, Any]], title: str) -> str:
    """Draw files as dots, a line for each number of experts, fitted files in red.

    Args:
        points: the ``points`` that ``ggprune frontier --json`` prints; fitted ones have the
            ``types`` ``fit``.
    """
    logs = [math.log10(max(point["kld_mean"], 1e-7)) for point in points]
    low, high = math.floor(min(logs) * 2) / 2, math.ceil(max(logs) * 2) / 2
    least, most = (float(f(point["size_bytes"] for point in points)) for f in (min, max))
    span = max(most - least, 1)

    def x(size: float) -> float:
        return round(_LEFT + (size - least) / span * (_RIGHT - _LEFT), 1)

    def y(kld: float) -> float:
        share = (math.log10(max(kld, 1e-7)) - low) / max(high - low, 1e-9)
        return round(_BOTTOM - share * (_BOTTOM - _TOP), 1)

    grid = [point for point in points if point["types"] != "fit"]
    keeps = sorted({point["keep"] for point in grid}, reverse=True)
    series = [
        (f"{keep} experts", _COLOURS[index % len(_COLOURS)], [p for p in grid if p["keep"] == keep])
        for index, keep in enumerate(keeps)
    ]
    if fitted := [point for point in points if point["types"] == "fit"]:
        series.append(("fitted", "#d0021b", fitted))
    page = template("ggprune.fitting", "chart.svg.j2", autoescape=True, keep_trailing_newline=True)
    return page.render(
        title=title,
        series=[(n, c, sorted(s, key=lambda p: p["size_bytes"])) for n, c, s in series],
        costs=[10 ** (step / 2) for step in range(round(2 * low), round(2 * high) + 1)],
        sizes=[least + span * tick / 5 for tick in range(6)],
        **{"x": x, "y": y, "left": _LEFT, "right": _RIGHT, "top": _TOP, "bottom": _BOTTOM},
        **{"width": _WIDTH, "height": _HEIGHT},
    )
