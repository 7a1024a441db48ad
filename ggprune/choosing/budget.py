"""How many experts stay, from what the user says of it: a count, a share, a size.

Every rule looks at the counts the model allows (top-k, groups, ``--multiple-of``) and takes the
one that keeps the promise; ``rounding`` turns the other way where a rule may be bent.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from ggprune.errors import InputError
from ggprune.model import ExpertCounts
from ggprune.types import option
from ggprune.util import human_size

#: Numbers of experts for which CUDA chooses the top-k in one kernel: llama.cpp's ggml-cuda
#: (topk-moe.cu) has it for powers of two up to 512, and for 288 and 576.
FUSED = (*(2**n for n in range(10)), 288, 576)
#: With this number llama-quantize takes other types for attention (llama-quant.cpp: Mixtral).
_QUANTIZE_SPECIAL = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the result may cost; exactly one of RULES is given.

    Attributes:
        keep: experts a layer.
        ratio: share of the experts to remove, 0 to 1; at most that share goes.
        retain: share of Σ g‖f‖ that every layer keeps at least.
        target_size: bytes of the file, at most.
        fit_vram: bytes of memory for weights, KV cache and compute buffers, at most.
        context, kv_type, parallel: for ``fit_vram``, see memory.Use.
        max_kld: mean KL divergence from the base model, at most.
        max_ppl_ratio: perplexity over the base model's, at most.
        multiple_of: the count is a multiple of it.
        rounding: ``down`` or ``up`` to the nearest possible count instead of the rule's own way.
    """

    keep: int | None = option(None, "Experts that stay in each layer.", minimum=1)
    ratio: float | None = option(
        None, "Or the share to remove: 0.2 drops at most a fifth.", minimum=0, below=1
    )
    retain: float | None = option(
        None,
        "Or the share of Σ g‖f‖ every layer keeps: 0.99; takes the fewest experts.",
        above=0,
        maximum=1,
    )
    target_size: int | None = option(None, "Or the largest file: 14G.", metavar="SIZE")
    fit_vram: int | None = option(
        None, "Or the memory for weights, KV cache and compute buffers: 24G.", metavar="SIZE"
    )
    context: int = option(4096, "For --fit-vram: tokens of one sequence, 32k.", metavar="TOKENS")
    kv_type: str = option(
        "f16", "For --fit-vram: type of the KV cache.", choices=("f16", "q8_0", "q4_0")
    )
    parallel: int = option(
        1, "For --fit-vram: sequences at the same time, each with that context.", minimum=1
    )
    max_kld: float | None = option(
        None,
        "Or the largest mean KL divergence from the model on the search text: 0.05.",
        above=0,
    )
    max_ppl_ratio: float | None = option(
        None,
        "Or the largest perplexity over the model's on the search text: 1.03.",
        above=1,
    )
    multiple_of: int = option(1, "The count is to be a multiple of this.", minimum=1)
    rounding: str | None = option(
        None,
        "Take the nearest possible count below or above instead of complaining.",
        choices=("down", "up"),
    )

    @property
    def rule(self) -> str:
        """Name of the one that is given.

        Raises:
            InputError: none or several are.
        """
        given = [name for name in RULES if getattr(self, name) is not None]
        if len(given) != 1:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given or RULES)
            raise InputError(
                f"{options}: say one of them" if given else "how many experts are to stay?",
                remedy=f"Give one of {options}." if not given else "They cannot be combined.",
            )
        return given[0]


RULES = ("keep", "ratio", "retain", "target_size", "fit_vram", "max_kld", "max_ppl_ratio")


def possible_counts(counts: ExpertCounts, multiple_of: int = 1) -> tuple[int, ...]:
    """Counts that can be kept, ascending.

    Raises:
        InputError: none is a multiple of ``multiple_of``.
    """
    found = tuple(n for n in counts.possible() if n % multiple_of == 0)
    if not found:
        raise InputError(
            f"--multiple-of {multiple_of}: no possible count of experts is one",
            remedy=f"Possible: {counts.least} to {counts.experts} in steps of {counts.groups}.",
        )
    return found


