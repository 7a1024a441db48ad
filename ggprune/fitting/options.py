"""What a user may decide about fitting; light, since help is made from it."""

from __future__ import annotations

from dataclasses import dataclass

from ggprune.fields import check_fields
from ggprune.types import option

#: Passes over the search and the held-out text for the first size, at most.
PASSES = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """How the best file is looked for.

    Attributes:
        room: bytes that the parts of candidates may take on the disk; None for what is free.
    """

    types: tuple[str, ...] = option(
        (),
        "Tensor types to choose from; default: those of llama.cpp from Q8_0 to IQ2_XXS.",
        metavar="TYPE,…",
    )
    groups: int = option(
        20, "Groups of tensors that get a type of their own; each is measured twice.", minimum=6
    )
    method: str | None = option(None, "How experts are chosen, as `ggprune plan` does.")
    search_tokens: int = option(8192, "Tokens of one pass over the search text.", minimum=512)
    held_out_tokens: int = option(
        12288, "Tokens of one pass over the held-out text, which judges.", minimum=512
    )
    room: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
