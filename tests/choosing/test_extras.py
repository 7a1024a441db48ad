"""Methods that run the model again, against what its nodes say."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ggprune.calibration.observers import turned
from ggprune.calibration.run import Run
from ggprune.calibration.settings import Settings
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.choose import choose_plan
from ggprune.choosing.methods.shapley import shapley
from ggprune.choosing.request import Budget, Request, Resources
from ggprune.choosing.rerun import calibrate_again
from ggprune.errors import InputError
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.llama.tensor import TensorView
from ggprune.model import MoeModel, open_model
from ggprune.text.documents import Document, Source
from ggprune.types import no_progress
from tests.support.statistics import statistics_of
from tests.support.tiny import write_tiny

OPTIONS = RunOptions(threads=1)
TEXT = "The quick brown fox jumps over the lazy dog, and then over another one. " * 4
SOURCES = (
    Source("a", (Document(text=TEXT),)),
    Source("b", (Document(text=TEXT[::-1]),)),
)


def calibrated(path: Path) -> tuple[MoeModel, Statistics, Resources]:
    model = open_model(path)
    settings = Settings(ctx=128, generate=0)
    statistics = Run(model, SOURCES, settings, OPTIONS, no_progress).run()
    return model, statistics, Resources(model=model, options=OPTIONS, sources=SOURCES)


class Nodes:
    """Keeps every node of one name a layer."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.kept = names, defaultdict(list)

    def wants(self, name: str) -> bool:
        return name.rpartition("-")[0] in self.names and name.rpartition("-")[2].isdigit()

    def receive(self, name: str, tensor: TensorView) -> bool:
        base, _, layer = name.rpartition("-")
        self.kept[base, int(layer)].append(tensor.array()[0].copy())
        return True


@pytest.mark.llama
@pytest.mark.parametrize(
    ("architecture", "residual"), [("gemma4", "attn_out"), ("olmoe", "ffn_inp")]
)
def test_easy_ep_is_what_the_nodes_say(architecture: str, residual: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", architecture)
    model, statistics, _ = calibrated(path)
    request = Request(budget=Budget(keep=8), method="easy-ep", super_experts=False)
    resources = Resources(model=model, options=OPTIONS, sources=SOURCES)
    plan = choose_plan(statistics, request, resources)
    expected = np.zeros((len(model.moe_layers), model.experts))
    nodes = Nodes([residual, "ffn_moe_topk", "ffn_moe_weighted", "ffn_moe_out"])
    with (
        LlamaModel(path, OPTIONS) as llama,
        LlamaContext(llama, n_ctx=128, observers=(nodes,)) as context,
    ):
        for source in SOURCES:
            ids = llama.tokenize(source.documents[0].text)
            body = ids[1:]
            for start in range(0, len(body), 127):
                context.clear()
                context.decode([Tokens(0, 0, [ids[0], *body[start : start + 127]])])
    for row, layer in enumerate(model.moe_layers):
        for x, chosen, weighted, moe in zip(
            *(nodes.kept[name, layer] for name in nodes.names), strict=True
        ):
            for token in range(x.shape[1]):
                before, added = x[0, token], moe[0, token]
                after = before + added
                cosine = before @ after / (np.linalg.norm(before) * np.linalg.norm(after))
                for slot, expert in enumerate(chosen[0, token]):
                    size = np.linalg.norm(weighted[token, slot])
                    expected[row, expert] += size * max(1 - cosine, 0)
        best = np.argsort(-expected[row], kind="stable")[:8]
        assert set(plan.layers[layer].keep) == set(best.tolist())


@pytest.mark.llama
def test_cover_protects(tmp_path: Path) -> None:
    model, statistics, resources = calibrated(write_tiny(tmp_path / "m.gguf", "gemma4"))
    request = Request(budget=Budget(keep=8), method="cover", super_experts=False)
    layer = model.moe_layers[0]
    plan = choose_plan(statistics, request, resources)
    gone = plan.dropped(layer)[0]
    forced = replace(request, always_keep=(f"{layer}:{gone}",))
    assert gone in choose_plan(statistics, forced, resources).layers[layer].keep


@pytest.mark.llama
def test_rounds_need_a_score_of_sums(tmp_path: Path) -> None:
    _, statistics, resources = calibrated(write_tiny(tmp_path / "m.gguf", "gemma4"))
    request = Request(budget=Budget(keep=8), method="cover", rounds=2)
    with pytest.raises(InputError, match="rounds=2"):
        choose_plan(statistics, request, resources)


def test_turned_by_hand() -> None:
    x = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [3.0, 4.0]], np.float32)
    m = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [-6.0, -8.0]], np.float32)
    assert turned(x, m) == pytest.approx([1 - 0.5**0.5, 0, 0, 2])


