"""The curve, its cliff, and what the verdict makes of good and ruined plans."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ggprune.calibration.generate import Sampling, generate
from ggprune.calibration.statistics import Statistics
from ggprune.cli import cli
from ggprune.errors import InputError, MismatchError
from ggprune.evaluation.evaluator import Evaluator
from ggprune.evaluation.masking import MaskObserver, dropped_by
from ggprune.evaluation.probe import Probe, measure, side_by_side
from ggprune.evaluation.probe_gate import Answer
from ggprune.evaluation.sweep import Tolerance, default_counts, find_cliff, sweep
from ggprune.evaluation.verdict import cliff_of, scale, verdict
from ggprune.llama.session import LlamaModel
from ggprune.model import open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.text.documents import Message
from ggprune.text.load import load_texts
from tests.support.evaluating import OPTIONS, SOURCES, TEXT, calibrated, random_plan
from tests.support.plans import by_scores, planned
from tests.support.tiny import write_tiny


def ruined(statistics: Statistics, keep: int) -> Plan:
    """The experts that contribute least stay."""
    scores = -statistics.total.contribution_sum
    return by_scores(statistics, keep, scores)


def identity(statistics: Statistics) -> Plan:
    every = tuple(range(statistics.identity.experts))
    return Plan(len(every), {layer: LayerPlan(every, 1.0) for layer in statistics.layers})


@pytest.mark.parametrize(
    ("curve", "cliff"),
    [
        # Of 128: divergence that grows as the square of what is dropped has no cliff.
        ([(128 - n, 2e-4 * n**2) for n in (8, 16, 24, 32, 48, 64)], None),
        # The same curve up to 32 dropped, then ten times as much at 48.
        ([(120, 0.013), (104, 0.115), (96, 0.2), (80, 2.0), (64, 2.5)], 96),
        # Steep, but nothing to speak of: noise.
        ([(120, 1e-5), (112, 1e-3), (104, 9e-3)], None),
        # From nothing to ruin in one step.
        ([(120, 0.0), (112, 0.5)], 120),
        ([(128, 0.0), (120, 0.01), (112, 0.02)], None),
        ([(64, 3.0)], None),
        ([], None),
    ],
)
def test_cliff(curve: list[tuple[int, float]], cliff: int | None) -> None:
    assert find_cliff(curve, 128) == cliff


def test_default_counts() -> None:
    assert default_counts(range(8, 129)) == [120, 112, 104, 96, 88, 80, 64]
    assert default_counts(range(8, 33, 8)) == [24, 16]


@pytest.mark.llama
def test_sweep(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    statistics = calibrated(path, TEXT)
    counted = []
    with Evaluator(path, OPTIONS, SOURCES, n_ctx=64) as measured:
        passes = measured.tokens
        curve = sweep(
            measured,
            lambda method, keep: planned(statistics, keep, method),
            [14, 6, 10, 8, 12, 7, 13, 9],
            ["contribution"],
            tolerance=Tolerance(max_kld=1e9, max_ppl_ratio=1e9),
            advance=counted.append,
        )
        assert sum(counted) == 9 * passes, "eight counts and the base: nine passes"
        keep = curve.points[3].keep
        one = planned(statistics, keep, "contribution")
        alone = measured.measure_plan(one, advance=counted.append)
        with pytest.raises(InputError, match="keep=3"):
            sweep(measured, lambda _, keep: planned(statistics, keep), [14, 3], ["reap"])
        assert sum(counted) == 10 * passes, "nothing is measured before every plan is known"
    assert [point.keep for point in curve.points] == [14, 13, 12, 10, 9, 8, 7, 6]
    assert alone.as_json() == curve.points[3].evaluation.as_json()
    klds = [point.evaluation.total.kld_mean for point in curve.points]
    assert klds[0] < klds[3] < klds[-1]
    assert curve.smallest("contribution") == 6
    found = curve.as_json()
    assert json.loads(json.dumps(found)) == found
    assert found["points"][0]["worst_retained"] > found["points"][-1]["worst_retained"]
    between = Tolerance(max_kld=(klds[2] + klds[3]) / 2)
    strict = type(curve)(curve.model, curve.experts, curve.points, between)
    assert strict.smallest("contribution") == 12


@pytest.mark.llama
def test_command(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    stats = tmp_path / "m.stats.gguf"
    calibrated(path, TEXT).save(stats)
    text = tmp_path / "text.txt"
    text.write_text(TEXT[::-1])
    out = tmp_path / "sweep.json"
    arguments = ["sweep", str(path), str(stats), "--keep", "12,8", "--methods", "reap,random"]
    arguments += ["--text", f"x={text}", "--ctx", "64", "-t", "1", "-o", str(out)]
    run = CliRunner().invoke(cli, [*arguments, "--max-kld", "1e-9"])
    assert run.exit_code == 0, run.output
    assert "within the tolerance: try more" in run.stdout and "calibrated" not in run.stderr
    points = json.loads(out.read_text())["points"]
    assert [(p["method"], p["keep"]) for p in points] == [
        ("reap", 12), ("reap", 8), ("random", 12), ("random", 8)
    ]  # fmt: skip
    # The same plan as `ggprune plan` makes, measured as `ggprune evaluate` does.
    plan = tmp_path / "plan.json"
    chosen = ["--keep", "8", "--method", "reap", "-o", str(plan)]
    run = CliRunner().invoke(cli, ["plan", str(stats), *chosen])
    assert run.exit_code == 0, run.output
    common = ["--text", f"x={text}", "--ctx", "64", "-t", "1", "--json"]
    run = CliRunner().invoke(cli, ["evaluate", str(path), str(plan), *common])
    assert json.loads(run.stdout)["kld_mean"] == points[1]["kld_mean"]


@pytest.mark.llama
def test_warns_of_calibration_text(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    stats, text = tmp_path / "m.stats.gguf", tmp_path / "text.txt"
    calibrated(path, TEXT).save(stats)
    text.write_text(TEXT)
    common = ["--text", f"x={text}", "--ctx", "64", "-t", "1", "--keep", "12"]
    run = CliRunner().invoke(cli, ["sweep", str(path), str(stats), *common])
    assert run.exit_code == 0 and "Warning: x:" in run.stderr


@pytest.mark.llama
def test_statistics_of_another_model(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    other = write_tiny(tmp_path / "o.gguf", "qwen3moe", seed=1)
    statistics = calibrated(other, TEXT)
    with (
        Evaluator(path, OPTIONS, SOURCES, n_ctx=64) as measured,
        pytest.raises(MismatchError, match="router"),
    ):
        sweep(measured, lambda _, keep: planned(statistics, keep), [12], ["reap"])


def part(tokens: int, ratio: float, error: float = 0.01) -> dict[str, float]:
    return {"tokens": tokens, "ppl_ratio": ratio, "ppl_ratio_se": error, "kld_mean": 0.01}


def test_gates_one_by_one() -> None:
    fine = {**part(300, 1.05), "domains": {"a": part(100, 1.06), "b": part(200, 1.045)}}
    assert verdict(evaluation=fine, keep=96, retained={0: 0.99, 1: None}) == []
    assert [f.gate for f in verdict(evaluation=part(9, 1.21))] == ["perplexity"]
    assert [f.gate for f in verdict(evaluation={**part(9, 1.1), "kld_mean": 0.6})] == ["cliff"]
    heavy = {**part(9, 1.1), "kld_p99": 3.1}
    assert [f.gate for f in verdict(evaluation=heavy)] == ["tail"]
    (layers,) = verdict(retained={0: 0.99, 3: 0.949, 5: 0.9})
    assert (
        layers.gate == "layers"
        and "2 layers" in layers.text
        and "layer 5" in layers.text
        and "90.0%" in layers.text
    )
    curve = {"cliff": {"reap": 96, "random": None}}
    assert cliff_of(curve) == 96 and cliff_of(curve, "random") is None
    assert [f.gate for f in verdict(sweep=curve, keep=90)] == ["cliff"]
    assert verdict(sweep=curve, keep=96) == [] and verdict(sweep={"cliff": {}}, keep=9) == []


def test_a_domain_far_worse_than_the_rest() -> None:
    # ln ratios: a 0.3, b 0.01; over all, weighted by tokens: 0.1067.
    a, b = part(100, float(np.exp(0.3))), part(200, float(np.exp(0.01)))
    uneven = {**part(300, float(np.exp(0.32 / 3))), "domains": {"a": a, "b": b}}
    (finding,) = verdict(evaluation=uneven)
    assert finding.gate == "domain" and finding.text.startswith("a suffers")
    assert "1.35 against 1.01" in finding.text and "protect the domain a" in finding.remedy
    a["ppl_ratio_se"] = 0.2
    assert not verdict(evaluation=uneven), "within the error"
    a["kld_mean"] = 0.7
    (finding,) = verdict(evaluation=uneven)
    assert finding.gate == "domain" and "a is ruined" in finding.text and "0.70" in finding.text
    uneven["kld_mean"] = 0.6
    assert [f.gate for f in verdict(evaluation=uneven)] == ["cliff"], "all of it is said once"


def test_measurements_decide() -> None:
    """What the layers retain predicts a cost; it says nothing where the cost is known."""
    assert [f.gate for f in verdict(retained={0: 0.8})] == ["layers"]
    assert verdict(evaluation=part(9, 1.037), retained={0: 0.8}) == []
    (finding,) = verdict(retained={0: 0.8}, probe={"modes": {}})
    assert "measured" in finding.text and "ggprune evaluate" in finding.remedy


@pytest.mark.parametrize(
    ("kld", "said"),
    [
        (None, ""),
        (0.0001, "0.0014 to Q8_0"),
        (0.02, "0.011 to Q5_K_M and 0.031 to Q4_K_M"),
        (0.3, "0.10 to Q3_K_M and 0.45 to Q2_K"),
        (2.0, "0.45 to Q2_K"),
    ],
)
def test_scale(kld: float | None, said: str) -> None:
    text = scale(kld)
    assert said in text and bool(said) == bool(text)


@pytest.mark.llama
def test_plan_with_the_best_experts_dropped(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    statistics = calibrated(path, TEXT)
    with Evaluator(path, OPTIONS, SOURCES, n_ctx=64) as measured:
        good = measured.measure_plan(planned(statistics, 8, "contribution")).total
        bad = measured.measure_plan(ruined(statistics, 8)).total
    assert bad.kld_mean > 1.5 * good.kld_mean
    plan = ruined(statistics, 8)
    shares = {layer: each.retained for layer, each in plan.layers.items()}
    assert "layers" in [finding.gate for finding in verdict(retained=shares)]


@pytest.mark.llama
def test_random_plan_is_not_the_identity(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    with Evaluator(path, OPTIONS, SOURCES, n_ctx=64) as measured:
        same = measured.measure_plan(identity(calibrated(path, TEXT)))
        other = measured.measure_plan(random_plan(measured.description, 8))
    assert same.total.kld_mean < 1e-6 < other.total.kld_mean


FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture(scope="module")
def ruin(trained: Path) -> dict[str, Plan]:
    """Plans for the trained model: all experts, 56 of 64, and the 16 that contribute least."""
    text = "".join(path.read_text()[:4000] for path in sorted(FIXTURES.glob("calibration/*.txt")))
    statistics = calibrated(trained, text, tokens=3000)
    return {
        "identity": identity(statistics),
        "good": by_scores(statistics, 56, statistics.total.contribution_sum),
        "ruined": ruined(statistics, 16),
    }


@pytest.mark.llama
def test_ruined_plan_is_flagged_by_every_gate(trained: Path, ruin: dict[str, Plan]) -> None:
    sources = load_texts((path.stem, str(path)) for path in sorted(FIXTURES.glob("heldout/*.txt")))
    found = {}
    with Evaluator(trained, OPTIONS, sources, n_ctx=512, max_tokens=600) as measured:
        for name, plan in ruin.items():
            shares = {layer: each.retained for layer, each in plan.layers.items()}
            evaluation = measured.measure_plan(plan).as_json()
            found[name] = verdict(evaluation=evaluation, keep=plan.keep, retained=shares)
    assert found["identity"] == found["good"] == []
    gates = {finding.gate for finding in found["ruined"]}
    assert gates == {"perplexity", "cliff", "domain"}
    assert all(finding.remedy for finding in found["ruined"])


@pytest.mark.llama
def test_ruined_plan_loops_and_the_others_do_not(trained: Path, ruin: dict[str, Plan]) -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9)
    source = open_model(trained)
    files = sorted(FIXTURES.glob("heldout/*.txt"))
    probes = [Probe(path.stem, "text", (Message("user", ""),)) for path in files]
    with LlamaModel(trained, OPTIONS) as model:
        prompts = [model.tokenize(path.read_text()[:6000])[-60:] for path in files]

        def answers(*masks: MaskObserver) -> dict[str, list[Answer]]:
            written = generate(model, prompts, max_tokens=80, sampling=sampling, observers=masks)
            return {"sampled": [measure(model, ids) for ids in written]}

        def judged(plan: Plan) -> list[str]:
            both = side_by_side(
                probes,
                base,
                answers(MaskObserver(source, dropped_by(plan))),
                names=("base", "candidate"),
                settings={},
                modes={"sampled": sampling},
            )
            return [finding.gate for finding in verdict(probe=both)]

        base = answers()
        assert judged(ruin["identity"]) == judged(ruin["good"]) == []
        assert judged(ruin["ruined"]) == ["answers"]
