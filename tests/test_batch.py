"""Batches: what would be done, what is left alone, what a failure stops; with and without make."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggprune.batch import Step, checksums, execute_step, run, steps, up_to_date
from ggprune.batch_config import BatchConfig
from ggprune.cli.batch import command
from ggprune.errors import GgpruneError, InputError
from tests.support.tiny import write_tiny

ROOT = Path(__file__).parent.parent
MAKEFILE = ROOT / "Makefile"
ENVIRONMENT = {"MAKEFLAGS": "", "PYTHONPATH": str(ROOT)}

CONFIG = """
model = "Big-Q8_0.gguf"
source = "Big-BF16.gguf"
keep = [96, 109]
types = ["q8_0", "Q4_K", "Q4_K_M"]
output = "out"
imatrix = true
[options]
calibrate = ["--ctx", "1024"]
"""

#: Stands for ggprune: makes what each command makes, and notes its arguments.
FAKE = """
import os, sys, time
from pathlib import Path
words = sys.argv[1:]
if words[0] == "batch":  # The real one, with this for its steps.
    from ggprune import batch
    from ggprune.cli.main import main
    batch.PROGRAM = (sys.executable, __file__)
    main()
with open("calls.log", "a") as log:
    log.write(" ".join(words) + "\\n")
if os.environ.get("FAIL", "none") in words:
    sys.exit(7)
if os.environ.get("HANG", "none") in words:
    Path("hanging").touch()
    time.sleep(60)
if words[0] == "evaluate":
    print("{}")
    sys.exit()
target = Path(words[words.index("-o") + 1])
if words[0] == "quantize":
    source = Path(words[1]).name.removesuffix(".gguf").removesuffix("-BF16")
    target = target / f"{source}-{words[2]}.gguf"
target.write_text(" ".join(words))
if words[0] == "apply":
    target.with_name(target.name.replace(".gguf", ".expert_drop_metadata.json")).write_text("{}")
