"""From statistics and what the user asks for to a plan: budget, method, blend, protection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggprune import budget as budgets
from ggprune.budget import Budget
from ggprune.errors import InputError
from ggprune.model import ExpertCounts, MoeModel
from ggprune.plan import Plan
from ggprune.ranking import Ranking
from ggprune.statistics import Statistics
from ggprune.texts import Source

if TYPE_CHECKING:
    from ggprune.calibrate import ProgressFactory
    from ggprune.llama.runtime import RunOptions


#: Methods that measure plans on the model.
MEASURED = ("auto", "search")


@contextmanager
def no_progress(
    total: int, what: str, unit: str, *, initial: int = 0
) -> Iterator[Callable[[int], object]]:
    """Progress that nobody watches."""
    yield lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user wants.

    Attributes:
        budget: how many experts stay.
        method: how they are ranked; see scoring.METHODS.
        seed: for what is drawn.
        blend: ``uniform``, ``maxmin`` or ``NAME=W,…``; empty adds all text up as it comes.
        protect_domains: ``NAME`` or ``NAME=0.95``: coverage that a domain keeps at least.
        always_keep: ``LAYER:EXPERT,EXPERT``.
        super_experts: keep experts with far larger outputs than all others.
        search_minutes: what ``auto``, ``search`` and limits on quality may take.
        search_plans: plans that ``search`` draws, whatever the time; for runs that must repeat.
    """

    budget: Budget
    method: str = "reap"
    seed: int = 0
    blend: str = ""
    protect_domains: tuple[str, ...] = ()
    always_keep: tuple[str, ...] = ()
    super_experts: bool = True
    search_minutes: float = 10.0
    search_plans: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What choosing may use beside the statistics.

    Attributes:
        model: where a rule or a method needs it.
        options: how to run it.
        search_sources: text to measure plans on; empty for the built-in one.
        journal: file that keeps what a search measured, so that it continues.
        progress: makes progress bars.
        say: takes notes for the user.
    """

    model: MoeModel | None = None
    options: RunOptions | None = None
    search_sources: tuple[Source, ...] = ()
    journal: Path | None = None
    progress: ProgressFactory = no_progress
    say: Callable[[str], object] = field(default=lambda _: None)


def choose_plan(
    statistics: Statistics, request: Request, resources: Resources | None = None
) -> Plan:
    """Choose which experts stay.

    Args:
        statistics: what calibration observed.
        request: what the user wants.
        resources: what may be used.

    Raises:
        InputError: an impossible budget, an unknown method or domain, or a rule that needs the
            model and has none.
    """
    have = resources or Resources()
    if request.method in MEASURED or request.budget.rule in ("max_kld", "max_ppl_ratio"):
        from ggprune.measured import choose_measured

        return _noted(choose_measured(statistics, request, have), have)
    ranking = Ranking.of(statistics, request, have.say)
    keep = known_count(request.budget, statistics.identity.counts, have.model)
    if keep is None:
        keep = _count_by_quality(request.budget, ranking)
    return _noted(ranking.plan(keep, settings_of(request)), have)


def _noted(plan: Plan, have: Resources) -> Plan:
    assert plan.identity is not None
    for note in budgets.notes_on(plan.keep, plan.identity.counts):
        have.say(note)
    return plan


def known_count(
    budget: Budget, counts: ExpertCounts, model: MoeModel | None
) -> int | None:
    """The number of experts to keep, where no statistics are needed to know it; else None.

    Args:
        budget: what the user wants.
        counts: of the model.
        model: for sizes.

    Raises:
        InputError: an impossible budget, or a size without a model.
    """
    rule = budget.rule
    if rule == "keep":
        return budgets.by_keep(budget, counts)
    if rule == "ratio":
        return budgets.by_ratio(budget, counts)
    if rule in ("target_size", "fit_vram"):
        if model is None:
            option = f"--{rule.replace('_', '-')}"
            raise InputError(f"{option}: needs the model's file", remedy="Give it: --model MODEL")
        return _count_by_size(budget, model)
    return None


def _count_by_size(budget: Budget, model: MoeModel) -> int:
    if budget.fit_vram is not None:
        return _count_by_memory(budget, model, budget.fit_vram)
    assert budget.target_size is not None
    return budgets.most(
        budget,
        model.counts,
        lambda keep: budgets.file_size(model, keep),
        budget.target_size,
        "--target-size",
    )


def _count_by_memory(budget: Budget, model: MoeModel, limit: int) -> int:
    from ggprune import memory

    use = memory.Use(context=budget.context, kv_type=budget.kv_type, parallel=budget.parallel)
    # Fewer experts make the compute buffers no larger, so the source's are an upper bound.
    plan = memory.planned(model, use)
    return budgets.most(
        budget,
        model.counts,
        lambda keep: memory.weight_bytes(model, keep) + plan.cache + plan.compute,
        limit,
        "--fit-vram",
    )


def _count_by_quality(budget: Budget, ranking: Ranking) -> int:
    wanted = budget.retain
    assert wanted is not None

    def fits(keep: int) -> bool:
        if ranking.best_retained(keep) < wanted:
            return False
        worst = ranking.plan(keep).worst_retained
        return worst is None or worst[1] >= wanted

    counts = ranking.statistics.identity.counts
    return budgets.fewest(budget, counts, fits, f"--retain {wanted}")


def settings_of(request: Request) -> Mapping[str, Any]:
    """What the plan's file says of how it was made."""
    budget = request.budget
    found: dict[str, Any] = {budget.rule: getattr(budget, budget.rule)}
    if budget.multiple_of > 1:
        found["multiple_of"] = budget.multiple_of
    for name in ("blend", "protect_domains", "always_keep"):
        if value := getattr(request, name):
            found[name] = value
    return found
