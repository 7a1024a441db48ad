"""Names of quantizations: of files, of tensors, and in file names."""

from __future__ import annotations

import re

from ggprune.errors import InputError
from ggprune.gguf_file import FLOAT_TYPES, GgufModel, tensor_type_name
from ggprune.llama.quantizer import ALIASES, FILE_TYPES
from ggprune.util import did_you_mean

_UNQUANTIZED = FLOAT_TYPES | {"I8", "I16", "I32", "I64"}
_QUANT = r"(?:UD-)?I?Q\d_(?:K(?:_[A-Z]{1,2})?|[01]|NL|XXS|XS|S|M)|TQ\d_0|MXFP4(?:_MOE)?|B?F16|F32"
_SUFFIX = re.compile(rf"[-.](?:{_QUANT}|FP16)(?=$|-\d+e$)", re.IGNORECASE)


def file_type(name: str) -> str:
    """Name a quantization type as llama-quantize prints it.

    Raises:
        InputError: there is none of this name; names all.
    """
    upper = name.upper()
    upper = ALIASES.get(upper, upper)
    if upper not in FILE_TYPES:
        known, hint = ", ".join(sorted(FILE_TYPES)), did_you_mean(name, FILE_TYPES)
        raise InputError(f"{name}: is not a quantization type", remedy=f"Known: {known}.{hint}")
    return upper


def result_stem(stem: str) -> str:
    """Strip the quantization from a model's name: ``Big-109e`` of ``Big-BF16-109e``."""
    return _SUFFIX.sub("", stem)


def quantized_share(model: GgufModel) -> tuple[float, str]:
    """How much of a file is quantized already, 0 to 1, and as what mostly."""
    sizes: dict[str, int] = {}
    for tensor in model.tensors:
        name = tensor_type_name(tensor.type)
        sizes[name] = sizes.get(name, 0) + tensor.nbytes
    quantized = {name: size for name, size in sizes.items() if name not in _UNQUANTIZED}
    if not quantized:
        return 0.0, ""
    return sum(quantized.values()) / sum(sizes.values()), max(quantized, key=quantized.__getitem__)
