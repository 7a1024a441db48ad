"""``pytest --quick`` keeps its promise: no process, no llama.cpp."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = """
import contextlib, subprocess, sys
import pytest

def test_nothing_special(): pass

def test_starts(): subprocess.run([sys.executable, "--version"])

def test_swallows():
    with contextlib.suppress(BaseException):
        subprocess.run([sys.executable, "--version"])

def test_loads():
    from ggprune.llama.library import library
    library()

@pytest.fixture
def loaded(): from ggprune.llama.library import library; library()

def test_loads_in_a_fixture(loaded): pass

@pytest.mark.process
def test_marked(): subprocess.run([sys.executable, "--version"])
"""


@pytest.mark.process
def test_what_is_not_marked_fails(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "--quick",
        "-rA",
        "--color=no",
    ]
    result = subprocess.run(
        [*command, "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    lines = result.stdout.splitlines()
    for name, outcome in {
        "nothing_special": "PASSED",
        "starts": "FAILED",
        "swallows": "FAILED",
        "loads": "FAILED",
        "loads_in_a_fixture": "ERROR",
    }.items():
        assert any(
            line.startswith(outcome) and line.split()[1].endswith(f"::test_{name}")
            for line in lines
        ), (name, result.stdout)
    assert "1 deselected" in result.stdout
    assert "@pytest.mark.process" in result.stdout and "@pytest.mark.llama" in result.stdout
