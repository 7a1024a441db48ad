"""Tiny mixture-of-experts models with random weights, one for every architecture.

``write_tiny`` writes a GGUF file of a few hundred kilobytes that llama.cpp loads in milliseconds.
It has the tensors and keys that real models of the architecture have: leading dense layers, shared
experts, selection biases, fused and scaled experts, MTP layers, recurrent layers. It is made with
the ``gguf`` package and knows nothing of ggprune.

A layer is written down as parts ("attn qk ffn_norm moe"): ``parts`` says which tensors a part has,
``architectures`` which parts the layers of an architecture have, ``writer`` makes the file.
"""

from tests.support.tiny.architectures import MOE_FILES, NOT_GENERATED, SPECS, Spec
from tests.support.tiny.parts import DIMENSIONS, PARTS
from tests.support.tiny.writer import tiny_tensors, write_tiny

__all__ = [
    "DIMENSIONS",
    "MOE_FILES",
    "NOT_GENERATED",
    "PARTS",
    "SPECS",
    "Spec",
    "tiny_tensors",
    "write_tiny",
]
