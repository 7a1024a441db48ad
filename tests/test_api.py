"""The Python API: what is public, and that its stages compose."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ggprune
from tests.support.tiny import write_tiny


def test_all_names_exist_and_are_documented() -> None:
    for name in ggprune.__all__:
        thing = getattr(ggprune, name)
        if callable(thing):
            assert inspect.getdoc(thing), name


def test_lazy_names_are_the_typed_ones() -> None:
    """What type checkers see is what users get."""
    tree = ast.parse(Path(ggprune.__file__).read_text())
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ggprune.")
        for alias in node.names
    }
    assert typed == set(ggprune.__all__)
    assert typed == {name for names in ggprune._HOME.values() for name in names}


@pytest.mark.process
def test_import_is_light() -> None:
    code = "import ggprune, sys; sys.exit('numpy' in sys.modules or 'llama_cpp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.llama
def test_stages(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "m.gguf", "gemma4", layers=2)
    text = tmp_path / "t.txt"
    text.write_text("A router chooses experts for each token of a text. " * 40)
    named = [("words", str(text))]
    statistics = ggprune.run_calibration(
        model,
        text=named,
        settings=ggprune.Settings(ctx=64),
        options=ggprune.RunOptions(threads=1),
    )
    plan = ggprune.make_plan(statistics, keep=12, method="contribution")
    (written,) = ggprune.apply_plan(model, plan, tmp_path / "o.gguf")
    assert ggprune.open_model(written).experts == 12
    found = ggprune.evaluate_plan(
        model, plan, text=named, ctx=64, options=ggprune.RunOptions(threads=1)
    )
    assert found.total.as_json()["kld_mean"] > 0