"""


@pytest.fixture
def config(tmp_path: Path) -> BatchConfig:
    (tmp_path / "batch.toml").write_text(CONFIG)
    for name in ("Big-Q8_0.gguf", "Big-BF16.gguf"):
        (tmp_path / name).write_text(name)
    return BatchConfig.load(tmp_path / "batch.toml")


def pretend(step: Step) -> str:
    """Make the outputs of a step, without making them."""
    for path in step.outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(step.text)
    return ""


# --- the file


def test_config(config: BatchConfig, tmp_path: Path) -> None:
    assert config.model == tmp_path / "Big-Q8_0.gguf"
    assert config.source == tmp_path / "Big-BF16.gguf"
    assert config.output == tmp_path / "out"
    assert config.types == ("Q8_0", "Q4_K_M")
    assert config.options == {"calibrate": ("--ctx", "1024")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keep = [1]", "model is missing"),
        ('model = "m"', "keep is missing"),
        ('model = "m"\nkeep = 96', "keep is 96, expected a list of int"),
        ('model = "m"\nkeep = [true]', "expected a list of int"),
        ('model = "m"\nkeep = [1]\ntypes = ["Q9"]', "Q9: is not a quantization type"),
        ('model = "m"\nkeep = [1]\ncolour = 1', "unknown key 'colour'"),
        ('model = "m"\nkeep = [1]\ncard = "no"', "card is 'no', expected bool"),
        ('model = "m"\nkeep = [1]\n[options]\nbake = []', "options.bake"),
        ('model = "m"\nkeep = [1]\n[options]\nplan = [1]', "options.plan"),
        ("model = ", "is not TOML"),
    ],
)
def test_wrong_config(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "batch.toml").write_text(text)
    with pytest.raises(InputError) as error:
        BatchConfig.load(tmp_path / "batch.toml")
    assert message in error.value.message


# --- steps


def test_each_step_comes_after_those_it_needs(config: BatchConfig) -> None:
    made = {config.model, config.source}
    for step in steps(config):
        assert set(step.inputs) <= made, step.text
        assert not made.intersection(step.outputs)
        made.update(step.outputs)
    names = {
        path.relative_to(config.output).as_posix() for path in made - {config.model, config.source}
    }
    assert "Big.stats.gguf" in names and "pruned/Big-96e.gguf" in names
    release = {name.removeprefix("Big-109e/") for name in names if name.startswith("Big-109e/")}
    assert release == {
        "Big-109e-Q8_0.gguf",
        "Big-109e-Q4_K_M.gguf",
        "Big-109e-Q8_0.evaluation.json",
        "Big-109e-Q4_K_M.evaluation.json",
        "Big-109e.expert_drop_metadata.json",
        "Modelfile-Q8_0",
        "Modelfile-Q4_K_M",
        "README.md",
        "SHA256SUMS",
    }


def test_the_source_is_pruned_and_the_model_measured(config: BatchConfig) -> None:
    texts = [step.text for step in steps(config)]
    assert any("apply" in t and "Big-BF16.gguf" in t for t in texts)
    assert not any("apply" in t and "Big-Q8_0.gguf" in t for t in texts)
    assert all("Big-Q8_0.gguf" in t for t in texts if "evaluate" in t or "calibrate" in t)
    assert all("--imatrix" in t for t in texts if " quantize " in t)
    assert "--ctx 1024" in texts[0]


def test_second_run_does_nothing(config: BatchConfig) -> None:
    todo = steps(config)
    assert run(todo, execute=pretend).made == todo
    again = run(todo, execute=pretend)
    assert again.current == todo and not again.made


def test_what_changed_is_made_again_and_all_that_follows(
    config: BatchConfig, caplog: pytest.LogCaptureFixture
) -> None:
    todo = steps(config)
    run(todo, execute=pretend)
    plan = config.output / "pruned" / "Big-96e.plan.json"
    later = time.time() + 3600
    os.utime(plan, (later, later))
    caplog.set_level("INFO", "ggprune")
    caplog.clear()  # An earlier test may have set the level, and the first run said much.
    dry = run(todo, dry_run=True, execute=pretend)
    assert dry.made and all("96e" in text for text in caplog.messages)
    assert {step.command[0] for step in dry.made} >= {"apply", "quantize", "card", "@checksums"}
    assert "plan" not in {step.command[0] for step in dry.made}


def test_a_failure_stops_only_what_needs_it(config: BatchConfig) -> None:
    def fails(step: Step) -> str:
        bad = step.command[0] == "quantize" and "Q4_K_M" in step.command
        return "no" if bad else pretend(step)

    outcome = run(steps(config), execute=fails)
    assert len(outcome.failed) == 2
    blocked = {step.outputs[0].name for step in outcome.blocked}
    assert {"README.md", "SHA256SUMS", "Modelfile-Q4_K_M"} <= blocked
    made = {step.outputs[0].name for step in outcome.made}
    assert {"Big-96e-Q8_0.gguf", "Big-109e-Q8_0.gguf", "Modelfile-Q8_0"} <= made
    todo = run(steps(config), execute=pretend).made
    assert {step.outputs[0].name for step in todo} == blocked | {
        "Big-96e-Q4_K_M.gguf",
        "Big-109e-Q4_K_M.gguf",
    }


def test_missing_output_is_not_up_to_date(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    step = Step((tmp_path / "b", tmp_path / "c"), (tmp_path / "a",), ("x",))
    assert not up_to_date(step)
    (tmp_path / "b").touch()
    assert not up_to_date(step)
    (tmp_path / "c").touch()
    assert up_to_date(step)


@pytest.mark.process
def test_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    text = checksums([tmp_path / "b.gguf", tmp_path / "a.gguf"])
    digest = hashlib.sha256(b"a.gguf" * 1000).hexdigest()
    assert text.splitlines()[0] == f"{digest}  a.gguf"
    if shutil.which("sha256sum"):
        (tmp_path / "SHA256SUMS").write_text(text)
        subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, check=True)


@pytest.mark.process
def test_a_command_that_fails_leaves_no_output(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    step = Step((target,), (), ("inspect", str(tmp_path / "none.gguf"), "--json"), to_file=True)
    assert execute_step(step) == "exit code 2, see above"
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_command_line(config: BatchConfig, tmp_path: Path) -> None:
    dry = CliRunner().invoke(command, [str(tmp_path / "batch.toml"), "--dry-run"])
    assert dry.exit_code == 0 and len(dry.stdout.splitlines()) == len(steps(config))
    assert not config.output.exists()
    (tmp_path / "small.toml").write_text('model = "none.gguf"\nkeep = [4]\n')
    failed = CliRunner().invoke(command, [str(tmp_path / "small.toml")])
    assert isinstance(failed.exception, GgpruneError)
    assert "1 of 3 steps failed, 2 more" in failed.exception.message


@pytest.mark.parametrize("by_file", [False, True])
def test_an_impossible_count_is_refused_before_calibration(tmp_path: Path, by_file: bool) -> None:
    model = write_tiny(tmp_path / "m.gguf", "gemma4", layers=1)
    (tmp_path / "batch.toml").write_text('model = "m.gguf"\nkeep = [12, 99]\n')
    words = [str(tmp_path / "batch.toml")] if by_file else ["--model", str(model), "--keep", "99"]
    failed = CliRunner().invoke(command, [*words, "--dry-run"])
    assert isinstance(failed.exception, InputError)
    assert "keep=99: the model has 16 experts" in failed.exception.message
    rounded = CliRunner().invoke(command, [*words, "--dry-run", "--options", "plan --round down"])
    assert by_file or rounded.exit_code == 0


# --- make

needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run make in another folder than the Makefile's, with a ggprune that pretends."""
    script = tmp_path / "fake-ggprune"
    script.write_text(f"#!{sys.executable}\n{FAKE}")
    script.chmod(0o755)
    for name in ("Big-Q8_0.gguf", "Big-BF16.gguf"):
        (tmp_path / name).write_text(name)

    def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", "-f", str(MAKEFILE), f"GGPRUNE={script}", *words],
            cwd=tmp_path,
            env={**os.environ, **environment, **ENVIRONMENT},
            capture_output=True,
            text=True,
            check=False,
        )

    return call


