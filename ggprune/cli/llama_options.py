"""Options that say how llama.cpp runs a model: its names, its meanings."""

from __future__ import annotations

from typing import Any

import click

SPLIT_MODES = ("none", "layer", "row", "tensor")
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0")
_COUNT = click.IntRange(0)


class Shares(click.ParamType):  # type: ignore[type-arg]
    """3,1: numbers with commas (or slashes) between, as llama.cpp takes them."""

    name = "n0,n1,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Read them."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).replace("/", ",").split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers; write for instance 3,1", param, ctx)


class Listed(click.ParamType):  # type: ignore[type-arg]
    """Texts with commas between; the option may be repeated too."""

    name = "list"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Split them."""
        parts = value if isinstance(value, tuple) else str(value).split(",")
        return tuple(part.strip() for part in parts if part.strip())


def _joined(
    _ctx: click.Context, _param: click.Parameter, values: tuple[tuple[str, ...], ...]
) -> tuple[str, ...]:
    return tuple(text for texts in values for text in texts)


OPTIONS = (
    click.option("-t", "--threads", type=click.IntRange(1), help="Default: one a core."),
    click.option(
        "-ngl", "--gpu-layers", type=_COUNT, help="Layers on the GPU; default: all that fits."
    ),
    click.option("-cmoe", "--cpu-moe", is_flag=True, help="Keep all experts on the CPU."),
    click.option(
        "-ncmoe",
        "--n-cpu-moe",
        type=_COUNT,
        default=0,
        metavar="N",
        help="Keep the experts of the first N layers on the CPU.",
    ),
    click.option(
        "-ot",
        "--override-tensor",
        type=Listed(),
        multiple=True,
        callback=_joined,
        metavar="PATTERN=BUFFER",
        help="Put tensors into a buffer of your choice; repeatable.",
    ),
    click.option(
        "-sm",
        "--split-mode",
        type=click.Choice(SPLIT_MODES),
        default="layer",
        help="How to split over several GPUs; default: layer.",
    ),
    click.option(
        "-ts", "--tensor-split", type=Shares(), default=(), help="Share of each GPU, such as 3,1."
    ),
    click.option(
        "-mg", "--main-gpu", type=_COUNT, default=0, help="The GPU for --split-mode none and row."
    ),
    click.option(
        "-fa",
        "--flash-attn",
        type=click.Choice(["on", "off", "auto"]),
        default="auto",
        help="Flash attention; default: auto.",
    ),
    click.option(
        "-ctk",
        "--cache-type-k",
        type=click.Choice(CACHE_TYPES),
        default="f16",
        help="Type of cached keys; default: f16.",
    ),
    click.option(
        "-ctv",
        "--cache-type-v",
        type=click.Choice(CACHE_TYPES),
        default="f16",
        help="Type of cached values; default: f16.",
    ),
    click.option(
        "-ub",
        "--ubatch",
        type=click.IntRange(1),
        default=512,
        show_default=True,
        help="Tokens computed at once.",
    ),
    click.option("--no-mmap", is_flag=True, help="Read the model into memory."),
    click.option("--no-repack", is_flag=True, help="Do not rearrange weights for this CPU."),
    click.option(
        "--rpc",
        type=Listed(),
        multiple=True,
        callback=_joined,
        metavar="HOST:PORT,…",
        help="Use these servers' devices too; see `ggprune rpc-server`.",
    ),
)
