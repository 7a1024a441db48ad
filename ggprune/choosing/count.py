"""How many experts stay, from a budget: a count, a ratio, a size, a share to retain.

Every rule looks at the counts the model allows (top-k, groups, ``multiple_of``) and takes the one
that keeps the promise; ``rounding`` turns the other way where a rule may be bent. Limits on
quality need measurements, see search.measuring.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

from ggprune.calibration.statistics import ExpertSums
from ggprune.choosing.ranking import Ranking
from ggprune.choosing.request import Budget
from ggprune.choosing.scores import choose_all, retained
from ggprune.errors import InputError
from ggprune.llama import memory
from ggprune.llama.library import has_backend
from ggprune.model import ExpertCounts, MoeModel
from ggprune.model.counts import around
from ggprune.plan import Plan
from ggprune.rewrite import result_size
from ggprune.util import human_size

#: Numbers of experts for which CUDA chooses the top-k in one kernel: llama.cpp's ggml-cuda
#: (topk-moe.cu) has it for powers of two up to 512, and for 288 and 576.
FUSED = (*(2**n for n in range(9)), 288, 512, 576)
#: Numbers of experts a token for which it has a kernel that sorts tokens by experts (mmid.cu).
SORTED = (2, 4, 6, 8, 10, 16, 32)
#: With this number llama-quantize takes other types for attention (llama-quant.cpp: Mixtral).
_QUANTIZE_SPECIAL = 8


def known_count(budget: Budget, counts: ExpertCounts, model: MoeModel | None) -> int | None:
    """Return the number of experts to keep, or None where it depends on the statistics.

    Args:
        budget: what is asked for.
        counts: of the model.
        model: for sizes.

    Raises:
        InputError: an impossible budget, or a size without a model.
    """
    rule = budget.rule
    if rule == "keep":
        return by_keep(budget, counts)
    if rule == "ratio":
        return by_ratio(budget, counts)
    if rule not in ("target_size", "fit_vram"):
        return None
    limit = getattr(budget, rule)
    promise = f"{rule}={human_size(limit)}"
    if model is None:
        raise InputError(f"{promise}: needs the model's file", remedy="Give it: model=MODEL")
    size = _memory_of(budget, model) if rule == "fit_vram" else lambda n: result_size(model, n)
    return most(budget, counts, size, limit, promise)


def _memory_of(budget: Budget, model: MoeModel) -> Callable[[int], int]:
    use = memory.Use(context=budget.context, kv_type=budget.kv_type, parallel=budget.parallel)
    # Fewer experts make the compute buffers no larger, so the source's are an upper bound.
    plan = memory.planned(model, use)
    return lambda keep: memory.weight_bytes(model, keep) + plan.cache + plan.compute


def count_retaining(budget: Budget, ranking: Ranking, sums: ExpertSums) -> int:
    """Find the smallest count with which every layer keeps the share ``budget.retain``.

    Raises:
        InputError: no count does.
    """
    assert budget.retain is not None
    wanted, counts = budget.retain, ranking.protection.counts

    def fits(keep: int) -> bool:
        # The best possible choice is a bound for all, and quick.
        best = choose_all(sums.contribution_sum, keep, counts.groups)
        if min(retained(sums, row, kept) for row, kept in enumerate(best)) < wanted:
            return False
        chosen = ranking.kept(keep)
        return min(retained(sums, row, kept) for row, kept in enumerate(chosen)) >= wanted

    return fewest(budget, counts, fits)


def by_keep(budget: Budget, counts: ExpertCounts) -> int:
    """Return ``budget.keep``, rounded if that is asked for.

    Raises:
        InputError: it is not possible; names the nearest.
    """
    assert budget.keep is not None
    allowed = counts.possible(budget.multiple_of)
    if budget.rounding and counts.least <= budget.keep <= counts.experts:
        return counts.rounded(budget.keep, budget.rounding, budget.multiple_of)
    counts.check(budget.keep)
    if budget.keep not in allowed:
        raise InputError(
            f"keep={budget.keep}: is not a multiple of {budget.multiple_of}",
            remedy=f"Nearest: {around(budget.keep, allowed)}; rounding=down takes the lower.",
        )
    return budget.keep


def by_ratio(budget: Budget, counts: ExpertCounts) -> int:
    """Return the count with which at most the ratio goes (at least, if rounded down)."""
    assert budget.ratio is not None
    # 1 - 0.9 is a little more than 0.1: without rounding, an expert too many would stay.
    wanted = round(counts.experts * (1 - budget.ratio), 9)
    return counts.rounded(wanted, budget.rounding or "up", budget.multiple_of)


def fewest(budget: Budget, counts: ExpertCounts, fits: Callable[[int], bool]) -> int:
    """Find the smallest count that keeps a promise about quality: one fewer would break it.

    Raises:
        InputError: not even all experts keep it.
    """
    for keep in counts.possible(budget.multiple_of):
        if fits(keep):
            return keep
    raise InputError(f"{budget.asked}: no possible count reaches it", remedy="Ask for less.")


def most(
    budget: Budget, counts: ExpertCounts, size: Callable[[int], int], limit: int, promise: str
) -> int:
    """Find the largest count whose size is within a limit: one more would exceed it.

    Rounded up, the size exceeds the limit by at most one step. ``promise`` is the field and its
    value, for messages.

    Raises:
        InputError: the fewest possible experts already exceed it.
    """
    allowed = counts.possible(budget.multiple_of)
    at = bisect.bisect_right(allowed, limit, key=size)
    if not at:
        raise InputError(
            f"{promise}: with the fewest possible experts ({allowed[0]}) it takes "
            f"{human_size(size(allowed[0]))}",
            remedy="A smaller quantization of the model helps more than pruning here.",
        )
    return allowed[min(at, len(allowed) - 1) if budget.rounding == "up" else at - 1]


def notes_on(plan: Plan, counts: ExpertCounts) -> list[str]:
    """Note what a plan's counts cost that its size does not show.

    CUDA's kernels are only spoken of where llama.cpp was built with them. Routers with groups
    have no fused top-k in any count.
    """
    notes, keep, used = [], plan.keep, plan.experts_used or counts.used
    cuda = has_backend("cuda", "hip", "musa")
    if cuda and counts.groups == 1 and keep not in FUSED and counts.experts in FUSED:
        fused = around(keep, [n for n in FUSED if n in counts.possible()])
        notes.append(
            f"with {keep} experts CUDA's fused top-k is not used (a few small kernels more a "
            f"layer; results are the same); {fused} would keep it"
        )
    if cuda and used not in SORTED and counts.used in SORTED:
        notes.append(
            f"with {used} experts a token CUDA reads prompts by a general kernel; there is one "
            f"for {around(used, SORTED)}"
        )
    if keep == _QUANTIZE_SPECIAL != counts.experts:
        notes.append("llama-quantize treats models with exactly 8 experts as Mixtral")
    return notes
