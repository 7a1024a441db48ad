"""Fitting the trained model on a little text: what is written is what was measured and promised."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggprune.api.fit import Fitted, fit, words_on
from ggprune.calibration.settings import Settings
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.choose import choose_plan
from ggprune.choosing.request import Request, Resources
from ggprune.cli.fit import command
from ggprune.errors import InputError, OutputError
from ggprune.fitting.frontier import frontier
from ggprune.fitting.job import Job
from ggprune.fitting.opening import open_study
from ggprune.fitting.options import FitOptions
from ggprune.fitting.space import Mix
from ggprune.fitting.study import Study
from ggprune.fitting.writing import write
from ggprune.model import open_model
from ggprune.plan import Plan

pytestmark = pytest.mark.llama

LIMIT = 13_000_000
TEXTS = Path(__file__).parent.parent.parent / "fixtures"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fit")


@pytest.fixture(scope="module")
def job(trained: Path, folder: Path) -> Job:
    def text(kind: str) -> tuple[tuple[str, str], ...]:
        return (("german", str(TEXTS / kind / "german.txt")),)

    return Job(
        model=trained,
        work=folder / "work",
        text=text("calibration"),
        search_text=text("search"),
        eval_text=text("heldout"),
        options=FitOptions(types=TYPES, groups=6, search_tokens=1024, held_out_tokens=1024),
        settings=Settings(ctx=512, max_tokens=2048),
    )


#: Quick ones.
TYPES = ("Q8_0", "Q6_K", "Q4_K", "Q3_K", "Q2_K", "Q5_0")


@pytest.fixture(scope="module")
def fitted(job: Job, folder: Path) -> Fitted:
    return fit(job, folder / "result.gguf", target_size=LIMIT)


@pytest.fixture
def study(job: Job, fitted: Fitted) -> Iterator[Study]:
    with open_study(job) as study:
        yield study


def test_the_size_is_used(fitted: Fitted) -> None:
    assert fitted.path is not None
    size = fitted.path.stat().st_size
    assert 0.98 * LIMIT < size <= LIMIT
    assert size == fitted.numbers["size_bytes"]
    with open_model(fitted.path) as model:
        assert model.experts == fitted.numbers["keep"]


def test_numbers(fitted: Fitted) -> None:
    numbers = fitted.numbers
    keys = "size_bytes keep experts_used types kld_mean kld_se kld_p99 tokens alternatives"
    assert set(keys.split()) <= set(numbers)
    assert 0 < numbers["kld_mean"] < 0.1
    assert numbers["passes"] <= 60
    for each in numbers["alternatives"]:
        assert {"keep", "types", "size_bytes", "kld_mean"} <= set(each)
        assert each["measured"] != each["predicted"]
        assert each["size_bytes"] <= LIMIT
    json.dumps(numbers)


def test_it_is_no_worse_than_what_it_beat(fitted: Fitted) -> None:
    answer = fitted.answer
    best = answer.best.judged
    assert best is not None and answer.whole is not None and answer.single is not None
    for rival in (answer.whole, answer.single):
        assert rival.judged is not None
        assert best.kld_mean <= rival.judged.kld_mean + 2 * rival.judged.kld_se
    assert any(human in "\n".join(words_on(fitted)) for human in ("do not prune", "pays"))


def test_links_measure_what_the_written_file_does(study: Study, fitted: Fitted) -> None:
    assert fitted.path is not None and fitted.written is not None
    assert fitted.written.compared > 0.98 * fitted.answer.best.size
    score = study.judge.measure("the file", fitted.path, "the written file")
    assert score == fitted.answer.best.judged


def test_masked_links_measure_what_the_pruned_file_does(study: Study, tmp_path: Path) -> None:
    study.survey()
    found = study.best(LIMIT, study.source.experts)
    assert found is not None
    mix = Mix(48, found.options)
    masked = study.measure(mix, "48 experts", study.judge)
    written = write(study, mix, tmp_path / "pruned.gguf")
    assert written.compared > 0.95 * study.space.size(mix)
    score = study.judge.measure("the pruned file", tmp_path / "pruned.gguf", "the pruned file")
    # Activations are rounded to 8 bits: of two experts nearly as good, another may be chosen.
    assert score.kld_mean == pytest.approx(masked.kld_mean, rel=2e-2)


def test_nothing_is_measured_twice(job: Job, fitted: Fitted, folder: Path) -> None:
    again = fit(job, target_size=LIMIT, dry_run=True)
    assert again.numbers["passes"] == 0
    assert again.answer.best.mix == fitted.answer.best.mix
    assert not (folder / "work" / "shards").exists()


def test_a_winner_s_blend_holds_for_every_count(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def choose(statistics: Statistics, request: Request, resources: Resources) -> Plan:
        asked.append((request.method, request.blend))
        taken = replace(request, method="contribution", blend="maxmin")
        return choose_plan(statistics, taken, resources)

    monkeypatch.setattr("ggprune.fitting.study.choose_plan", choose)
    monkeypatch.setattr(study, "_plans", {})
    monkeypatch.setattr(study, "_method", None)
    study._find_method()
    study.plan(20)
    assert asked == [(None, None), ("contribution", "maxmin")]


def test_another_size_takes_few_passes(job: Job, fitted: Fitted) -> None:
    assert fit(job, target_size=15_000_000, dry_run=True).numbers["passes"] <= 6


def test_what_is_too_small_says_what_is_not(job: Job, fitted: Fitted) -> None:
    """The smallest file's cost is said once it is known, and not measured to refuse another."""
    smaller = r"target_size=1000000: the smallest file has (\d+) bytes"
    with pytest.raises(InputError, match=smaller) as e:
        fit(job, target_size=1_000_000)
    found = re.search(smaller, str(e.value))
    assert found and f"--target-size {found[1]}" in e.value.remedy
    assert "KL divergence" not in str(e.value)
    smallest = fit(job, target_size=int(found[1]), dry_run=True)
    assert 0.99 * int(found[1]) < smallest.numbers["size_bytes"] <= int(found[1])
    with pytest.raises(InputError, match="KL divergence") as e:
        fit(job, target_size=1_000_000)
    assert not e.value.remedy.count("ggprune fit")


