"""Choosing among one-shot plans by measuring them, cheaply: the default where there is text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggprune
from ggprune.calibration.run import Run
from ggprune.calibration.settings import Settings
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.choose import choose_plan
from ggprune.choosing.methods import METHODS, Method
from ggprune.choosing.request import DEFAULT, Budget, Request, Resources
from ggprune.choosing.search import contest
from ggprune.evaluation.evaluator import Evaluator
from ggprune.evaluation.masking import dropped_by
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext
from ggprune.model import open_model
from ggprune.publish.card import gather, render
from ggprune.text.documents import Document, Message, Source
from ggprune.types import no_progress
from tests.support.tiny import write_tiny

OPTIONS = RunOptions(threads=1)
REQUEST = Request(budget=Budget(keep=8), super_experts=False)


@pytest.fixture
def methods() -> Iterator[dict[str, Method]]:
    """The table of methods, as it was afterwards."""
    before = dict(METHODS)
    yield METHODS
    METHODS.clear()
    METHODS.update(before)


def text(seed: int, count: int) -> str:
    letters = list("etaoin shrdlu cmfwyp vbgkqj xz ")
    return "".join(np.random.default_rng(seed).choice(letters, count).tolist())


def sources(seed: int, count: int, domains: str = "ab") -> tuple[Source, ...]:
    each = count // len(domains)
    return tuple(
        Source(name, (Document(text=text(seed + number, each)),))
        for number, name in enumerate(domains)
    )


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Resources:
    path = tmp_path_factory.mktemp("contest") / "m.gguf"
    write_tiny(path, "qwen3moe", keys={"context_length": 1024})
    return Resources(model=open_model(path), options=OPTIONS, search_sources=sources(9, 12_000))


@contextmanager
def counted() -> Iterator[list[int]]:
    """Tokens that llama.cpp decodes meanwhile, by call."""
    seen: list[int] = []
    decode = LlamaContext.decode

    def counting(self: LlamaContext, parts: Any, *more: Any) -> Any:
        seen.append(sum(len(part.ids) for part in parts))
        return decode(self, parts, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaContext, "decode", counting)
        yield seen


def gathered(resources: Resources, tokens: int) -> tuple[Statistics, int]:
    """Statistics of so much text, and the tokens decoded for them."""
    assert resources.model is not None
    settings = Settings(ctx=256, generate=0)
    with counted() as seen:
        run = Run(resources.model, sources(1, tokens), settings, OPTIONS, no_progress)
        return run.run(), sum(seen)


def kl_of(resources: Resources, plan: ggprune.Plan) -> float:
    """On all of the search text, not through the meter."""
    assert resources.model is not None
    with Evaluator(
        resources.model.gguf.path, OPTIONS, resources.search_sources, n_ctx=128, scored_from=16
    ) as evaluator:
        return evaluator.measure_mask(dropped_by(plan)).total.kld_mean


@pytest.mark.llama
def test_at_most_a_fifth_of_what_calibration_decodes(resources: Resources) -> None:
    statistics, calibrated = gathered(resources, 40_000)
    with counted() as seen:
        plan = choose_plan(statistics, REQUEST, resources)
    # The tokens are all there is to count: base and plans, no trial runs.
    assert sum(seen) == plan.settings["search_tokens"]
    assert 0.1 * calibrated < sum(seen) <= 0.2 * calibrated
    assert choose_plan(statistics, REQUEST, resources) == plan


@pytest.mark.llama
def test_the_planted_best_wins(resources: Resources, methods: dict[str, Method]) -> None:
    """Five methods that keep the experts used least, a little mixed up, and one that does not."""
    statistics, _ = gathered(resources, 80_000)
    used = statistics.total.contribution_sum

    def method(name: str, scores: np.ndarray) -> Method:
        return Method(
            name=name,
            formula="",
            source="",
            needs="statistics",
            candidate=True,
            sums=lambda sums, seed: scores,
        )

    noise = np.random.default_rng(0).lognormal(0, 0.3, (5, *used.shape))
    bad = (DEFAULT, "bad1", "bad2", "bad3", "bad4")
    table = {name: method(name, -used * noise[n]) for n, name in enumerate(bad)}
    table["planted"] = method("planted", used)
    auto = methods["auto"]
    methods.clear()
    methods.update({"auto": auto, **table})
    plan = choose_plan(statistics, REQUEST, resources)
    assert plan.method == "planted"
    single = {n: choose_plan(statistics, replace(REQUEST, method=n), resources) for n in table}
    assert min(table, key=lambda name: kl_of(resources, single[name])) == "planted"
    assert plan.layers == single["planted"].layers
    assert next(iter(plan.settings["search_kl"])) == "planted"


@pytest.mark.parametrize("plans", [2, 3, 5, 8, 11])
@pytest.mark.parametrize("domains", [1, 2, 5, 9])
def test_rounds_stay_within_the_allowance(plans: int, domains: int) -> None:
    for allowed in range(0, 400, 7):
        sizes = contest.rounds(plans, allowed, domains, 100)
        alive, runs = plans, 0
        for size in sizes:
            runs += alive * size
            alive = min(alive, 1 + max(2, alive // 2))
        base = -(-sum(sizes) // domains) * domains
        assert runs + base <= allowed
        assert sum(sizes) <= 100
        assert not sizes or min(sizes) >= 5
    assert contest.rounds(plans, 400, domains, 100)
    assert not contest.rounds(1, 400, domains, 100)


@pytest.mark.llama
def test_too_little_text_leaves_the_default(
    resources: Resources, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ggprune")
    statistics, _ = gathered(resources, 2_000)
    plan = choose_plan(statistics, REQUEST, resources)
    unmeasured = choose_plan(statistics, REQUEST, replace(resources, search_sources=()))
    assert plan.layers == unmeasured.layers
    assert "too little text was calibrated on" in caplog.text
    # Nor is a text without a chunk the end of the job, unless measuring was asked for.
    statistics, _ = gathered(resources, 40_000)
    short = replace(resources, search_sources=sources(3, 200))
    assert choose_plan(statistics, REQUEST, short).method == unmeasured.method
    assert "methods are not compared: text 'a' has" in caplog.text
    with pytest.raises(ggprune.InputError, match="less than one chunk"):
        choose_plan(statistics, replace(REQUEST, method="auto"), short)


@pytest.mark.llama
def test_plans_that_are_alike_are_not_measured(
    resources: Resources, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ggprune")
    statistics, _ = gathered(resources, 40_000)
    sums = statistics.domains[0].sums
    for name in ("count", "gate_sum", "norm_sum", "norm_sq_sum", "contribution_sum"):
        # So that means over tokens have the same order as sums.
        getattr(sums, name)[:] = np.arange(1, 17) ** (1 if name == "count" else 3) * 1000
    alone = replace(statistics, domains=(replace(statistics.domains[0], shares=None),))
    with counted() as seen:
        plan = choose_plan(alone, replace(REQUEST, budget=Budget(keep=15)), resources)
    assert not seen
    assert plan.settings["chosen_by"] == "auto" and "search_kl" not in plan.settings
    assert "all choose alike" in caplog.text


def chats(length: int, count: int) -> tuple[Source, ...]:
    """Conversations whose answers are the last third of so many letters."""
    return (
        Source(
            "chat",
            tuple(
                Document(
                    messages=(
                        Message("user", text(2 * n, length * 2 // 3)),
                        Message("assistant", text(2 * n + 1, length // 3)),
                    )
                )
                for n in range(count)
            ),
        ),
    )


@pytest.mark.llama
def test_conversations_are_read_in_longer_chunks(resources: Resources) -> None:
    """An answer that begins after 256 tokens is there to be measured."""
    statistics, _ = gathered(resources, 60_000)
    plan = choose_plan(statistics, REQUEST, replace(resources, search_sources=chats(450, 40)))
    assert plan.settings["search_kl"]


@pytest.mark.llama
def test_short_conversations_count_as_long_as_they_are(resources: Resources) -> None:
    statistics, calibrated = gathered(resources, 60_000)
    short = replace(resources, search_sources=chats(90, 200))
    with counted() as seen:
        plan = choose_plan(statistics, REQUEST, short)
    assert plan.settings["search_tokens"] == sum(seen)
    assert 0.15 * calibrated < sum(seen) <= 0.2 * calibrated


@pytest.mark.llama
def test_prune_compares_by_default_and_says_so(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    (tmp_path / "words.txt").write_text("\n".join(text(7, 80) for _ in range(700)))
    pruned = ggprune.prune(
        model,
        tmp_path / "o-8e.gguf",
        keep=8,
        text={"words": tmp_path / "words.txt"},
        settings=Settings(ctx=256, generate=0),
        options=OPTIONS,
    )
    settings, names = pruned.plan.settings, {name for name, m in METHODS.items() if m.candidate}
    assert settings["chosen_by"] == "auto"
    assert pruned.plan.method in names and pruned.plan.method == next(iter(settings["search_kl"]))
    assert pruned.statistics is not None
    calibrated = pruned.statistics.domains[0].tokens
    assert settings["search_tokens"] <= 0.2 * calibrated
    # Of the text, a tenth is for the end, and a fifth of the rest for choosing.
    assert 0.7 * 57_000 < calibrated < 0.74 * 57_000
    assert pruned.metadata["settings"]["chosen_by"] == "auto"
    assert pruned.report_path is not None
    assert "chosen_by: auto" in pruned.report_path.read_text("utf-8")
    assert '`chosen_by` "auto"' in render(gather([pruned.path]))
    # `plan` measures where it is given what to measure on.
    stats, texts = pruned.statistics_path, {"words": tmp_path / "words.txt"}
    assert stats is not None
    asked = {"keep": 8, "model": model, "options": OPTIONS}
    planned = ggprune.choose(stats, search_text=texts, **asked)
    assert planned.settings["search_kl"] and planned.settings["chosen_by"] == "auto"
    assert "chosen_by" not in ggprune.choose(stats, **asked).settings
    # A method that is named is taken as it is.
    named = ggprune.prune(
        model,
        tmp_path / "n-8e.gguf",
        keep=8,
        method="reap",
        statistics=pruned.statistics_path,
        text={"words": tmp_path / "words.txt"},
        options=OPTIONS,
        verify=False,
    )
    assert named.plan.method == "reap" and "chosen_by" not in named.plan.settings
