"""Choosing by masked evaluation, on a tiny model."""

from __future__ import annotations

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
from ggprune.choosing.request import Budget, Request, Resources
from ggprune.choosing.search import measuring, search
from ggprune.choosing.search.meter import CHUNK, MaskedMeter
from ggprune.errors import InputError
from ggprune.evaluation.candidate import Candidate
from ggprune.evaluation.evaluator import Evaluator
from ggprune.evaluation.masking import dropped_by
from ggprune.evaluation.probe_gate import Answer, gate
from ggprune.llama.options import RunOptions
from ggprune.model import Model, MoeModel, open_model
from ggprune.plan import Plan
from ggprune.text.documents import Document, Source
from ggprune.types import no_progress
from tests.support.tiny import write_tiny

pytestmark = pytest.mark.llama

OPTIONS = RunOptions(threads=1)


def words(seed: int, count: int = 700) -> Source:
    random = np.random.default_rng(seed)
    letters = "etaoin shrdlu cmfwyp vbgkqj xz "
    text = "".join(random.choice(list(letters), count * 4).tolist())
    return Source("abc"[seed % 3], (Document(text=text),))


SEARCH = tuple(words(seed) for seed in (3, 4))


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Resources:
    folder = tmp_path_factory.mktemp("measured")
    path = write_tiny(folder / "m.gguf", "qwen3moe", keys={"context_length": 1024})
    return Resources(model=open_model(path), options=OPTIONS, search_sources=SEARCH, cache=folder)


@pytest.fixture(scope="module")
def statistics(resources: Resources) -> Statistics:
    assert resources.model is not None
    sources = tuple(words(seed) for seed in (0, 1))
    settings = Settings(ctx=512, generate=0)
    return Run(resources.model, sources, settings, OPTIONS, no_progress).run()


def kl_of(resources: Resources, plan: Plan) -> float:
    """On the search text, not through the meter."""
    assert resources.model is not None
    with Evaluator(
        resources.model.gguf.path, OPTIONS, SEARCH, n_ctx=CHUNK, scored_from=64
    ) as evaluator:
        return evaluator.measure_mask(
            dropped_by(plan), experts_used=plan.experts_used
        ).total.kld_mean


def asked(method: str, **budget: float) -> Request:
    return Request(
        budget=Budget(**budget),  # type: ignore[arg-type]
        method=method,
        super_experts=False,
        search_plans=24,
    )


