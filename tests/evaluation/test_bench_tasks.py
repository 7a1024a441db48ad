"""The commands are what a shell and the programs take; results are read back."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggprune.cli import cli
from ggprune.errors import InputError
from ggprune.evaluation.bench_tasks import MMLU, Settings, read_results, script
from tests.support.tiny import write_tiny


def commands(text: str, program: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith(program)]
    return [shlex.split(line.removesuffix(" &")) for line in lines]


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


@pytest.mark.process
def test_script(tmp_path: Path) -> None:
    odd = tmp_path / "a b'c.gguf"
    text = script(odd, Path("/m/pruned.gguf"), tmp_path / "out", Settings())
    path = tmp_path / "run.sh"
    path.write_text(text)
    subprocess.run(["sh", "-n", path], check=True)
    base, candidate = commands(text, "llama-server")
    assert option(base, "-m") == str(odd) and option(candidate, "-m") == "/m/pruned.gguf"
    assert option(base, "--reasoning-format") == "deepseek"
    assert option(base, "--reasoning-budget") == "8192" and option(base, "-c") == "32768"
    runs = commands(text, "lm_eval")
    tasks = [option(run, "--tasks") for run in runs]
    assert len(runs) == 6 and tasks[:3] == tasks[3:]
    assert tasks[0] == "gpqa_diamond_cot_zeroshot" and tasks[1] == "gsm8k"
    assert tasks[2].split(",") == [f"mmlu_{subject}_generative" for subject in MMLU]
    assert "--limit" not in runs[0] and option(runs[1], "--limit") == "50"
    for run in runs:
        assert "max_gen_toks=16384" in option(run, "--gen_kwargs")
        assert "temperature=0" in option(run, "--gen_kwargs")
    # The same for both, but for the names.
    assert [run[:3] + run[6:-6] for run in runs[:3]] == [run[:3] + run[6:-6] for run in runs[3:]]


def result(folder: Path, name: str, results: dict, samples: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"results": results, "n-samples": samples}))


def gpqa(score: float, error: float) -> dict:
    return {
        "gpqa_diamond_cot_zeroshot": {
            "alias": "gpqa_diamond_cot_zeroshot",
            "exact_match,strict-match": 0.005,
            "exact_match_stderr,strict-match": 0.005,
            "exact_match,flexible-extract": score,
            "exact_match_stderr,flexible-extract": error,
        }
    }


def test_read_results(tmp_path: Path) -> None:
    samples = {"gpqa_diamond_cot_zeroshot": {"original": 198, "effective": 198}}
    result(tmp_path / "base/gpqa/base", "results_2026-01-02.json", gpqa(0.7525, 0.0307), samples)
    result(tmp_path / "base/gpqa/base", "results_2026-01-01.json", gpqa(0.1, 0.1), samples)
    result(tmp_path / "candidate/gpqa/candidate", "results_x.json", gpqa(0.7172, 0.0321), samples)
    groups = {
        "mmlu_generative": {"alias": "mmlu"},
        "mmlu_philosophy_generative": {
            "exact_match,get_response": 0.9,
            "exact_match_stderr,get_response": "N/A",
        },
    }
    result(tmp_path / "base/mmlu/base", "results_y.json", groups, {})
    first, second = read_results(tmp_path)["tasks"]
    assert first["task"] == "gpqa_diamond_cot_zeroshot"
    assert first["base"]["score"] == 0.7525 and first["base"]["samples"] == 198
    assert first["difference"] == pytest.approx(-0.0353)
    assert first["difference_se"] == pytest.approx(math.sqrt(0.0307**2 + 0.0321**2))
    assert second["task"] == "mmlu_philosophy_generative" and second["candidate"] is None
    assert second["base"]["score_se"] is None and second["difference"] is None
    run = CliRunner().invoke(cli, ["bench-tasks", "--read", str(tmp_path)])
    assert run.exit_code == 0 and "75.25% ± 3.07%" in run.stdout and "-3.53%" in run.stdout


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results"):
        read_results(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "results_1.json").write_text("[]")
    with pytest.raises(InputError, match=r"results_1\.json"):
        read_results(tmp_path)


def test_command(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    arguments = ["bench-tasks", str(model), str(model), "-o", str(tmp_path / "out")]
    run = CliRunner().invoke(cli, arguments)
    assert run.exit_code == 0, run.output
    path = tmp_path / "out" / "run.sh"
    assert path.stat().st_mode & 0o100 and path.read_text() in run.stdout
    assert CliRunner().invoke(cli, arguments).exit_code != 0, "it exists"
    plan = tmp_path / "plan.json"
    plan.write_text(
        json.dumps(
            {"format": "ggprune-plan", "version": 1, "keep": 1, "layers": {"0": {"keep": [0]}}}
        )
    )
    run = CliRunner().invoke(cli, ["bench-tasks", str(model), str(plan), "-o", str(tmp_path / "o")])
    assert isinstance(run.exception, InputError) and "ggprune apply" in run.exception.remedy
