"""The examples of running on many machines, as far as one machine can run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from ggprune.calibration.statistics import Statistics
from tests.support.tiny import write_tiny

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parent.parent / "examples"
OPTIONS = ["--ctx", "64", "--generate", "0", "--no-repack", "--threads", "1"]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    words = np.random.default_rng(0).choice(["the", "sea", "rests", "inner", "on"], 400)
    (tmp_path / "text.txt").write_text(" ".join(words))
    return write_tiny(tmp_path / "m.gguf", "qwen3moe"), tmp_path / "text.txt"


def assert_complete(path: Path) -> None:
    found = Statistics.load(path)
    assert "shard" not in found.settings
    assert (found.total.tokens == found.domains[0].tokens).all()


@pytest.mark.skipif(not shutil.which("flock"), reason="needs util-linux")
def test_slurm_array(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, text = files
    program = Path(sys.executable).parent
    if not (program / "ggprune").exists():
        pytest.skip("ggprune is not installed as a program")
    environment = {
        **os.environ,
        **{"PATH": f"{program}:{os.environ['PATH']}", "MODEL": str(model), "TEXT": f"a={text}"},
        **{"PARTS": str(tmp_path / "parts"), "STATS": str(tmp_path / "stats.gguf")},
        **{"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_CPUS_PER_TASK": "1", "OPTIONS": "--ctx 64"},
    }
    for number in (2, 3, 1):
        assert not (tmp_path / "stats.gguf").exists()
        subprocess.run(
            ["bash", str(EXAMPLES / "slurm-array.sh")],
            env={**environment, "SLURM_ARRAY_TASK_ID": str(number)},
            check=True,
            capture_output=True,
        )
    assert_complete(tmp_path / "stats.gguf")


def test_ray(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for Ray that runs each task at once."""

    class Remote:
        def __init__(self, function: object) -> None:
            self.remote = function

    ray = types.ModuleType("ray")
    ray.init = lambda: None
    ray.remote = lambda **_: Remote
    ray.get = list
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import ray_calibrate

    model, text = files
    output = tmp_path / "stats.gguf"
    line = ["x", str(model), str(output), "--shards", "2", "--text", f"a={text}", *OPTIONS]
    monkeypatch.setattr(sys, "argv", line)
    ray_calibrate.main()
    assert_complete(output)


def test_kubernetes_manifests() -> None:
    yaml = pytest.importorskip("yaml")
    job, merge = (
        yaml.safe_load((EXAMPLES / f"kubernetes-{name}.yaml").read_text())
        for name in ("job", "merge")
    )
    assert job["kind"] == merge["kind"] == "Job"
    assert job["spec"]["completionMode"] == "Indexed"
    script = job["spec"]["template"]["spec"]["containers"][0]["args"][0]
    # The number of shards appears twice, and must be one.
    assert f"/{job['spec']['completions']}" in script
    assert subprocess.run(["sh", "-n", "-c", script]).returncode == 0
