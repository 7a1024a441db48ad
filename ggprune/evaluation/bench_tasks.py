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

FORMAT = "ggprune-bench-tasks"
_VERSION = 1
HARNESS = "lm_eval[api]==0.4.11"
SIDES = ("base", "candidate")
MMLU = (
    "elementary_mathematics",
    "philosophy",
    "world_religions",
    "college_computer_science",
    "high_school_mathematics",
    "abstract_algebra",
    "college_mathematics",
)
#: Ways of reading an answer, the most forgiving first.
_FILTERS = ("flexible-extract", "get_response", "strict-match", "none")
#: Seconds for one answer: a slow machine thinks long.
_TIMEOUT = 7200


@dataclass(frozen=True, slots=True)
class Settings:
    """How server and harness are run.

    Attributes:
        ctx: context in tokens.
        reasoning_format: how the server separates thoughts from the answer.
        reasoning_budget: tokens of thinking.
        max_gen_toks: tokens of an answer, thoughts included.
        gpu_layers: layers on the GPU.
        port: of the server.
        limit: questions of a short task; GPQA Diamond is always run whole.
    """

    ctx: int = 32768
    reasoning_format: str = "deepseek"
    reasoning_budget: int = 8192
    max_gen_toks: int = 16384
    gpu_layers: int = 99
    port: int = 8080
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Job:
    """One call of the harness.

    Attributes:
        name: of its folder.
        tasks: as the harness names them.
        limit: questions of each; None for all.
        fewshot: examples in the prompt; None as the task has it.
    """

    name: str
    tasks: tuple[str, ...]
    limit: int | None
    fewshot: int | None


def jobs(settings: Settings) -> tuple[Job, ...]:
    """Return what is run for each model."""
    subjects = tuple(f"mmlu_{subject}_generative" for subject in MMLU)
    return (
        Job("gpqa", ("gpqa_diamond_cot_zeroshot",), None, None),
        Job("gsm8k", ("gsm8k",), settings.limit, 0),
        Job("mmlu", subjects, settings.limit, 0),
    )


def server_command(model: Path, side: str, settings: Settings) -> list[str]:
    """llama.cpp's server, ready for the harness."""
    return [
        "llama-server", "-m", str(model), "--alias", side,
        "-c", str(settings.ctx), "-np", "1", "-ngl", str(settings.gpu_layers), "--jinja",
        "--reasoning-format", settings.reasoning_format,
        "--reasoning-budget", str(settings.reasoning_budget),
        "--host", "127.0.0.1", "--port", str(settings.port),
    ]  # fmt: skip


def harness_command(side: str, job: Job, folder: Path, settings: Settings) -> list[str]:
    """lm-evaluation-harness against that server."""
    url = f"http://127.0.0.1:{settings.port}/v1/chat/completions"
    command = [
        "lm_eval", "--model", "local-chat-completions",
        "--model_args",
        f"model={side},base_url={url},num_concurrent=1,max_retries=3,"
        f"tokenized_requests=False,timeout={_TIMEOUT}",
        "--tasks", ",".join(job.tasks), "--apply_chat_template",
        # MMLU's own stop at the end of a line would end the thinking at its first line.
        "--gen_kwargs", f"temperature=0,max_gen_toks={settings.max_gen_toks},until=</s>",
        "--log_samples", "--output_path", str(folder / side / job.name),
    ]  # fmt: skip
    if job.fewshot is not None:
        command += ["--num_fewshot", str(job.fewshot)]
    if job.limit is not None:
        command += ["--limit", str(job.limit)]
    return command


def script(base: Path, candidate: Path, folder: Path, settings: Settings) -> str:
    """Write a shell script that runs everything, one model after the other."""
    lines = [
        "#!/bin/sh",
        "# Written by ggprune bench-tasks. Both models get exactly the same settings.",
        f"# Needs llama-server in the PATH and: pip install {shlex.quote(HARNESS)}",
        "# GPQA is a gated data set: accept its terms on the Hub, then: hf auth login",
        "set -eu",
        "trap 'kill \"$server\" 2>/dev/null || true' EXIT",
    ]
    for side, model in zip(SIDES, (base, candidate), strict=True):
        lines += ["", f"# {side}", shlex.join(server_command(model, side, settings)) + " &"]
        lines += [
            "server=$!",
            f"until curl -sf http://127.0.0.1:{settings.port}/health >/dev/null; "
            'do kill -0 "$server"; sleep 2; done',
        ]
        lines += [
            shlex.join(harness_command(side, job, folder, settings)) for job in jobs(settings)
        ]
        lines += ['kill "$server"', 'wait "$server" || true']
    return "\n".join([*lines, "", f"ggprune bench-tasks --read {shlex.quote(str(folder))}", ""])


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
    return {
        "format": FORMAT,
        "version": _VERSION,
        "tasks": [_row(name, *(sides[side].get(name) for side in SIDES)) for name in names],
    }


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
        if isinstance(score, (int, float)):
            error = values.get(f"exact_match_stderr,{name}")
            return {
                "score": float(score),
                "score_se": float(error) if isinstance(error, (int, float)) else None,
                "metric": f"exact_match,{name}",
            }
    return None


def write_script(path: Path, text: str) -> None:
    """Write the script, ready to be run.

    Raises:
        OutputError: it cannot be written.
    """
    from ggprune.gguf_file import write_text

    write_text(path, text)
    path.chmod(path.stat().st_mode | 0o111)


def scores(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of a table for people."""
    return [[row["task"], _pm(row["base"]), _pm(row["candidate"]), _change(row)] for row in rows]


def _pm(side: Mapping[str, Any] | None) -> str:
    if side is None:
        return "-"
    error = f" ± {side['score_se']:.2%}" if side["score_se"] is not None else ""
    return f"{side['score']:.2%}{error}"


def _change(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return "-"
    error = f" ± {row['difference_se']:.2%}" if row["difference_se"] is not None else ""
    return f"{row['difference']:+.2%}{error}"