def test_search_repeats_exactly_and_goes_on_from_its_journal(
    resources: Resources, statistics: Statistics, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    kept = replace(resources, journal=journal)
    first = choose_plan(statistics, asked("search", keep=8), kept)
    lines = journal.read_text("utf-8").splitlines()
    # As if it had been killed while it wrote the last line that is left.
    journal.write_text("\n".join(lines[: len(lines) // 2]) + "\n" + lines[-1][:20], "utf-8")
    again = choose_plan(statistics, asked("search", keep=8), kept)
    assert again.layers == first.layers
    assert again.settings["search_kl"] == first.settings["search_kl"]
    assert again.settings["search_tokens"] == first.settings["search_tokens"]
    # What was known was not measured again, and the damaged line is gone.
    assert sorted(journal.read_text("utf-8").splitlines()) == sorted(lines)
    other = choose_plan(statistics, replace(asked("search", keep=8), seed=5), resources)
    assert other.settings["search_plans"] == 24


def test_max_kld_is_the_fewest_within_it(resources: Resources, statistics: Statistics) -> None:
    limit = 0.01
    plan = choose_plan(statistics, asked("contribution", max_kld=limit), resources)
    assert kl_of(resources, plan) <= limit
    fewer = choose_plan(statistics, asked("contribution", keep=plan.keep - 1), resources)
    assert kl_of(resources, fewer) > limit


def test_max_ppl_ratio(resources: Resources, statistics: Statistics) -> None:
    plan = choose_plan(statistics, asked("contribution", max_ppl_ratio=1.02), resources)
    counts = plan.settings["search_counts"]
    assert counts[str(plan.keep)] <= 1.02


def test_the_number_of_experts_used_is_measured(
    resources: Resources, statistics: Statistics
) -> None:
    whole = statistics.identity.experts_used
    request = replace(asked("contribution", keep=8), experts_used="auto")
    plan = choose_plan(statistics, request, resources)
    kl = {int(n): value for n, value in plan.settings["experts_used_kl"].items()}
    assert whole in kl and len(kl) > 1
    if plan.experts_used:
        assert kl[plan.experts_used] == min(kl.values()) < kl[whole]
    same = choose_plan(statistics, asked("contribution", keep=8), resources)
    assert plan.layers == same.layers and same.experts_used is None
    fewer = choose_plan(statistics, replace(request, experts_used=whole - 1), resources)
    assert fewer.layers == same.layers and fewer.experts_used == whole - 1
    # Validation is a third of the search text.
    assert kl_of(resources, fewer) == pytest.approx(kl[whole - 1], rel=0.3)


def test_more_experts_than_are_kept(resources: Resources, statistics: Statistics) -> None:
    request = replace(asked("contribution", keep=8), experts_used=9)
    with pytest.raises(InputError, match="experts_used=9: the model uses 4, and 8 are kept"):
        choose_plan(statistics, request, resources)


def test_more_experts_than_the_model_uses(
    resources: Resources, statistics: Statistics, tmp_path: Path
) -> None:
    """As with fewer, the written file computes what was measured by masking."""
    assert resources.model is not None
    plan = choose_plan(statistics, replace(asked("reap", keep=8), experts_used=6), resources)
    path = resources.model.gguf.path
    result = ggprune.apply(path, plan, tmp_path / "o.gguf")
    with Evaluator(path, OPTIONS, SEARCH, n_ctx=256, max_tokens=512) as evaluator:
        masked, file = evaluator.measure_plan(plan), evaluator.measure_file(result.path)
        own = evaluator.measure_plan(replace(plan, experts_used=None))
    assert open_model(result.path).experts_used == 6
    assert file.total.kld_mean == pytest.approx(masked.total.kld_mean, rel=1e-3)
    assert masked.total.kld_mean != pytest.approx(own.total.kld_mean, rel=0.01)


def answer(tokens: int, *, loop: bool = False) -> Answer:
    return Answer("", tokens, tokens, 1.0, loop, False, True, "<end>")


@pytest.mark.parametrize(
    ("answers", "used", "said"),
    [
        ([answer(20)] * 90, 6, "6, which answers confirm: 90 answers, pass: loops 0% -> 0%"),
        ([answer(23)] * 90, None, "4: answers do not confirm 6: 90 answers, fail"),
        ([answer(20, loop=True)] * 90, None, "4: answers do not confirm 6: 90 answers, fail"),
        ([answer(20)] * 60, None, "4: answers do not confirm 6: 60 answers, undecided"),
        ([], None, "4: too slow to try answers with 6"),
    ],
)
def test_another_number_of_experts_used_is_confirmed_by_answers(
    answers: list[Answer],
    used: int | None,
    said: str,
    resources: Resources,
    statistics: Statistics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "can_chat", lambda _: True)
    monkeypatch.setattr(search, "best_used", lambda *_: (6, {4: 0.2, 6: 0.1}))

    def short_probe(model: Model, plan: Candidate, *_: object, **more: Any) -> dict[str, Any]:
        assert plan.plan is not None and plan.plan.experts_used == 6
        assert replace(plan.plan, experts_used=None) == more["base"], "all else is the same"
        found = gate([answer(20)] * len(answers), answers)
        mode = {"base": {"probes": len(answers)}, "gate": found}
        return {"modes": {"sampled": mode}} if answers else {}

    monkeypatch.setattr(measuring, "short_probe", short_probe)
    for request in (
        replace(asked("contribution", keep=8), experts_used="auto"),
        replace(asked("search", keep=8), search_plans=3),
    ):
        plan = choose_plan(statistics, request, resources)
        assert plan.experts_used == used
        assert plan.settings["experts_used_reason"].startswith(said)


def test_a_model_that_cannot_chat_keeps_its_number(
    resources: Resources, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "best_used", lambda *_: (3, {4: 0.2, 3: 0.1}))
    plan = choose_plan(statistics, replace(asked("search", keep=8), search_plans=3), resources)
    assert plan.experts_used is None
    assert plan.settings["experts_used_reason"].startswith("4: there is no chat template")
    request = replace(asked("contribution", keep=8), experts_used="auto")
    plan = choose_plan(statistics, request, resources)
    assert plan.experts_used == 3
    assert plan.settings["experts_used_reason"].startswith("3, by divergence alone")


def test_a_number_that_cannot_be_changed_stays(
    resources: Resources, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "can_chat", lambda _: True)

    def refused(*_: object) -> None:
        raise InputError("it has a number for every layer")

    monkeypatch.setattr(MoeModel, "check_used", refused)
    plan = choose_plan(statistics, replace(asked("search", keep=8), search_plans=3), resources)
    assert plan.settings["experts_used_reason"] == "4: it has a number for every layer"


def test_a_limit_is_kept_with_fewer_experts_used(
    resources: Resources, statistics: Statistics
) -> None:
    whole = statistics.identity.experts_used
    request = replace(asked("contribution", max_kld=0.06), experts_used=whole - 1)
    plan = choose_plan(statistics, request, resources)
    assert plan.experts_used == whole - 1
    assert kl_of(resources, plan) <= 0.06


def test_a_limit_out_of_reach(resources: Resources, statistics: Statistics) -> None:
    with pytest.raises(InputError, match="exceeds"):
        choose_plan(statistics, asked("contribution", max_kld=1e-9), resources)


def test_measuring_needs_the_model(statistics: Statistics) -> None:
    with pytest.raises(InputError, match="runs the model"):
        choose_plan(statistics, asked("auto", keep=8))


def test_parts_of_the_text_are_disjoint_and_hold_all_domains(resources: Resources) -> None:
    assert resources.model is not None
    with MaskedMeter(resources.model.gguf.path, OPTIONS, [0, 1], SEARCH) as meter:
        fitting, validation = meter.parts()
        assert not set(fitting) & set(validation)
        assert sorted(fitting + validation) == list(range(len(meter.chunks)))
        for part in (fitting, validation):
            assert {meter.chunks[n].domain for n in part} == {"a", "b"}


def test_search_text_of_one_chunk_is_too_short_for_a_search(
    resources: Resources, statistics: Statistics
) -> None:
    short = replace(resources, search_sources=(words(3, 150),))
    with pytest.raises(InputError, match="method=search: the search text has no domain of two"):
        choose_plan(statistics, asked("search", keep=8), short)


def test_a_plan_that_search_leaves_as_it_is_tells_how_domains_were_weighed(
    resources: Resources, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(
        meter: object, scores: dict[str, Any], rules: search.Rules, *_: Any, **more: Any
    ) -> Any:
        name = "contribution, maxmin"
        return search.Found(name, scores[name], rules.choose(scores[name]), name)

    monkeypatch.setattr(search, "search", kept)
    plan = choose_plan(statistics, replace(asked("search", keep=8), search_plans=3), resources)
    weighed = choose_plan(statistics, replace(asked("contribution", keep=8), blend="maxmin"))
    assert (plan.method, plan.settings["blend"]) == ("contribution", "maxmin")
    assert plan.settings["weights"] == weighed.settings["weights"]
    assert plan.layers == weighed.layers