def near(wanted: float, counts: tuple[int, ...], way: str) -> int:
    """The largest count not above (``down``) or the smallest not below (``up``) a number.

    Where there is none on that side, the outermost count.
    """
    if way == "down":
        return max((n for n in counts if n <= wanted), default=counts[0])
    return min((n for n in counts if n >= wanted), default=counts[-1])


def by_keep(budget: Budget, counts: ExpertCounts) -> int:
    """The count the user names.

    Raises:
        InputError: it is not possible and no rounding was asked for; names the nearest.
    """
    assert budget.keep is not None
    allowed = possible_counts(counts, budget.multiple_of)
    if budget.rounding and counts.least <= budget.keep <= counts.experts:
        return near(budget.keep, allowed, budget.rounding)
    counts.check(budget.keep)
    if budget.keep not in allowed:
        nearest = sorted({near(budget.keep, allowed, way) for way in ("down", "up")})
        raise InputError(
            f"--keep {budget.keep}: is not a multiple of {budget.multiple_of}",
            remedy=f"Nearest: {' or '.join(map(str, nearest))}; --round chooses for you.",
        )
    return budget.keep


def by_ratio(budget: Budget, counts: ExpertCounts) -> int:
    """The count with which at most the share goes (at least, if rounded down)."""
    assert budget.ratio is not None
    # 1 - 0.9 is a little more than 0.1: without rounding, an expert too many would stay.
    wanted = round(counts.experts * (1 - budget.ratio), 9)
    allowed = possible_counts(counts, budget.multiple_of)
    return near(wanted, allowed, budget.rounding or "up")


def fewest(budget: Budget, counts: ExpertCounts, fits: Callable[[int], bool], promise: str) -> int:
    """The smallest count that keeps a promise about quality: one fewer would break it.

    Args:
        budget: for ``multiple_of``.
        counts: of the model.
        fits: whether a count keeps the promise; asked in ascending order.
        promise: the option, for messages.

    Raises:
        InputError: not even all experts do.
    """
    for keep in possible_counts(counts, budget.multiple_of):
        if fits(keep):
            return keep
    raise InputError(f"{promise}: no possible count reaches it", remedy="Ask for less.")


def most(
    budget: Budget, counts: ExpertCounts, size: Callable[[int], int], limit: int, promise: str
) -> int:
    """The largest count whose size is within a limit: one more would exceed it.

    Args:
        budget: for ``multiple_of`` and ``rounding``; rounded up, the size is above the limit by
            at most one step.
        counts: of the model.
        size: bytes with a count, growing with it.
        limit: bytes.
        promise: the option, for messages.

    Raises:
        InputError: the fewest possible experts already exceed it.
    """
    allowed = possible_counts(counts, budget.multiple_of)
    at = bisect.bisect_right(allowed, limit, key=size)
    if not at:
        raise InputError(
            f"{promise} {human_size(limit)}: with the fewest possible experts ({allowed[0]}) it "
            f"takes {human_size(size(allowed[0]))}",
            remedy="A smaller quantization of the model helps more than pruning here.",
        )
    return allowed[min(at, len(allowed) - 1) if budget.rounding == "up" else at - 1]


def notes_on(keep: int, counts: ExpertCounts) -> list[str]:
    """What a count costs that its size does not show."""
    notes = []
    if keep not in FUSED and counts.experts in FUSED:
        around = sorted({near(keep, _within(counts), way) for way in ("down", "up")})
        notes.append(
            f"with {keep} experts CUDA's fused top-k is not used (a few small kernels more a "
            f"layer; results are the same, other backends do not care); "
            f"{' or '.join(map(str, around))} would keep it"
        )
    if keep == _QUANTIZE_SPECIAL != counts.experts:
        notes.append("llama-quantize treats models with exactly 8 experts as Mixtral")
    return notes


def _within(counts: ExpertCounts) -> tuple[int, ...]:
    possible = counts.possible()
    return tuple(n for n in sorted(FUSED) if n in possible) or (counts.experts,)
