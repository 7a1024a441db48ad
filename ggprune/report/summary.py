"""The report in under 25 lines for the terminal; its words are in summary.txt.j2."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from ggprune.report import view
from ggprune.util import printable

_MOST_LINES = 24
_MOST_FINDINGS = 5
#: Characters of a prompt or an answer that are shown.
_LONGEST = 160


def summary_lines(report: Mapping[str, Any], most: int = _MOST_LINES) -> list[str]:
    """List the essential of what ``build`` returns in ``most`` lines.

    What is bad goes before what is merely interesting.
    """
    template = view.template("summary.txt.j2", finalize=_on_one_line)
    text = template.render(report=report, least_alike=_least_alike(report["domains"]))
    rows = [line.split("\t") for line in text.splitlines()]
    bad = _findings(report["findings"])
    shown = [(name, text) for name, text in rows if text][: max(most - len(bad), 0)]
    width = max((len(name) for name, _ in shown), default=0)
    return [f"{name.ljust(width)}  {text}" for name, text in shown] + bad


def example_lines(probe: Mapping[str, Any] | None) -> list[str]:
    """Show the first prompt that the whole model answers well, and how both answers begin.

    What the pruned model makes of it has no say in which prompt that is.

    Args:
        probe: what ``ggprune probe`` writes, with the answers' texts.
    """
    modes = (probe or {}).get("modes") or {}
    asked = [each for mode in modes.values() for each in mode.get("probes") or []]
    sound = [each for each in asked if each["base"]["ended"] and not each["base"]["loop"]]
    for each in [*sound, *asked][:1]:
        texts = {
            "asked": each["prompt"],
            "whole model": each["base"]["text"],
            "pruned": each["candidate"]["text"],
        }
        return [f"{name:11}  {_beginning(text)}" for name, text in texts.items()]
    return []


def _beginning(text: str) -> str:
    return printable(textwrap.shorten(text, _LONGEST, placeholder=" …")) or "(nothing)"


def _on_one_line(value: Any) -> str:
    """Separate words by plain spaces only; the page's narrow ones are not for terminals."""
    return "" if value is None else " ".join(str(value).split())


def _least_alike(domains: Mapping[str, Any] | None) -> tuple[float, str, str] | None:
    """Find the two domains that share the fewest top experts: how many, and their names."""
    if not domains or not domains["overlap"]:
        return None
    names, overlap = domains["names"], domains["overlap"]
    pairs = [(overlap[i][j], names[i], names[j]) for i in range(len(names)) for j in range(i)]
    return min((pair for pair in pairs if pair[0] is not None), default=None)


def _findings(found: list[Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    for each in found[:_MOST_FINDINGS]:
        lines += [f"BAD: {each['text']}", f"  -> {each['remedy']}"]
    if len(found) > _MOST_FINDINGS:
        lines.append(f"and {len(found) - _MOST_FINDINGS} more: see the report")
    return lines
