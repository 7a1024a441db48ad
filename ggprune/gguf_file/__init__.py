"""GGUF files as bytes: headers, shards, byte ranges, safe writing. Knows nothing of experts."""

from ggprune.gguf_file.arrays import write_arrays
from ggprune.gguf_file.header import GgufFile, KeyValue, Tensor, is_gguf, padded
from ggprune.gguf_file.layout import (
    ByteRange,
    KeyEdits,
    OutputFile,
    OutputTensor,
    TypedValue,
    joined,
    lay_out,
    shard_head,
    whole,
)
from ggprune.gguf_file.parts import part_path, reserved
from ggprune.gguf_file.shards import GgufModel, shard_name, split_shard_name, stem_of
from ggprune.gguf_file.strangers import instead_of_a_model
from ggprune.gguf_file.types import (
    FLOAT_TYPES,
    TENSOR_TYPES,
    TYPE_NUMBERS,
    TensorType,
    ValueType,
    bytes_in,
    tensor_type_name,
)
from ggprune.gguf_file.writing import check_targets, replacing, write_files, write_text

__all__ = [
    "FLOAT_TYPES",
    "TENSOR_TYPES",
    "TYPE_NUMBERS",
    "ByteRange",
    "GgufFile",
    "GgufModel",
    "KeyEdits",
    "KeyValue",
    "OutputFile",
    "OutputTensor",
    "Tensor",
    "TensorType",
    "TypedValue",
    "ValueType",
    "bytes_in",
    "check_targets",
    "instead_of_a_model",
    "is_gguf",
    "joined",
    "lay_out",
    "padded",
    "part_path",
    "replacing",
    "reserved",
    "shard_head",
    "shard_name",
    "split_shard_name",
    "stem_of",
    "tensor_type_name",
    "whole",
    "write_arrays",
    "write_files",
    "write_text",
]
