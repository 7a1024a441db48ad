"""Benchmarks with lm-evaluation-harness: the commands for both models, and their results.

Nothing is run here. Settings are those of the published comparisons that ggprune is held against:
GPQA Diamond with chain of thought (reasoning format deepseek, a budget of 8192 tokens for
thinking, 32k context, greedy), and GSM8K and MMLU subjects as generative tasks without examples,
50 questions each. Loglikelihood tasks do not work through a chat endpoint.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggprune.errors import InputError
from ggprune.types import option
from ggprune.util import template

FORMAT = "ggprune-bench-tasks"
_VERSION = 1
SIDES = ("base", "candidate")
MMLU = (
    "elementary_mathematics", "philosophy", "world_religions", "college_computer_science",
    "high_school_mathematics", "abstract_algebra", "college_mathematics",
)  # fmt: skip
#: Ways of reading an answer, the most forgiving first.
_FILTERS = ("flexible-extract", "get_response", "strict-match", "none")


@dataclass(frozen=True, slots=True)
class Settings:
    """What may differ from machine to machine; the rest is in bench_tasks.sh.j2."""

    limit: int = option(50, "Questions of a short task.", minimum=1)
    port: int = option(8080, "Of llama-server.", minimum=1, maximum=65535)
    gpu_layers: int = option(99, "Layers on the GPU.")


def script(base: Path, candidate: Path, folder: Path, settings: Settings) -> str:
    """Write a shell script that runs everything, one model after the other."""
    filters = {"quoted": lambda path: shlex.quote(str(path))}
    page = template("ggprune.evaluation", "bench_tasks.sh.j2", filters, keep_trailing_newline=True)
    return page.render(
        models=zip(SIDES, (base, candidate), strict=True),
        jobs=(
            ("gpqa", "gpqa_diamond_cot_zeroshot", None),
            ("gsm8k", "gsm8k", settings.limit),
            ("mmlu", ",".join(f"mmlu_{subject}_generative" for subject in MMLU), settings.limit),
        ),
        folder=folder,
        settings=settings,
    )


def read_results(folder: Path) -> dict[str, Any]:
    """Read what the harness wrote below ``folder/base`` and ``folder/candidate``.

    Raises:
        InputError: there is nothing, or a file is not the harness's.
    """
    sides = {side: _side(folder / side) for side in SIDES}
    if not any(sides.values()):
        raise InputError(
            f"{folder}: no results of lm-evaluation-harness below base/ or candidate/",
            remedy="Write the commands with `ggprune bench-tasks BASE CANDIDATE -o FOLDER`, "
            "run them, then read the folder.",
        )
    names = dict.fromkeys(name for side in sides.values() for name in side)
    rows = [_row(name, *(sides[side].get(name) for side in SIDES)) for name in names]
    return {"format": FORMAT, "version": _VERSION, "tasks": rows}


def _row(
    name: str, base: Mapping[str, Any] | None, candidate: Mapping[str, Any] | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"task": name, "base": base, "candidate": candidate}
    row["difference"] = row["difference_se"] = None
    if base and candidate:
        row["difference"] = candidate["score"] - base["score"]
        errors = (base["score_se"], candidate["score_se"])
        # Not paired: the harness gives no covariance. So this error is an upper bound.
        row["difference_se"] = None if None in errors else math.hypot(*errors)
    return row


def _side(folder: Path) -> dict[str, dict[str, Any]]:
    """Scores by task; a task run twice counts with its latest file."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("results_*.json"), key=lambda path: path.name):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            samples = data.get("n-samples") or {}
            for name, values in data["results"].items():
                score = _score(values)
                if score is not None:
                    count = (samples.get(name) or {}).get("effective")
                    found[name] = {**score, "samples": count, "file": str(path)}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f"{path}: is not a result of lm-evaluation-harness: {error!r}",
                remedy="Remove the file, or run the task again.",
            ) from error
    return found


def _score(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Take the exact match of a task, read the most forgiving way; None for a group's heading."""
    for name in _FILTERS:
        score = values.get(f"exact_match,{name}")
        error = values.get(f"exact_match_stderr,{name}")
        if isinstance(score, (int, float)):
            spread = float(error) if isinstance(error, (int, float)) else None
            return {"score": float(score), "score_se": spread, "metric": f"exact_match,{name}"}
    return None


def scores(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of a table for people."""

    def share(part: Mapping[str, Any] | None, key: str, sign: str = "") -> str:
        if part is None or part[key] is None:
            return "-"
        error = part[f"{key}_se"]
        return f"{part[key]:{sign}.2%}" + (f" ± {error:.2%}" if error is not None else "")

    return [
        [row["task"], *(share(row[side], "score") for side in SIDES), share(row, "difference", "+")]
        for row in rows
    ]
