"""How to quantize, as a record; light, since help is made from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ggprune.types import option


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """How to quantize; names and meanings are llama-quantize's.

    Attributes:
        tensor_types: (regular expression, tensor type), the first that matches a name.
        threads: None for all.
    """

    imatrix: Path | None = option(None, "Importance matrix, GGUF or .dat.")
    tensor_types: tuple[tuple[str, str], ...] = option(
        (),
        "Type of tensors whose name has PATTERN (a regular expression); repeatable.",
        metavar="PATTERN=TYPE",
    )
    output_type: str | None = option(None, "Type of output.weight.", metavar="TYPE")
    token_embedding_type: str | None = option(None, "Type of token_embd.weight.", metavar="TYPE")
    pure: bool = option(False, "One type for all tensors, no mixtures.")
    keep_split: bool = option(False, "As many shards as the source has.")
    allow_requantize: bool = option(False, "From a file that is quantized already.")
    threads: int | None = option(None, "Default: one a core.", minimum=1)
