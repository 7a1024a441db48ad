"""Options that decide which experts stay, shared by ``plan`` and ``prune``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ggprune.cli.common import NAMED_PATH, SIZE, Command

if TYPE_CHECKING:
    from ggprune.choosing.choose import Request

_TOKENS = re.compile(r"(\d+)\s*(k?)", re.IGNORECASE)

METHOD_HELP = (
    "How experts are chosen: reap, contribution, frequency, gate, ean, man, msan, cover, easy-ep, "
    "shape, weights or random by score; auto takes the best on the search text; search looks "
    "further."
)


class Tokens(click.ParamType):  # type: ignore[type-arg]
    """A number of tokens: 4096 or 32k (of 1024)."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        if isinstance(value, int):
            return value
        match = _TOKENS.fullmatch(str(value).strip())
        if match is None or not int(match[1]):
            self.fail(f"{value!r} is not a number of tokens; write 4096 or 32k", param, ctx)
        return int(match[1]) * (1024 if match[2] else 1)


class ExpertsUsed(click.ParamType):  # type: ignore[type-arg]
    """A number of experts, or auto."""

    name = "number|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        if isinstance(value, int) or value == "auto":
            return value
        if not str(value).isascii() or not str(value).isdigit() or not int(value):
            self.fail(f"{value!r} is not a number of experts; write 6 or auto", param, ctx)
        return int(value)


TOKENS = Tokens()
EXPERTS_USED = ExpertsUsed()


def budget_options(command: Command) -> Command:
    """How many experts stay; see request_from."""
    for option in reversed(
        (
            click.option("--keep", type=click.IntRange(1), help="Experts that stay in each layer."),
            click.option(
                "--ratio",
                type=click.FloatRange(0, 1, max_open=True),
                help="Or the share to remove: 0.2 drops at most a fifth.",
            ),
            click.option(
                "--retain",
                type=click.FloatRange(0, 1, min_open=True),
                help="Or the share of Σ g‖f‖ every layer keeps: 0.99; takes the fewest experts.",
            ),
            click.option("--target-size", type=SIZE, help="Or the largest file: 14G."),
            click.option(
                "--fit-vram",
                type=SIZE,
                help="Or the memory for weights, KV cache and compute buffers: 24G.",
            ),
            click.option(
                "--context",
                type=TOKENS,
                default=4096,
                show_default=True,
                help="For --fit-vram: tokens of one sequence, 32k.",
            ),
            click.option(
                "--kv-type",
                type=click.Choice(["f16", "q8_0", "q4_0"]),
                default="f16",
                show_default=True,
                help="For --fit-vram: type of the KV cache.",
            ),
            click.option(
                "--parallel",
                type=click.IntRange(1),
                default=1,
                show_default=True,
                help="For --fit-vram: sequences at the same time, each with that context.",
            ),
            click.option(
                "--max-kld",
                type=click.FloatRange(0, min_open=True),
                help="Or the largest mean KL divergence from the model on the search text: 0.05.",
            ),
            click.option(
                "--max-ppl-ratio",
                type=click.FloatRange(1, min_open=True),
                help="Or the largest perplexity over the model's on the search text: 1.03.",
            ),
            click.option(
                "--multiple-of",
                type=click.IntRange(1),
                default=1,
                help="The count is to be a multiple of this.",
            ),
            click.option(
                "--round",
                "rounding",
                type=click.Choice(["down", "up"]),
                help="Take the nearest possible count below or above instead of complaining.",
            ),
        )
    ):
        command = option(command)
    return command


def method_options(command: Command) -> Command:
    """Which experts stay; see request_from."""
    for option in reversed(
        (
            click.option(
                "--method",
                default="",
                show_default="cover; contribution with --blend, --rounds or sums alone",
                help=METHOD_HELP,
            ),
            click.option(
                "--seed", default=0, show_default=True, help="For what is drawn at random."
            ),
            click.option(
                "--blend",
                default="",
                metavar="uniform|maxmin|NAME=W,…",
                help="Weigh domains: alike, for the one served worst, or by these weights.",
            ),
            click.option(
                "--protect-domain",
                "protect_domains",
                multiple=True,
                metavar="NAME[=0.95]",
                help="A domain that keeps at least this coverage; repeatable.",
            ),
            click.option(
                "--always-keep",
                multiple=True,
                metavar="LAYER:EXPERT,…",
                help="Experts that stay in any case: 3:17,44; repeatable.",
            ),
            click.option(
                "--no-super-experts",
                is_flag=True,
                help="Do not protect experts with far larger outputs than all others.",
            ),
            click.option(
                "--rounds",
                type=click.IntRange(1),
                default=1,
                show_default=True,
                help="Drop in so many parts, and gather statistics again between them.",
            ),
            click.option(
                "--experts-used",
                type=EXPERTS_USED,
                help="Experts each token uses in the result, at most the model's number; auto: "
                "as many as are best on the search text, as --method search does.",
            ),
            click.option(
                "--search-text",
                "search_texts",
                type=NAMED_PATH,
                multiple=True,
                metavar="NAME=PATH",
                help="Text that plans are measured on, other than calibration's; repeatable.",
            ),
            click.option(
                "--search-minutes",
                type=click.FloatRange(0, min_open=True),
                default=10.0,
                show_default=True,
                help="Time for --method auto or search, --max-kld and --max-ppl-ratio.",
            ),
            click.option(
                "--search-plans",
                type=click.IntRange(1),
                help="Plans that search draws, whatever the time: repeats exactly.",
            ),
        )
    ):
        command = option(command)
    return command


def request_from(arguments: dict[str, Any]) -> Request:
    """Take the options of both out of a command's arguments.

    Raises:
        InputError: no budget, or several.
    """
    from ggprune.choosing.budget import Budget
    from ggprune.choosing.choose import Request

    names = (
        *("keep", "ratio", "retain", "target_size", "fit_vram"),
        *("context", "kv_type", "parallel", "max_kld", "max_ppl_ratio", "multiple_of"),
    )
    budget = Budget(
        **{name: arguments.pop(name) for name in names},
        rounding=arguments.pop("rounding") or "",
    )
    _ = budget.rule
    return Request(
        budget=budget,
        method=arguments.pop("method"),
        seed=arguments.pop("seed"),
        blend=arguments.pop("blend"),
        protect_domains=arguments.pop("protect_domains"),
        always_keep=arguments.pop("always_keep"),
        super_experts=not arguments.pop("no_super_experts"),
        rounds=arguments.pop("rounds"),
        search_minutes=arguments.pop("search_minutes"),
        search_plans=arguments.pop("search_plans"),
        experts_used=arguments.pop("experts_used"),
    )


def refuse_beside_plan() -> None:
    """Refuse options of both beside a plan, which has decided what they say.

    Raises:
        InputError: the first one given.
    """
    from dataclasses import fields

    from ggprune.choosing.budget import Budget
    from ggprune.choosing.choose import Request
    from ggprune.errors import InputError

    decided = {field.name for field in (*fields(Budget), *fields(Request))}
    decided |= {"no_super_experts", "search_texts"}
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "")
        if option.name in decided and given is ParameterSource.COMMANDLINE:
            raise InputError(
                f"{option.opts[0]}: a plan is given, which says which experts stay",
                remedy="Leave out one of them; `ggprune plan` makes another plan.",
            )
