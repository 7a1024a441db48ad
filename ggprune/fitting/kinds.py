"""Tensor types to choose from: rows they fit, what llama-quantize takes instead, bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ggprune.errors import InputError
from ggprune.gguf_file import (
    FLOAT_TYPES,
    TENSOR_TYPES,
    TYPE_NUMBERS,
    Tensor,
    tensor_type_name,
)
from ggprune.util import did_you_mean

#: From many bits to few; rows must be a multiple of 256.
WIDE = (
    *("Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K"),
    *("IQ2_S", "IQ2_XS", "IQ2_XXS"),
)
#: For rows that are only a multiple of 32.
NARROW = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "IQ4_NL")
#: llama.cpp makes these of a layer's matrix only with an importance matrix.
NEEDS_IMATRIX = frozenset({"IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"})
#: The file type that a file mostly of this tensor type is said to be.
FILE_TYPE_OF = {
    "Q6_K": "Q6_K",
    "Q5_K": "Q5_K_M",
    "Q4_K": "Q4_K_M",
    "Q3_K": "Q3_K_M",
    "IQ2_S": "IQ2_M",
}
#: src/llama-quant.cpp, tensor_type_fallback.
_FALLBACKS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S"), "IQ4_NL"),
    **dict.fromkeys(("IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def check(names: Iterable[str]) -> None:
    """Raise InputError, with all there are, unless files can be made of these tensor types."""
    known = dict.fromkeys((*WIDE, *NARROW))
    for name in names:
        if name.upper() not in known:
            exists = name.upper() in TYPE_NUMBERS
            problem = "fit does not choose it" if exists else "there is no such type"
            raise InputError(
                f"types={name}: {problem}",
                remedy=f"Known: {', '.join(known)}.{did_you_mean(name, known)}",
            )


def resolved(row: int, kind: str) -> str:
    """Return the type llama-quantize gives a tensor with rows of this length when asked for one."""
    if row % TENSOR_TYPES[TYPE_NUMBERS[kind]].block == 0:
        return kind
    other = _FALLBACKS.get(kind, kind)
    return "F16" if row % TENSOR_TYPES[TYPE_NUMBERS[other]].block else other


def bits_of(tensor: Tensor) -> float:
    """Bits of a weight."""
    return 8 * tensor.nbytes / math.prod(tensor.shape)


def is_unquantized(tensor: Tensor) -> bool:
    """Whether a tensor holds floating-point numbers."""
    return tensor_type_name(tensor.type) in FLOAT_TYPES
