"""A chart of divergence against bytes, as SVG without a program to draw it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 760, 460, 64, 44, 28, 150
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
        return _LEFT + (size - least) / span * (_WIDTH - _LEFT - _RIGHT)

    def y(kld: float) -> float:
        share = (math.log10(max(kld, 1e-7)) - low) / max(high - low, 1e-9)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="16" font-weight="bold">{escape(title)}</text>',
    ]
    for step in range(round(2 * low), round(2 * high) + 1):
        value = 10 ** (step / 2)
        parts.append(_grid(_LEFT, y(value), _WIDTH - _RIGHT, y(value)))
        parts.append(_text(_LEFT - 6, y(value) + 4, f"{value:.2g}", "end"))
    for tick in range(6):
        size = least + span * tick / 5
        parts.append(_text(x(size), _HEIGHT - _BOTTOM + 16, f"{size / 1e6:,.1f}", "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, "MB", "middle"))
    grid = [point for point in points if point["types"] != "fit"]
    series = [
        (f"{keep} experts", _COLOURS[index % len(_COLOURS)], [p for p in grid if p["keep"] == keep])
        for index, keep in enumerate(sorted({p["keep"] for p in grid}, reverse=True))
    ]
    fitted = [point for point in points if point["types"] == "fit"]
    if fitted:
        series.append(("fitted", "#d0021b", fitted))
    for index, (name, colour, each) in enumerate(series):
        ordered = sorted(each, key=lambda point: point["size_bytes"])
        line = " ".join(f"{x(p['size_bytes']):.1f},{y(p['kld_mean']):.1f}" for p in ordered)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        for point in ordered:
            at = f'cx="{x(point["size_bytes"]):.1f}" cy="{y(point["kld_mean"]):.1f}"'
            fill = colour if point["on_frontier"] else "white"
            label = escape(f"{point['keep']} experts, {point['types']}: {point['kld_mean']:.5f}")
            dot = f'<circle {at} r="4" fill="{fill}" stroke="{colour}">'
            parts.append(f"{dot}<title>{label}</title></circle>")
        row = _TOP + 18 * index
        parts.append(f'<circle cx="{_WIDTH - _RIGHT + 16}" cy="{row - 4}" r="4" fill="{colour}"/>')
        parts.append(_text(_WIDTH - _RIGHT + 26, row, name, "start"))
    parts.append(
        _text(_WIDTH - _RIGHT + 10, _TOP + 18 * len(series) + 8, "filled: no smaller", "start")
    )
    parts.append(
        _text(_WIDTH - _RIGHT + 10, _TOP + 18 * len(series) + 22, "file is better", "start")
    )
    return "\n".join([*parts, "</svg>", ""])


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