RELEASE = ("release", "MODEL=Big-Q8_0.gguf", "KEEP=96 109", "TYPES=Q8_0 q4_k", "REPO=me/Big")


def calls(folder: Path) -> list[str]:
    log = folder / "calls.log"
    return log.read_text().splitlines() if log.exists() else []


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.process
@needs_make
def test_make_makes_what_batch_makes(
    make: Callable[..., subprocess.CompletedProcess[str]], config: BatchConfig, tmp_path: Path
) -> None:
    shown = make("-n", *RELEASE, "SOURCE=Big-BF16.gguf", "IMATRIX=yes")
    assert shown.returncode == 0 and "quantize" in shown.stdout
    assert not (tmp_path / "out").exists()
    result = make(*RELEASE, "SOURCE=Big-BF16.gguf", "IMATRIX=yes")
    assert result.returncode == 0, result.stderr
    expected = {p.relative_to(config.output).as_posix() for s in steps(config) for p in s.outputs}
    assert files(tmp_path / "out") == expected
    subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "out" / "Big-96e", check=True)
    before = calls(tmp_path)
    assert make(*RELEASE, "SOURCE=Big-BF16.gguf", "IMATRIX=yes").returncode == 0
    assert calls(tmp_path) == before


@pytest.mark.process
@needs_make
def test_make_goes_on_after_a_failure(
    make: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert make(*RELEASE, FAIL="Q8_0").returncode != 0
    made = files(tmp_path / "out")
    assert {"Big-96e/Big-96e-Q4_K_M.gguf", "Big-109e/Modelfile-Q4_K_M"} <= made
    assert "Big-96e/README.md" not in made and "Big-96e/Big-96e-Q8_0.gguf" not in made
    before = len(calls(tmp_path))
    assert make(*RELEASE).returncode == 0
    again = calls(tmp_path)[before:]
    assert not any(
        call.startswith(("calibrate", "apply")) or "Q4_K_M.gguf -o" in call for call in again
    )
    assert "Big-96e/README.md" in files(tmp_path / "out")


@pytest.mark.process
@needs_make
def test_make_finishes_what_was_killed(
    make: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    words = ["make", "-f", str(MAKEFILE), f"GGPRUNE={tmp_path / 'fake-ggprune'}", *RELEASE]
    with subprocess.Popen(
        words,
        cwd=tmp_path,
        env={**os.environ, "HANG": "Q4_K_M", **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        while not (tmp_path / "hanging").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    assert "Big-96e/README.md" not in files(tmp_path / "out")
    assert make(*RELEASE).returncode == 0
    assert {"Big-96e/README.md", "Big-109e/SHA256SUMS"} <= files(tmp_path / "out")
    calibrated = [call for call in calls(tmp_path) if call.startswith("calibrate")]
    assert len(calibrated) == 1


@pytest.mark.process
@needs_make
def test_make_prune_and_requant(
    make: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert make("prune", "MODEL=Big-Q8_0.gguf", "KEEP=96 109").returncode == 0
    assert {"pruned/Big-96e.gguf", "pruned/Big-109e.gguf"} <= files(tmp_path / "out")
    assert make("requant", "MODEL=Big-BF16.gguf", "TYPES=Q8_0 Q5_K_M", "OUT=q").returncode == 0
    assert files(tmp_path / "q") == {"Big-Q8_0.gguf", "Big-Q5_K_M.gguf"}
    missing = make("prune", "MODEL=Big-Q8_0.gguf")
    assert missing.returncode != 0 and "KEEP is missing" in missing.stderr
    assert "MODEL is missing" in make("requant").stderr


def test_mtp_layers_can_be_dropped(config: BatchConfig) -> None:
    assert not any("--mtp" in step.command for step in steps(config))
    dropping = [step.text for step in steps(replace(config, mtp="drop")) if "--mtp" in step.command]
    assert len(dropping) == len(config.keep)
    assert all(" apply " in text and "--mtp drop" in text for text in dropping)
    with pytest.raises(InputError, match="mtp=none"):
        replace(config, mtp="none")


@needs_make
@pytest.mark.process
def test_make_with_spaces_in_a_name(
    make: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "My Big-Q8_0.gguf").write_text("model")
    result = make("release", "MODEL=My Big-Q8_0.gguf", "KEEP=96", "TYPES=Q4_K_M", "OUT=my out")
    assert result.returncode == 0, result.stderr
    assert "My Big-96e/My Big-96e-Q4_K_M.gguf" in files(tmp_path / "my out")