def test_limits(job: Job, fitted: Fitted) -> None:
    with pytest.raises(InputError, match="one of them"):
        fit(job)
    assert fitted.path is not None
    with pytest.raises(OutputError, match="exists"):
        fit(job, fitted.path, target_size=LIMIT)


def test_a_cut_journal_is_read_as_far_as_it_goes(job: Job, fitted: Fitted, folder: Path) -> None:
    copy = folder / "copy"
    shutil.copytree(folder / "work", copy)
    (path,) = copy.glob("measured-*.jsonl")
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    from dataclasses import replace

    again = fit(replace(job, work=copy), target_size=LIMIT, dry_run=True)
    assert again.numbers["passes"] <= 1
    assert again.answer.best.mix == fitted.answer.best.mix


def test_the_frontier_has_all_experts_in_every_type(study: Study) -> None:
    points = frontier(study, [48], ["Q4_K_M"], vram=1 << 30)
    assert [(p.keep, p.types) for p in points] == [(48, "source"), (64, "Q4_K_M"), (48, "Q4_K_M")]
    assert all(p.context and p.context > 0 for p in points)
    assert points[1].speed and points[1].speed > 0
    assert points[-1].best


def test_the_command_prints_numbers(job: Job, fitted: Fitted, folder: Path) -> None:
    texts = [
        *("--text", f"german={TEXTS}/calibration/german.txt"),
        *("--search-text", f"german={TEXTS}/search/german.txt"),
        *("--eval-text", f"german={TEXTS}/heldout/german.txt"),
    ]
    limits = ["--groups", "6", "--search-tokens", "1024", "--held-out-tokens", "1024"]
    words = [str(job.model), "--target-size", str(LIMIT), "--work", str(folder / "work"), *texts]
    run = CliRunner().invoke(
        command,
        [
            *words,
            *limits,
            "--types",
            ",".join(TYPES),
            "--max-tokens",
            "2048",
            "--dry-run",
            "--json",
        ],
    )
    assert run.exit_code == 0, run.output
    numbers = json.loads(run.stdout)
    assert numbers["size_bytes"] == fitted.numbers["size_bytes"]
    assert numbers["types"] == fitted.numbers["types"]
