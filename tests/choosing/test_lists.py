"""Lists of experts by layer, as other tools write them: import and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggprune.choosing.lists import lists_of, plan_from_lists
from ggprune.cli.main import cli
from ggprune.errors import InputError
from ggprune.model import MoeModel, open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.rewrite.drop_metadata import FORMAT
from tests.support.tiny import write_tiny

#: A leading dense layer, experts in 1 and 2, 16 each, four used.
DROPPED = {1: [0, 5, 15], 2: [3, 4, 9]}
KEPT = {layer: [e for e in range(16) if e not in gone] for layer, gone in DROPPED.items()}
RANKED = {layer: [*kept, *DROPPED[layer]] for layer, kept in KEPT.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoeModel:
    path = tmp_path_factory.mktemp("lists") / "m.gguf"
    opened = open_model(write_tiny(path, "deepseek2", layers=3))
    assert (opened.moe_layers, opened.experts) == ((1, 2), 16)
    return opened


def named(lists: dict[int, list[int]], form: str = "{}") -> dict[str, list[int]]:
    return {form.format(layer): experts for layer, experts in lists.items()}


@pytest.mark.parametrize(
    "data",
    [
        {"pruned_experts": named(DROPPED)},
        {"kept": named(KEPT, "layer_{}")},
        {"model": "x", "dropped": named(DROPPED, "model.layers.{}.mlp.experts")},
        named({n: {"keep": experts} for n, experts in KEPT.items()}),  # type: ignore[arg-type]
        {"layers": named({n: {"prune": e} for n, e in DROPPED.items()}, "blk.{}")},  # type: ignore[arg-type]
        [{"layer": n, "drop": experts} for n, experts in DROPPED.items()],
        [{"layer_idx": n, "retained_experts": experts} for n, experts in KEPT.items()],
        {"experts_to_remove": list(DROPPED.values())},
    ],
)
def test_layouts_of_other_tools(model: MoeModel, data: Any) -> None:
    plan = plan_from_lists(data, model)
    assert {n: list(plan.layers[n].keep) for n in (1, 2)} == KEPT
    assert (plan.keep, plan.experts, plan.method) == (13, 16, "imported")
    assert plan.identity == model.identity()


def test_what_lists_hold_can_be_said(model: MoeModel) -> None:
    with pytest.raises(InputError, match="kept or dropped"):
        plan_from_lists(named(DROPPED), model)
    plans = [
        plan_from_lists(named(DROPPED), model, meaning="dropped"),
        plan_from_lists(list(KEPT.values()), model, meaning="kept"),
        plan_from_lists(named(RANKED), model, meaning="ranked", keep=13),
        plan_from_lists({"ranking": named(RANKED)}, model, keep=13),
    ]
    assert len({plan.hash for plan in plans}) == 1


@pytest.mark.parametrize(
    ("data", "meaning", "said"),
    [
        ([], "kept", "no lists"),
        ("text", "kept", "no lists"),
        ({"kept": {"a": 1}}, None, "no lists"),
        (named({1: [0, 0], 2: [1, 2]}), "kept", "expert 0 twice"),
        (named({1: [0, 16], 2: [1, 2]}), "kept", "expert 16, expected 0 to 15"),
        (named({1: [0, 1.5], 2: [1, 2]}), "kept", "not a list of expert numbers"),  # type: ignore[list-item]
        (named({1: [True], 2: [1]}), "kept", "not a list of expert numbers"),
        (named({1: [3], 2: [3, 4]}), "dropped", "layer 2 keeps 14"),
        (named({0: [3], 2: [3]}), "dropped", "has no layer 1"),
        ([[3]], "dropped", "has 1 lists, the model has experts in 2 layers"),
        (named(RANKED), "ranked", "does not say how many"),
        (named({1: [3], 2: [3]}), "kept", "keep=1"),
        ([{"layer": 1, "drop": [1]}, {"layer": 1, "drop": [2]}], None, "layer 1 twice"),
        ({"1": {"drop": [1]}, "2": {"keep": [2]}}, None, "says kept, others dropped"),
        ({"1": {"router": [1]}}, None, "layer 1 has no list"),
    ],
)
def test_what_is_no_list_is_refused(model: MoeModel, data: Any, meaning: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        plan_from_lists(data, model, meaning=meaning)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["0", "1", "2", "layer_1", "keep", "drop", "layers", "ranked", "layer"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=24,
)
PLAN_KEYS = (
    *("format", "version", "keep", "experts", "experts_used", "architecture", "method"),
    *("settings", "model", "layers"),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(JSON, st.sampled_from([None, "kept", "dropped", "ranked"]), st.none() | st.integers())
def test_any_json_is_lists_or_one_message(
    model: MoeModel, data: Any, meaning: Any, keep: int | None
) -> None:
    try:
        plan = plan_from_lists(data, model, meaning=meaning, keep=keep)
    except InputError as error:
        assert error.message
    else:
        assert plan.for_model(model) == plan


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(PLAN_KEYS), JSON),
    st.dictionaries(
        st.sampled_from(["0", "1", "12"]),
        st.dictionaries(
            st.sampled_from(["keep", "drop", "retained", "rule"]),
            st.lists(st.integers(0, 9), max_size=5) | JSON,
        )
        | JSON,
    )
    | JSON,
)
def test_any_json_is_a_plan_or_one_message(data: dict[str, Any], layers: Any) -> None:
    """Also if most of it is as it should be."""
    for value in (layers, data, {"format": "ggprune-plan", "version": 1, **data, "layers": layers}):
        try:
            plan = Plan.from_json(value, "p.json")
        except InputError as error:
            assert "p.json" in error.message
        else:
            assert Plan.from_json(plan.as_json(), "again") == plan
            assert plan.hash and (plan.mean_retained is None or plan.mean_retained >= 0)


def test_a_plan_of_dropped_experts_alone() -> None:
    layers = {"0": {"drop": [1, 2]}, "1": {"drop": [0, 3]}}
    data = {"format": "ggprune-plan", "version": 1, "experts": 8, "layers": layers}
    plan = Plan.from_json(data, "p.json")
    assert plan.keep == 6 and plan.layers[1].keep == (1, 2, 4, 5, 6, 7)
    with pytest.raises(InputError, match='has to say "experts"'):
        Plan.from_json({**data, "experts": 0}, "p.json")
    layers["0"]["keep"] = [0, 3, 4, 5, 6, 7, 1]
    with pytest.raises(InputError, match=r"layer 0: keep and drop contradict .* expert 1"):
        Plan.from_json(data, "p.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"experts": "32x"}, "experts is '32x', expected int"),
        ({"settings": {"weights": {"a": "b"}}}, "settings.weights.a"),
        ({"model": {"architecture": 3}}, "model"),
        ({"layers": {"-1": {"keep": [1]}}}, "'-1' is not the number of a layer"),
        ({"layers": {"0": [1, 2]}}, "layers.0"),
        ({"layers": {"0": {"keep": [1], "retained": "all"}}}, "layers.0.retained"),
        ({"layers": {"0": {"keep": [1], "retained": 99}}}, "retained is 99"),
        ({"keep": 10**400}, "expected a number of experts"),
    ],
)
def test_a_slip_in_a_plan_is_named(change: dict[str, Any], said: str) -> None:
    data = {"format": "ggprune-plan", "version": 1, "keep": 1, "layers": {"0": {"keep": [1]}}}
    assert Plan.from_json(data, "p.json").layers == {0: LayerPlan((1,))}
    with pytest.raises(InputError, match=said):
        Plan.from_json({**data, **change}, "p.json")


def test_what_is_no_plan_of_ours_is_named() -> None:
    layers = {"0": {"keep": [1]}}
    with pytest.raises(InputError, match=r"p\.json: has no version, expected 1"):
        Plan.from_json({"format": "ggprune-plan", "keep": 1, "layers": layers}, "p.json")
    metadata = {"format": FORMAT, "version": 1, "keep": 1, "layers": layers}
    with pytest.raises(InputError, match=r"is drop metadata .* not a plan") as caught:
        Plan.from_json(metadata, "p.json")
    assert "ggprune plan STATS.gguf --keep 1" in caught.value.remedy


def test_the_command_goes_both_ways(model: MoeModel, tmp_path: Path) -> None:
    lists, plan, again = (tmp_path / name for name in ("lists.json", "plan.json", "again.json"))
    lists.write_text(json.dumps({"pruned": named(DROPPED)}))
    path = str(model.gguf.path)
    made = CliRunner().invoke(cli, ["lists", str(lists), "--model", path, "-o", str(plan)])
    assert made.exit_code == 0, made.output
    back = CliRunner().invoke(cli, ["lists", str(plan), "-o", str(again)])
    assert back.exit_code == 0, back.output
    assert json.loads(again.read_text()) == {"dropped": named(DROPPED)}
    assert lists_of(Plan.load(plan), "kept") == {"kept": named(KEPT)}
    fewer = ["lists", str(plan), "--keep", "3", "-o", str(again), "--force"]
    assert "keep=3: is for ranked lists" in str(CliRunner().invoke(cli, fewer).exception)
    refused = CliRunner().invoke(cli, ["lists", str(lists), "-o", str(again), "--force"])
    assert "ggprune lists" in refused.exception.remedy  # type: ignore[union-attr]