@pytest.mark.llama
def test_an_architecture_without_a_named_residual_stream(tmp_path: Path) -> None:
    _, statistics, resources = calibrated(write_tiny(tmp_path / "m.gguf", "phimoe"))
    request = Request(budget=Budget(keep=8), method="easy-ep")
    with pytest.raises(InputError, match="does not name"):
        choose_plan(statistics, request, resources)


def test_shapley_by_hand() -> None:
    chosen = np.array([[0, 1], [1, 0], [0, 1], [0, 2], [2, 1]])
    # Expert 0: {0,1} seen 3 times, sets with 1 four times; {0,2} once, sets with 2 twice: a = 1/2,
    # so (3 - 2) + (1 - 1). Expert 1 alike. Expert 2: a = 1/4, so nothing is its own.
    assert shapley(chosen, 4).tolist() == [1, 1, 0, 0]


def slow_shapley(chosen: np.ndarray, experts: int) -> list[float]:
    """The formula over all sets of experts, seen or not."""
    size = chosen.shape[1]
    sets = [frozenset(each) for each in itertools.combinations(range(experts), size)]
    seen = {each: sum(set(row) == each for row in chosen.tolist()) for each in sets}
    result = []
    for expert in range(experts):
        mine = [each for each in sets if expert in each and seen[each]]

        def around(each: frozenset[int], expert: int = expert) -> int:
            return sum(count for other, count in seen.items() if each - {expert} <= other)

        least = min((seen[each] / around(each) for each in mine), default=0)
        result.append(float(sum(seen[each] - least * around(each) for each in mine)))
    return result


@pytest.mark.parametrize("seed", range(5))
def test_shapley_against_all_sets(seed: int) -> None:
    random = np.random.default_rng(seed)
    chosen = np.array([random.choice(6, 3, replace=False) for _ in range(40)])
    assert shapley(chosen, 6) == pytest.approx(slow_shapley(chosen, 6))


@pytest.mark.llama
def test_shape_uses_the_routing_of_the_text(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    _, statistics, resources = calibrated(path)
    plan = choose_plan(statistics, Request(budget=Budget(keep=8), method="shape"), resources)
    assert plan.method == "shape"
    assert all(len(part.keep) == 8 for part in plan.layers.values())


@pytest.mark.llama
def test_rounds_drop_more_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    _, statistics, resources = calibrated(path)
    caplog.set_level("INFO", "ggprune")
    request = Request(budget=Budget(keep=6), method="contribution", rounds=3, super_experts=False)
    plan = choose_plan(statistics, request, resources)
    assert plan.keep == 6
    assert [note for note in caplog.messages if "calibrating again" in note] == [
        "round 1 of 3: 13 experts, calibrating again",
        "round 2 of 3: 9 experts, calibrating again",
    ]
    # The first part is what one round to 13 experts drops; it never comes back.
    first = choose_plan(
        statistics, Request(budget=Budget(keep=13), method="contribution", super_experts=False)
    )
    for layer, part in plan.layers.items():
        assert set(part.keep) < set(first.layers[layer].keep)


@pytest.mark.llama
def test_another_calibration_is_set_up_as_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling included: answers of another temperature would be another text."""
    model = open_model(write_tiny(tmp_path / "m.gguf", "qwen3moe"))
    how = Settings(ctx=96, max_tokens=50, generate=7, seed=3, temperature=0.25, top_p=0.5)
    statistics = replace(statistics_of(), settings=how.recorded())
    seen: list[Settings] = []
    monkeypatch.setattr(Run, "run", lambda run: seen.append(run.settings))
    resources = Resources(model=model, options=OPTIONS, sources=SOURCES)
    calibrate_again("rounds=2", statistics, resources, Nodes([]))
    assert seen == [how]
