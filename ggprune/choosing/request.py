"""What is asked of choosing: a budget, a method, protection; and what choosing may use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ggprune.errors import InputError
from ggprune.fields import check_fields
from ggprune.types import Progress, no_progress, option

if TYPE_CHECKING:
    from ggprune.llama.options import RunOptions
    from ggprune.model import MoeModel
    from ggprune.text.documents import Source

#: Methods by default (docs/evidence.md): where plans can be measured; otherwise, that which loses
#: least where it loses; the same of sums.
MEASURED = "auto"
DEFAULT = "consensus"
DEFAULT_OF_SUMS = "contribution"
#: The fields of Budget that say how many experts stay.
RULES = ("keep", "ratio", "retain", "target_size", "fit_vram", "max_kld", "max_ppl_ratio")
#: Rules that are checked by measuring plans.
QUALITY_RULES = ("max_kld", "max_ppl_ratio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the result may cost; exactly one of RULES is given.

    Attributes:
        context, kv_type, parallel: for ``fit_vram``, see memory.Use.
        rounding: the nearest possible count that way, instead of the rule's own.
        target_size, fit_vram: bytes, or text such as ``13G``.
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
    context: int = option(4096, "For `fit_vram`: tokens of one sequence, 32k.", metavar="TOKENS")
    kv_type: str = option(
        "f16", "For `fit_vram`: type of the KV cache.", choices=("f16", "q8_0", "q4_0")
    )
    parallel: int = option(
        1, "For `fit_vram`: sequences at the same time, each with that context.", minimum=1
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
    rounding: Literal["down", "up"] | None = option(
        None,
        "Take the nearest possible count below or above instead of complaining.",
        choices=("down", "up"),
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def rule(self) -> str:
        """Name the rule that is given.

        Raises:
            InputError: none or several are.
        """
        given = [name for name in RULES if getattr(self, name) is not None]
        if not given:
            raise InputError(
                "how many experts are to stay?",
                remedy="Say it, for instance keep=109, ratio=0.2 or target_size=14G.",
            )
        if len(given) > 1:
            values = ", ".join(f"{name}={getattr(self, name)}" for name in given)
            raise InputError(f"{values}: give one of them", remedy="They cannot be combined.")
        return given[0]

    @property
    def asked(self) -> str:
        """The rule with its value, as messages name it: ``keep=9``."""
        return f"{self.rule}={getattr(self, self.rule)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Which experts should stay, and how many.

    Attributes:
        budget: how many.
        method: name in METHODS; None for the default (see choose.default_method).
        search_minutes: limit for whatever measures plans.
        search_plans: number of plans that ``search`` draws, whatever the time: repeats exactly.
        experts_used: experts per token in the result; ``auto`` measures which number is best on
            the search text, and takes it if a short probe confirms that answers are no worse; None
            leaves that to the method.
    """

    budget: Budget
    method: str | None = option(
        None,
        "How experts are chosen.",
        default_help=f"{MEASURED}; without text to measure on {DEFAULT}, or {DEFAULT_OF_SUMS} with "
        "`blend`, `rounds` or sums alone",
    )
    seed: int = option(0, "For what is drawn at random.")
    blend: str | None = option(
        None,
        "Weigh domains: alike, for the one served worst, or by these weights.",
        metavar="uniform|maxmin|NAME=W,…",
    )
    protect_domains: tuple[str, ...] = option(
        (),
        "A domain that keeps at least this coverage; repeatable.",
        metavar="NAME[=0.95]",
    )
    always_keep: tuple[str, ...] = option(
        (),
        "Experts that stay in any case: 3:17,44; repeatable.",
        metavar="LAYER:EXPERT,…",
    )
    super_experts: bool = option(
        True, "Do not protect experts with far larger outputs than all others."
    )
    rounds: int = option(
        1, "Drop in so many parts, and gather statistics again between them.", minimum=1
    )
    experts_used: int | Literal["auto"] | None = option(
        None,
        "Experts each token uses in the result; auto: as many as are best on the search text, if "
        "answers are then no worse, as method search does.",
        metavar="NUMBER|auto",
    )
    router_bias: Literal["keep", "zero", "auto"] = option(
        "keep",
        "gpt-oss: the bias by which its router balanced all experts; auto: what is better on the "
        "search text.",
        choices=("keep", "zero", "auto"),
    )
    search_minutes: float = option(
        10.0, "Time for method auto or search, `max_kld` and `max_ppl_ratio`.", above=0
    )
    search_plans: int | None = option(
        None, "Plans that search draws, whatever the time: repeats exactly.", minimum=1
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def fixed_used(self) -> int | None:
        """Experts a token is to use, if a number is asked for."""
        return self.experts_used if isinstance(self.experts_used, int) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What choosing may use besides the statistics.

    Attributes:
        model: where a rule or a method needs it.
        options: how to run it.
        sources: text the statistics were gathered on, for methods that run the model over it
            again; empty for the built-in text.
        search_sources: text to measure plans on; empty for the built-in text.
        cache: folder for the base model's probabilities on the search text; None removes them.
        journal: file that keeps measurements, so that an interrupted search continues.
        progress: makes progress bars.
    """

    model: MoeModel | None = None
    options: RunOptions | None = None
    sources: tuple[Source, ...] = ()
    search_sources: tuple[Source, ...] = ()
    cache: Path | None = None
    journal: Path | None = None
    progress: Progress = no_progress

    def model_for(self, what: str) -> MoeModel:
        """Return the model, for what cannot do without its file.

        Raises:
            InputError: there is none; the message begins with ``what``.
        """
        if self.model is None:
            raise InputError(f"{what}: needs the model's file", remedy="Give it: model=MODEL.")
        return self.model

    def runnable_for(self, what: str) -> tuple[MoeModel, RunOptions]:
        """Return the model and how to run it.

        Raises:
            InputError: one of them is missing; the message begins with ``what``.
        """
        if self.model is None or self.options is None:
            raise InputError(f"{what}: runs the model", remedy="Give it: model=MODEL.")
        return self.model, self.options
