"""What fit, frontier and sweep refuse, or answer, before anything is calibrated or measured."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import ggprune
from ggprune.cli import cli
from ggprune.cli.fit import command as fit
from ggprune.cli.terminal import in_options
from ggprune.errors import GgpruneError
from ggprune.llama import memory
from ggprune.model import open_model
from tests.support.evaluating import TEXT, calibrated
from tests.support.tiny import write_tiny


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "ggprune.fitting.study.Study.__init__", lambda *_: pytest.fail("it calibrates")
    )
    return write_tiny(tmp_path / "Tiny.gguf", "qwen3moe", seed=1)


def refusal(*words: object) -> str:
    """What a command says in place of doing something."""
    error = CliRunner().invoke(cli, [str(word) for word in words]).exception
    assert isinstance(error, GgpruneError)
    return f"{error.message} {error.remedy}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Q4_9", "--types Q4_9: there is no such type"),
        ("q4_9", "Did you mean Q4_K?"),
        ("Q8_0,Q4_0", "--types Q4_0: fit does not choose it"),
        ("nothing", "Known: Q8_0, Q6_K, "),
    ],
)
def test_a_type_there_is_not(model: Path, name: str, message: str) -> None:
    assert message in refusal("fit", model, "--target-size", 1000, "--types", name)


def test_a_file_type_there_is_not(model: Path) -> None:
    assert "Did you mean Q4_K_S?" in refusal("frontier", model, "--types", "Q4_K_N")


def test_files_of_a_calibration_come_in_pairs(model: Path) -> None:
    assert "--stats: give --imatrix of the same" in refusal(
        "fit", model, "--target-size", 1000, "--stats", model
    )
    assert "--imatrix: give --stats of the same" in refusal("frontier", model, "--imatrix", model)


def test_a_method_there_is_not(model: Path) -> None:
    assert "--method foo: " in refusal("fit", model, "--target-size", 1000, "--method", "foo")


def test_a_context_that_no_option_sets_is_in_words() -> None:
    assert in_options("longer than ctx=512 and", fit) == "longer than a context of 512 tokens and"
    has_it = click.Command("any", params=[click.Option(["--ctx"])])
    assert in_options("longer than ctx=512 and", has_it) == "longer than --ctx 512 and"


@pytest.mark.llama
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--keep", "99"), "--keep 99: the model has 16 experts"),
        (("--method", "foo"), "--method foo: "),
        ((), "router"),
    ],
)
def test_sweep_refuses_before_it_loads(
    model: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], message: str
) -> None:
    stats = model.with_name("stats.gguf")
    source = model if asked else write_tiny(model.with_name("Other.gguf"), "qwen3moe", seed=2)
    calibrated(source, TEXT).save(stats)
    monkeypatch.setattr("ggprune.api.measuring.evaluator", lambda *_, **__: pytest.fail("loads"))
    assert message in refusal("sweep", model, stats, *asked)


@pytest.mark.llama
def test_a_size_that_no_file_has(model: Path) -> None:
    said = refusal("fit", model, "--target-size", 1)
    assert "--target-size 1: the smallest file has " in said and "4 of 16 experts" in said
    assert f"ggprune fit {model} --target-size " in said
    with open_model(model) as source:
        beside = memory.planned(source, memory.Use(context=64))
    vram = beside.cache + beside.compute + 1
    said = refusal("fit", model, "--fit-vram", vram, "--context", 64)
    assert said.startswith(f"--fit-vram {vram}: the smallest file has ")


@pytest.mark.llama
def test_a_source_that_fits_is_kept(model: Path) -> None:
    asked = ["fit", str(model), "--target-size", "999G"]
    result = CliRunner().invoke(cli, asked)
    assert result.exit_code == 0 and "itself fits" in result.stdout
    result = CliRunner().invoke(cli, [*asked, "--json"])
    numbers = json.loads(result.stdout)
    assert result.exit_code == 0 and numbers["kld_mean"] == 0
    assert numbers["file"] == str(model) and numbers["size_bytes"] == model.stat().st_size
    assert [path.name for path in Path().iterdir()] == [model.name]
    assert ggprune.fit(ggprune.Job(model=model), target_size=10**9).answer is None
    # Who names types wants them.
    with pytest.raises(pytest.fail.Exception, match="calibrates"):
        CliRunner().invoke(cli, [*asked, "--types", "Q8_0"])
