"""Plans: from statistics and a request to who stays; their file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ggprune.calibration.statistics import Domain, ExpertSums, Statistics
from ggprune.choosing.choose import choose_plan
from ggprune.choosing.methods import METHODS
from ggprune.choosing.request import Budget, Request, Resources
from ggprune.choosing.trust import JUDGED, trust_of
from ggprune.choosing.weights import MTP_RULE
from ggprune.cli.main import cli
from ggprune.errors import InputError
from ggprune.model import open_model
from ggprune.plan import Plan
from tests.support.statistics import EXPERTS, LAYERS, statistics_of
from tests.support.tiny import write_tiny

ONE_SHOT = sorted(name for name, method in METHODS.items() if method.sums)


def planned(keep: int = 8, statistics: Statistics | None = None, **request: object) -> Plan:
    asked = Request(budget=Budget(keep=keep), super_experts=False)
    return choose_plan(statistics or statistics_of(), replace(asked, **request))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ONE_SHOT)
def test_fewer_kept_is_a_subset_of_more_kept(method: str) -> None:
    for smaller, larger in zip(range(4, 16), range(5, 17), strict=True):
        less, more = planned(smaller, method=method), planned(larger, method=method)
        for layer in range(LAYERS):
            assert set(less.layers[layer].keep) < set(more.layers[layer].keep)


@pytest.mark.parametrize("method", ONE_SHOT)
@pytest.mark.parametrize("blend", [None, "uniform", "maxmin", "d0=2,d2=1"])
def test_the_same_request_gives_the_same_plan(method: str, blend: str | None) -> None:
    if blend and not METHODS[method].additive:
        with pytest.raises(InputError, match="no sums over tokens"):
            planned(method=method, blend=blend)
        return
    assert planned(method=method, blend=blend) == planned(method=method, blend=blend)


@pytest.mark.parametrize("method", ONE_SHOT)
def test_groups_stay_equal(method: str) -> None:
    statistics = statistics_of(groups=4)
    for keep in (8, 12):
        plan = planned(keep, statistics, method=method)
        for part in plan.layers.values():
            by_group = np.bincount(np.array(part.keep) // 4, minlength=4)
            assert by_group.tolist() == [keep // 4] * 4


def test_retain_is_minimal() -> None:
    statistics = statistics_of()
    for method in ("contribution", "reap", "gate"):
        for share in (0.6, 0.8, 0.95, 0.99):
            request = Request(budget=Budget(retain=share), method=method, super_experts=False)
            plan = choose_plan(statistics, request)
            assert plan.worst_retained is not None
            assert plan.worst_retained[1] >= share
            if plan.keep > 4:
                fewer = planned(plan.keep - 1, statistics, method=method)
                assert fewer.worst_retained is not None
                assert fewer.worst_retained[1] < share


def test_max_min_serves_the_worst_domain_better_than_the_pool() -> None:
    statistics = statistics_of(seed=4)
    statistics.domains[0].sums.contribution_sum[:] *= 50
    pooled = planned(6, statistics, method="contribution").settings["coverage"]
    maxmin = planned(6, statistics, method="contribution", blend="maxmin").settings["coverage"]
    assert min(maxmin.values()) > min(pooled.values())


def test_a_protected_domain_keeps_its_coverage() -> None:
    statistics = statistics_of(seed=4)
    statistics.domains[0].sums.contribution_sum[:] *= 50
    for method in ("contribution", "reap"):
        before = planned(6, statistics, method=method).settings["coverage"]["d1"]
        after = planned(6, statistics, method=method, protect_domains=("d1=0.97",))
        assert before < 0.97 <= after.settings["coverage"]["d1"]


def test_protecting_everything_is_impossible() -> None:
    with pytest.raises(InputError, match="cannot all be kept"):
        planned(4, protect_domains=("d0=1", "d1=1", "d2=1"))


def test_always_keep_and_super_experts() -> None:
    statistics = statistics_of()
    worst = int(METHODS["reap"].sums(statistics.total, 0)[1].argmin())  # type: ignore[misc]
    statistics.domains[0].sums.norm_max[0, 3] = 1e6
    plan = planned(5, statistics, always_keep=(f"1:{worst}",), super_experts=True)
    assert worst in plan.layers[1].keep
    assert 3 in plan.layers[0].keep
    assert plan.settings["protected_experts"]["0"] == [3]


def test_a_size_needs_the_model() -> None:
    with pytest.raises(InputError, match="needs the model"):
        choose_plan(statistics_of(), Request(budget=Budget(target_size=10**9)))


def test_trust_in_layers_with_little_text() -> None:
    # 128 tokens, 4 of 16 experts each: 32 tokens an expert, for one of three domains.
    few = statistics_of(domains=1, tokens=JUDGED * EXPERTS // 4)
    # Counts of the made-up statistics are rounded down.
    assert trust_of(few) == pytest.approx([1.0] * LAYERS, abs=0.04)
    half = statistics_of(domains=1, tokens=JUDGED * EXPERTS // 8)
    assert trust_of(half) == pytest.approx([0.5] * LAYERS, abs=0.04)


def test_too_little_text_is_said(caplog: pytest.LogCaptureFixture) -> None:
    request = Request(budget=Budget(keep=8), super_experts=False)
    choose_plan(statistics_of(domains=1, tokens=10), request)
    assert "3 of 3 layers saw fewer than 32 tokens an expert" in caplog.text


def test_layers_without_text_fall_back_to_the_weights(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.gguf", "qwen3moe", layers=LAYERS))
    empty = statistics_of(domains=1, tokens=0)
    empty = replace(empty, identity=model.identity())
    resources = Resources(model=model)
    by_rule = choose_plan(empty, Request(budget=Budget(keep=8)), resources)
    by_weights = choose_plan(empty, Request(budget=Budget(keep=8), method="weights"), resources)
    assert {n: part.keep for n, part in by_rule.layers.items()} == {
        n: part.keep for n, part in by_weights.layers.items()
    }


def test_mtp_layers_get_a_choice_and_say_by_what_rule(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "glm4moe")
    model = open_model(path)
    sums = ExpertSums.zeros(len(model.moe_layers), model.experts)
    sums.contribution_sum[:] = np.random.default_rng(0).random(sums.count.shape)
    sums.tokens[:], sums.count[:] = 10**6, 1000
    statistics = Statistics(model.identity(), model.moe_layers, (Domain("d", 1, "", sums),))
    plan = choose_plan(statistics, Request(budget=Budget(keep=8)), Resources(model=model))
    (mtp,) = model.mtp_layers
    assert plan.layers[mtp].rule == MTP_RULE
    assert len(plan.layers[mtp].keep) == 8
    assert plan.for_model(model).keep == 8


def test_the_file_holds_what_the_issue_says(tmp_path: Path) -> None:
    plan = planned(8, method="contribution", blend="maxmin")
    plan.save(tmp_path / "p.json")
    data = json.loads((tmp_path / "p.json").read_text("utf-8"))
    assert (data["format"], data["version"]) == ("ggprune-plan", 1)
    assert (data["experts"], data["keep"], data["method"]) == (EXPERTS, 8, "contribution")
    for layer in data["layers"].values():
        assert sorted(layer["keep"] + layer["drop"]) == list(range(EXPERTS))
        assert 0 < layer["retained"] < 1
    assert Plan.load(tmp_path / "p.json") == plan


def test_experts_used_in_the_file(tmp_path: Path) -> None:
    plain = planned(8)
    fewer = planned(8, experts_used=3)
    assert fewer == replace(plain, experts_used=3)
    assert len({plain.hash, fewer.hash, planned(8, experts_used=2).hash}) == 3
    fewer.save(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json") == fewer
    assert "experts_used" not in plain.as_json()
    for wrong in (-1, True, "3", 2.5):
        data = {**fewer.as_json(), "experts_used": wrong}
        (tmp_path / "wrong.json").write_text(json.dumps(data))
        with pytest.raises(InputError, match="experts_used is"):
            Plan.load(tmp_path / "wrong.json")


@pytest.mark.parametrize("value", ["0", "-2", "few"])
def test_experts_used_that_is_no_number(tmp_path: Path, value: str) -> None:
    stats = tmp_path / "s.gguf"
    statistics_of().save(stats)
    arguments = ["plan", str(stats), "--keep", "12", "--experts-used", value]
    assert "is not a number of experts" in CliRunner().invoke(cli, arguments).output


def test_the_command(tmp_path: Path) -> None:
    stats, output = tmp_path / "s.gguf", tmp_path / "p.json"
    statistics_of().save(stats)
    run = CliRunner().invoke
    done = run(cli, ["plan", str(stats), "--ratio", "0.25", "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert Plan.load(output).keep == 12
    assert "coverage of d0" in done.output
    again = run(cli, ["plan", str(stats), "--keep", "12", "-o", str(output)])
    assert "exists" in str(again.exception)
    shown = run(cli, ["plan", str(stats), "--keep", "12", "--json"])
    assert json.loads(shown.stdout)["keep"] == 12
    fewer = run(cli, ["plan", str(stats), "--keep", "12", "--experts-used", "3"])
    assert "-> 3 experts" in fewer.output
    unmeasured = run(cli, ["plan", str(stats), "--keep", "12", "--experts-used", "auto"])
    assert "runs the model" in str(unmeasured.exception)
    both = run(cli, ["plan", str(stats), "--keep", "12", "--ratio", "0.5"])
    assert "cannot be combined" in both.exception.remedy  # type: ignore[union-attr]


@pytest.mark.parametrize(("groups", "keep"), [(1, 8), (4, 12)])
def test_counts_by_layer_share_one_total(groups: int, keep: int) -> None:
    statistics = statistics_of(seed=2, groups=groups)
    for domain in statistics.domains:
        domain.sums.contribution_sum[1] *= 20  # That layer does more than the others.
    request = Request(budget=Budget(keep=keep), method="contribution", super_experts=False)
    plan = choose_plan(statistics, request, by_layer=True)
    counts = [len(part.keep) for part in plan.layers.values()]
    assert plan.keep == keep and sum(counts) == keep * LAYERS and len(set(counts)) > 1
    assert counts[1] == max(counts) and all(
        n in statistics.identity.counts.possible() for n in counts
    )
    # No exchange between layers is worth more, by trying all of them.
    shares = statistics.total.contribution_sum
    shares = shares / np.sqrt(shares.sum(axis=1, keepdims=True))
    shares = -np.sort(-shares.reshape(LAYERS, groups, -1))
    for one, n in enumerate(counts):
        for other, m in enumerate(counts):
            if one != other and n > statistics.identity.counts.least and m < EXPERTS:
                lost, won = shares[one, :, n // groups - 1], shares[other, :, m // groups]
                assert lost.sum() >= won.sum()
    for layer, part in plan.layers.items():
        uniform = planned(len(part.keep), statistics, method="contribution")
        assert part == uniform.layers[layer], "within a layer the same experts stay"


@pytest.mark.parametrize(
    "asked",
    [
        {"method": "search"},
        {"rounds": 2},
        {"protect_domains": ("d0",)},
        {"budget": Budget(retain=0.9)},
        {"budget": Budget(max_kld=0.1)},
    ],
)
def test_counts_by_layer_come_from_scores(asked: dict[str, Any]) -> None:
    request = Request(**{"budget": Budget(keep=8), "method": "contribution", **asked})
    with pytest.raises(InputError, match="by_layer=True: counts by layer come from scores"):
        choose_plan(statistics_of(), request, by_layer=True)
