"""The command line as a user meets it: a child process, its output, its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ggprune.cli.main import COMMANDS, cli
from ggprune.gguf_file import (
    GgufModel,
    KeyEdits,
    TypedValue,
    ValueType,
    lay_out,
    whole,
    write_files,
)
from ggprune.gguf_file.parts import PartFile
from ggprune.model import open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.rewrite import plan_rewrite
from tests.support.command import ggprune
from tests.support.tiny import write_tiny

ROOT = Path(__file__).parent.parent


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny-Q8_0.gguf", "olmoe", layers=2, dtype="Q8_0")


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "words.txt"
    path.write_text("The router chooses experts for every token it reads.\n" * 30)
    return f"words={path}"


@pytest.mark.process
def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from ggprune.cli.main import cli\n"
        "try: cli(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'llama_cpp', 'gguf', 'huggingface_hub', 'jinja2', 'tqdm'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name in COMMANDS:
        assert name in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_given_twice(name: str) -> None:
    import click

    from ggprune.cli.main import cli

    command = cli.get_command(click.Context(cli), name)
    flags = [flag for p in command.params for flag in (*p.opts, *p.secondary_opts)]
    assert len(flags) == len(set(flags))
    destinations = [p.name for p in command.params]
    assert len(destinations) == len(set(destinations))


@pytest.mark.process
@pytest.mark.process
@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_waits_for_nothing_heavy(name: str) -> None:
    code = (
        "import sys\n"
        "from ggprune.cli.main import cli\n"
        "try: cli([sys.argv[1], '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'llama_cpp', 'gguf', 'huggingface_hub', 'jinja2', 'tqdm'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_short_and_all_help_is_whole(name: str) -> None:
    import click
    from click.testing import CliRunner

    from ggprune.cli.main import cli

    command = cli.get_command(click.Context(cli), name)
    short, whole = (
        CliRunner().invoke(command, [flag]).output
        for flag in ("--help", "--help-all" if command.__class__ is not click.Command else "--help")
    )
    assert len(short.splitlines()) < 80
    for option in command.params:
        assert isinstance(option, click.Argument) or option.opts[-1] in whole
    missing = [p.opts[-1] for p in command.params if p.opts[-1].startswith("--")]
    assert all(flag in short for flag in missing) or "more options: --help-all" in short
    assert "<LAMBDA>" not in whole
    assert ("--help-all" in short) <= ("--help-all" in whole)


@pytest.mark.process
def test_reference_is_up_to_date() -> None:
    # In a process of its own: click remembers help options of commands that other tests have run.
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['reference'](), end='')"
    made = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "docs" / "make_cli.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == made.stdout, "run `make docs`"


@pytest.mark.process
def test_inspect(tmp_path: Path, model: Path) -> None:
    facts = json.loads(ggprune("inspect", model, "--json", cwd=tmp_path).stdout)
    expected = {
        "architecture": "olmoe",
        "experts": 16,
        "experts_used": 4,
        "layers": 2,
        "moe_layers": [0, 1],
        "size_bytes": model.stat().st_size,
        "prunable": True,
        "refusal": "",
    }
    assert {key: facts[key] for key in expected} == expected
    assert facts["sizes"]["16"] == facts["size_bytes"]
    plan = Plan(8, {layer: LayerPlan(tuple(range(8))) for layer in (0, 1)}, "cover")
    assert facts["sizes"]["8"] == plan_rewrite(open_model(model), plan, tmp_path / "o").size
    assert "olmoe" in ggprune("inspect", model, cwd=tmp_path).stdout


@pytest.mark.process
def test_the_main_job(tmp_path: Path, model: Path, text: str) -> None:
    before = model.read_bytes()
    result = ggprune(
        model, "--keep", 12, "--text", text, "--ctx", 64, "--generate", 0, cwd=tmp_path
    )
    made = sorted(path.name for path in tmp_path.iterdir())
    assert "tiny-Q8_0-12e.gguf" in made
    assert "tiny-Q8_0.stats.gguf" in made
    assert "tiny-Q8_0-12e.expert_drop_metadata.json" in made
    assert not [name for name in made if name.endswith((".part", ".partial"))]
    assert "16 -> 12 a layer" in result.stdout
    assert "ggprune fit" in result.stdout.splitlines()[-1]  # What the same bytes would buy.
    assert model.read_bytes() == before
    facts = json.loads(ggprune("inspect", "tiny-Q8_0-12e.gguf", "--json", cwd=tmp_path).stdout)
    assert facts["experts"] == 12
    metadata = json.loads((tmp_path / "tiny-Q8_0-12e.expert_drop_metadata.json").read_text())
    assert metadata["keep"] == 12 and metadata["source"]["name"] == model.name
    assert sorted(metadata["layers"]["0"]["keep"] + metadata["layers"]["0"]["drop"]) == list(
        range(16)
    )

    again = ggprune(model, "--keep", 12, "--text", text, "--generate", 0, cwd=tmp_path, code=5)
    assert "--force" in again.stderr
    other = ggprune(model, "--keep", 8, "--stats", "tiny-Q8_0.stats.gguf", cwd=tmp_path)
    assert "16 -> 8 a layer" in other.stdout


@pytest.mark.process
def test_stages_compose_through_files(tmp_path: Path, model: Path, text: str) -> None:
    ggprune(
        "calibrate", model, "-o", "s.gguf", "--text", text, "--ctx", 64, "--generate", 0,
        cwd=tmp_path,
    )  # fmt: skip
    facts = json.loads(ggprune("stats", "s.gguf", "--json", cwd=tmp_path).stdout)
    tokens = facts["domains"]["words"]["tokens"]
    assert tokens > 0
    assert set(facts["layers"]) == {"0", "1"}
    layer = facts["layers"]["1"]
    assert layer["tokens"] == tokens and sum(layer["count"]) == 4 * tokens
    sums = {"gate_sum", "norm_sum", "norm_sq_sum", "contribution_sum", "norm_max"}
    assert all(len(layer[name]) == 16 for name in sums)

    ggprune("plan", "s.gguf", "--keep", 10, "--method", "reap", "-o", "p.json", cwd=tmp_path)
    plan = json.loads((tmp_path / "p.json").read_text())
    assert (plan["format"], plan["version"], plan["keep"]) == ("ggprune-plan", 1, 10)
    assert len(plan["layers"]["0"]["keep"]) == 10 and 0 < plan["layers"]["0"]["retained"] <= 1

    ggprune("apply", model, "p.json", "-o", "o.gguf", cwd=tmp_path)
    # Calibrated on Q8_0, applied to F32: the same model.
    full = write_tiny(tmp_path / "full.gguf", "olmoe", layers=2, dtype="F32")
    ggprune("apply", full, "p.json", "-o", "f.gguf", cwd=tmp_path)
    other = write_tiny(tmp_path / "other.gguf", "olmoe", layers=2, seed=9)
    result = ggprune("apply", other, "p.json", "-o", "x.gguf", cwd=tmp_path, code=6)
    assert "not of one model" in result.stderr
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.process
def test_fewer_experts_used(tmp_path: Path, model: Path, text: str) -> None:
    options = ["--keep", 8, "--experts-used", 3]
    said = json.loads(ggprune(model, *options, "--dry-run", "--json", cwd=tmp_path).stdout)
    shown = ggprune(model, *options, "--text", text, "--ctx", 64, "--generate", 0, cwd=tmp_path)
    assert "16 -> 8 a layer, 4 -> 3 used, by consensus" in shown.stdout
    assert "of 16, 3 used" in (tmp_path / "tiny-Q8_0-8e.report.html").read_text("utf-8")
    result = tmp_path / "tiny-Q8_0-8e.gguf"
    assert result.stat().st_size == said["would_write"][0]["size_bytes"]
    facts = json.loads(ggprune("inspect", result, "--json", cwd=tmp_path).stdout)
    assert (facts["experts"], facts["experts_used"]) == (8, 3)
    metadata = json.loads((tmp_path / "tiny-Q8_0-8e.expert_drop_metadata.json").read_text())
    assert (metadata["source_experts_used"], metadata["experts_used"]) == (4, 3)
    ggprune("card", result, cwd=tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "| Experts used for a token | 4 | 3 |" in card
    assert "A token uses 3 of them, where it used 4." in card


@pytest.mark.process
def test_dry_run_writes_nothing(tmp_path: Path, model: Path) -> None:
    before = sorted(tmp_path.iterdir())
    said = json.loads(ggprune(model, "--keep", 8, "--dry-run", "--json", cwd=tmp_path).stdout)
    assert sorted(tmp_path.iterdir()) == before
    ggprune(model, "--keep", 8, "--generate", 0, "--no-verify", cwd=tmp_path)
    (file,) = said["would_write"]
    assert (tmp_path / "tiny-Q8_0-8e.gguf").stat().st_size == file["size_bytes"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.gguf", "--keep", "8"], 2, "No such file"),
        (["{model}", "--keep", "3"], 2, "at least 4 must stay"),
        (["{model}", "--keep", "17"], 2, "16 experts"),
        (
            ["{model}", "--keep", "16"],
            2,
            "--keep 16: the model has 16 experts, so there is nothing",
        ),
        (["{model}", "--keep", "8", "--experts-used", "9"], 2, "the model uses 4"),
        (["{model}"], 2, "how many experts"),
        (["{text}", "--keep", "8"], 3, "not a GGUF file"),
        (["{model}", "--keep", "8", "-o", "{model}"], 5, "is the source itself"),
        (["{model}", "--keep", "8", "-o", "no/such/folder.gguf"], 5, "does not exist"),
        (["{model}", "--keep", "8", "--text", "oops"], 2, "NAME=PATH"),
        (["{model}", "--plan", "{text}"], 2, "is not JSON"),
        (["{model}", "--keep", "8", "--plan", "{text}"], 2, "--keep: a plan is given"),
        (["{model}", "--experts-used", "3", "--plan", "{text}"], 2, "--experts-used: a plan"),
        (["{model}", "--keep", "8", "--stats", "{model}"], 2, "not a statistics file"),
        (["{model}", "--keep", "8", "--method", "magic"], 2, "magic"),
        (["{dense}", "--keep", "8"], 4, "dense"),
        (["apply", "{model}", "missing.json"], 2, "missing.json"),
        (["apply", "{text}", "{model}"], 2, "The model comes first, then the plan."),
        (["stats", "{model}"], 2, "not a statistics file"),
    ],
)
def test_mistakes(tmp_path: Path, model: Path, text: str, arguments, code, message) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "dense.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    names = {"model": model, "text": tmp_path / "words.txt", "dense": tmp_path / "dense.gguf"}
    given = [argument.format(**names) for argument in arguments]
    before = model.read_bytes()
    result = ggprune(*given, cwd=tmp_path, code=code)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) <= 6
    assert model.read_bytes() == before


@pytest.mark.process
def test_embedding_model(tmp_path: Path, text: str) -> None:
    model = write_tiny(tmp_path / "embed.gguf", "nomic-bert-moe")
    result = ggprune(model, "--keep", 12, "--text", text, "--generate", 0, cwd=tmp_path)
    assert "no probabilities" in result.stderr
    assert (tmp_path / "embed-12e.gguf").exists()


@pytest.mark.process
def test_importance_matrix_in_the_same_pass(tmp_path: Path, model: Path, text: str) -> None:
    import gguf
    import numpy as np

    same = ["--text", text, "--ctx", 64, "--generate", 0]
    ggprune("calibrate", model, "-o", "s.gguf", *same, "--imatrix", "i.gguf", cwd=tmp_path)
    ggprune("calibrate", model, "-o", "t.gguf", *same, cwd=tmp_path)
    found = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "i.gguf").tensors}
    tensors = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "s.gguf").tensors}
    alone = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "t.gguf").tensors}
    # How often an expert's matrix was used is how often the expert was chosen.
    counts = found["blk.1.ffn_down_exps.weight.counts"].ravel()
    assert np.array_equal(counts, tensors["domain.0.count"][1])
    # The graph is computed to its end then, and the sums are the same.
    assert all(np.allclose(tensors[name], alone[name], rtol=1e-6) for name in alone)


@pytest.mark.process
def test_the_stages_choose_as_the_main_job_does(tmp_path: Path, model: Path, text: str) -> None:
    same = ["--text", text, "--ctx", 64, "--generate", 0]
    ggprune(model, "--keep", 8, *same, "--no-verify", cwd=tmp_path)
    made = json.loads((tmp_path / "tiny-Q8_0-8e.expert_drop_metadata.json").read_text())
    ggprune("plan", "tiny-Q8_0.stats.gguf", "--keep", 8, "-o", "p.json", cwd=tmp_path)
    plan = json.loads((tmp_path / "p.json").read_text())
    assert made["method"] == plan["method"] == "consensus"
    for layer, kept in plan["layers"].items():
        assert kept["keep"] == made["layers"][layer]["keep"]
    # What needs sums over tokens takes the best of those.
    blended = ["--blend", "uniform", "-o", "b.json"]
    ggprune("plan", "tiny-Q8_0.stats.gguf", "--keep", 8, *blended, cwd=tmp_path)
    assert json.loads((tmp_path / "b.json").read_text())["method"] == "contribution"


@pytest.mark.process
def test_a_context_beyond_the_trained_one_is_said(tmp_path: Path, model: Path, text: str) -> None:
    result = ggprune("evaluate", model, model, "--text", text, "--ctx", 4096, cwd=tmp_path)
    assert "was trained with 256 tokens" in result.stderr


def test_messages_of_the_library_name_the_options_of_the_command() -> None:
    import click

    from ggprune.cli.main import cli
    from ggprune.cli.terminal import in_options

    command = cli.get_command(click.Context(cli), "prune")
    for text, expected in {
        "keep=9: at least 10 must stay": "--keep 9: at least 10 must stay",
        "Pass force=True to replace it.": "Pass --force to replace it.",
        "max_kld=0.1, or max_ppl_ratio=1.1.": "--max-kld 0.1, or --max-ppl-ratio 1.1.",
        "always_keep=3:17: no such layer": "--always-keep 3:17: no such layer",
        "/tmp/keep=9.gguf: is no model; temperature=0.7": None,
    }.items():
        assert in_options(text, command) == (expected or text)


def test_notes_go_to_stderr_unless_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    from ggprune.cli.terminal import show_notes

    log = logging.getLogger("ggprune.somewhere")
    for quiet in (False, True):
        show_notes(quiet=quiet)
        log.info("a note")
        log.warning("a warning")
    show_notes()
    assert capsys.readouterr() == ("", "a note\na warning\na warning\n")


@pytest.mark.parametrize(
    ("architecture", "program"),
    [
        ("olmoe", "llama-cli"),
        ("nomic-bert-moe", "llama-embedding"),
        ("llada-moe", "llama-diffusion-cli"),
    ],
)
def test_the_program_that_runs_the_result(architecture: str, program: str) -> None:
    from ggprune import Pruned
    from ggprune.cli.prune import _summary
    from ggprune.report import ReportInput, build

    plan = Plan(2, {0: LayerPlan((0, 1))}, "hand", 4, architecture)
    result = Path("small model.gguf")
    report = build(ReportInput(plan=plan))
    text = _summary(
        Pruned(files=(result,), plan=plan, metadata={}, metadata_path=Path("m"), report=report)
    )
    assert text.endswith(f"Run it:  {program} -m 'small model.gguf'")


@pytest.mark.process
def test_a_mistyped_command_is_no_model(tmp_path: Path, model: Path) -> None:
    result = ggprune("inspct", model, cwd=tmp_path, code=2)
    assert "no command 'inspct'" in result.stderr and "Did you mean inspect?" in result.stderr
    # What could be a model's name is looked for as one.
    assert "No such file" in ggprune("inspct.gguf", "--keep", 8, cwd=tmp_path, code=2).stderr


@pytest.mark.process
def test_a_second_run_with_the_same_output_learns_it_at_the_start(
    tmp_path: Path, model: Path
) -> None:
    with PartFile(tmp_path / "o.gguf"):
        for words in ([model, "--keep", 8, "-o", "o.gguf"], ["calibrate", model, "-o", "o.gguf"]):
            result = ggprune(*words, cwd=tmp_path, code=5)
            assert "another ggprune is writing this file" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [model.name]


@pytest.mark.process
def test_inspect_always_has_a_table(tmp_path: Path) -> None:
    pointer = tmp_path / "model.gguf"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5000\n")
    shown = ggprune("inspect", pointer, cwd=tmp_path).stdout
    assert "Git LFS pointer to one of 5,000 bytes" in shown and "git lfs pull" in shown
    facts = json.loads(ggprune("inspect", pointer, "--json", cwd=tmp_path).stdout)
    assert (facts["prunable"], facts["size_bytes"]) == (False, pointer.stat().st_size)
    grove = write_tiny(tmp_path / "grove.gguf", "grovemoe")
    assert "adjugate" in ggprune("inspect", grove, cwd=tmp_path).stdout
    with GgufModel(grove) as source:
        name = TypedValue(ValueType.STRING, "Evil\x1b[31m red\nsecond line")
        edits, tensors = KeyEdits({"general.name": name}), [*map(whole, source.tensors)]
        write_files(lay_out(tmp_path / "evil.gguf", source, edits, tensors), source)
    shown = ggprune("inspect", tmp_path / "evil.gguf", cwd=tmp_path).stdout
    assert "Evil" in shown and "\x1b" not in shown
    glm = write_tiny(tmp_path / "glm.gguf", "glm4moe")
    shown = ggprune("inspect", glm, cwd=tmp_path).stdout
    assert "sigmoid" in shown


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is full")
@pytest.mark.process
def test_output_to_a_full_disk(tmp_path: Path, model: Path) -> None:
    command = [sys.executable, "-c", "from ggprune.cli import main; main()", "inspect", model]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 5
    assert result.stderr == "Error: the output cannot be written: No space left on device\n"


def test_lines_instead_of_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ggprune import types
    from ggprune.cli.terminal import progress_bar, show_notes

    show_notes()
    for seconds, expected in ((10.0, ""), (0.0, "calibrating: 25% of 200 tok\n")):
        monkeypatch.setattr(types, "_LOG_SECONDS", seconds)
        with progress_bar(200, "calibrating", "tok") as advance:
            advance(50)
        assert capsys.readouterr().err == expected


@pytest.mark.process
def test_another_size_uses_the_statistics(tmp_path: Path, model: Path, text: str) -> None:
    statistics = tmp_path / "tiny-Q8_0.stats.gguf"
    ggprune(model, "--keep", 12, "--text", text, "--ctx", 64, "--generate", 0, cwd=tmp_path)
    first = statistics.read_bytes()
    # Neither another text nor --force is a reason to calibrate again.
    same = ["--no-verify", "--force"]
    result = ggprune(model, "--keep", 10, *same, cwd=tmp_path)
    assert "using tiny-Q8_0.stats.gguf, gathered on words (" in result.stderr
    assert "--recalibrate gathers anew" in result.stderr
    assert statistics.read_bytes() == first
    again = ["--recalibrate", "--text", text, "--ctx", 32, "--generate", 0]
    ggprune(model, "--keep", 10, *same, *again, cwd=tmp_path)
    assert statistics.read_bytes() != first
    # Those of another model are neither used nor replaced unasked.
    (tmp_path / "other").mkdir()
    other = write_tiny(tmp_path / "other" / "tiny-Q8_0.gguf", "olmoe", layers=2, seed=9)
    result = ggprune(other, "--keep", 10, *same, cwd=tmp_path, code=5)
    assert "not of this model" in result.stderr and "--recalibrate" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"), [("182579", 182579), ("14G", 14 * 10**9), ("1.5KiB", 1536), ("2T", 2e12)]
)
def test_sizes(text: str, expected: int) -> None:
    from ggprune.cli.values import size

    assert size(text) == expected


def test_the_parallel_of_a_budget_is_not_that_of_calibration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ggprune.api import pruning
    from ggprune.calibration.settings import Settings

    given: dict[str, Any] = {}
    monkeypatch.setattr(pruning, "prune", lambda *_, **asked: given.update(asked) or sys.exit(0))
    line = ["prune", "m.gguf", "--fit-vram", "1G", "--parallel", "3", "--generate", "5"]
    assert CliRunner().invoke(cli, line).exit_code == 0
    assert given["request"].budget.parallel == 3
    assert given["settings"] == Settings(generate=5)
