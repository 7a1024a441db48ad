"""The types a GGUF file can hold: of values in its header, and of tensors."""

from __future__ import annotations

import enum
import math
import struct
from typing import NamedTuple


class ValueType(enum.IntEnum):
    """Types of a metadata value, as numbered in the GGUF specification."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


#: How ``struct`` reads each value of a fixed size (GGUF is little-endian).
SCALARS: dict[int, struct.Struct] = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<?"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}


class TensorType(NamedTuple):
    """A tensor type: ``block`` weights of a row take ``size`` bytes."""

    name: str
    block: int
    size: int


#: Every tensor type of ggml 0.25 by number. Types that are not here are still copied:
#: their size follows from where the next tensor starts (see ``header``).
TENSOR_TYPES: dict[int, TensorType] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 36),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
    42: TensorType("Q2_0", 64, 18),
}


#: Their numbers by name.
TYPE_NUMBERS = {known.name: number for number, known in TENSOR_TYPES.items()}
#: Those of floating-point numbers.
FLOAT_TYPES = frozenset({"F32", "F16", "BF16", "F64"})


def bytes_in(kind: str, *shape: int) -> int:
    """Bytes of a tensor's data in a type, without padding; rows are whole blocks."""
    known = TENSOR_TYPES[TYPE_NUMBERS[kind]]
    return math.prod(shape) // known.block * known.size


def tensor_type_name(type_id: int) -> str:
    """Name a tensor type as usual, or ``type 77`` for one newer than this table."""
    known = TENSOR_TYPES.get(type_id)
    return known.name if known else f"type {type_id}"
