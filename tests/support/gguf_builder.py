"""GGUF bytes made by hand with ``struct``, from the specification, without ggprune or gguf.

Anything can be wrong on purpose: counts, offsets, names, types, alignment, padding.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {
    U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?",
    U64: "Q", I64: "q", F64: "d",
}  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A value as it stands in a file: its type number, then these bytes."""

    type: int
    data: bytes


def scalar(kind: int, value: float) -> Value:
    return Value(kind, struct.pack("<" + CODES[kind], value))


def u32(value: int) -> Value:
    return scalar(U32, value)


def string(text: bytes | str) -> Value:
    return Value(STRING, counted(text))


def array(kind: int, items: Sequence[Value], count: int | None = None) -> Value:
    head = struct.pack("<IQ", kind, len(items) if count is None else count)
    return Value(ARRAY, head + b"".join(item.data for item in items))


def numbers(kind: int, items: Sequence[float]) -> Value:
    return array(kind, [scalar(kind, item) for item in items])


def strings(items: Sequence[bytes | str]) -> Value:
    return array(STRING, [string(item) for item in items])


def counted(text: bytes | str) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def padding(length: int, alignment: int) -> bytes:
    return bytes(-length % alignment)


@dataclass(frozen=True)
class TensorSpec:
    name: bytes | str
    shape: tuple[int, ...]
    type: int
    data: bytes
    offset: int | None = None
    """Relative to the data section; None for where it belongs."""


@dataclass
class Gguf:
    """A file to build. ``keys`` are pairs, so that one can stand twice."""

    keys: list[tuple[bytes | str, Value]] = field(default_factory=list)
    tensors: list[TensorSpec] = field(default_factory=list)
    version: int = 3
    alignment: int = 32
    padded_end: bool = True
    magic: bytes = b"GGUF"
    n_tensors: int | None = None
    n_keys: int | None = None
    order: str = "<"

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        head = bytearray(self.magic)
        head += struct.pack(self.order + "IQQ", self.version, n_tensors, n_keys)
        for key, value in self.keys:
            head += counted(key) + struct.pack("<I", value.type) + value.data
        running = 0
        for tensor in self.tensors:
            offset = running if tensor.offset is None else tensor.offset
            head += counted(tensor.name) + struct.pack("<I", len(tensor.shape))
            head += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
            head += struct.pack("<IQ", tensor.type, offset)
            running += len(tensor.data) + len(padding(len(tensor.data), self.alignment))
        return bytes(head)

    def build(self) -> bytes:
        head = self.header()
        parts = [head, padding(len(head), self.alignment)]
        for index, tensor in enumerate(self.tensors):
            parts.append(tensor.data)
            if self.padded_end or index + 1 < len(self.tensors):
                parts.append(padding(len(tensor.data), self.alignment))
        return b"".join(parts)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.build())
        return path


def f32_tensor(name: bytes | str, shape: tuple[int, ...], seed: int = 1) -> TensorSpec:
    """A tensor with data that differs everywhere."""
    count = 1
    for dimension in shape:
        count *= dimension
    return TensorSpec(name, shape, 0, noise(4 * count, seed))


def noise(length: int, seed: int = 1) -> bytes:
    """Bytes without repetition that matters, quickly and the same everywhere."""
    import random

    return random.Random(seed).randbytes(length)


def moe(experts: int = 8, layers: int = 2, width: int = 8, architecture: str = "qwen3moe") -> Gguf:
    """A small mixture-of-experts model, complete enough for ``ggprune.model.describe``."""
    keys: list[tuple[bytes | str, Value]] = [
        ("general.architecture", string(architecture)),
        ("general.name", string("Tiny 8x1M")),
        (f"{architecture}.block_count", u32(layers)),
        (f"{architecture}.expert_count", u32(experts)),
        (f"{architecture}.expert_used_count", u32(2)),
        ("tokenizer.ggml.tokens", strings([b"a", b"", b"\xff\xfe", "é"])),
        ("tokenizer.ggml.merges", strings([])),
        ("tokenizer.ggml.scores", numbers(F32, [0.5, 1.5])),
    ]
    tensors = [f32_tensor("token_embd.weight", (width, 5), 0)]
    for layer in range(layers):
        seed = 10 * layer
        tensors += [
            f32_tensor(f"blk.{layer}.ffn_norm.weight", (width + 1,), seed + 1),
            f32_tensor(f"blk.{layer}.ffn_gate_inp.weight", (width, experts), seed + 2),
            f32_tensor(f"blk.{layer}.ffn_gate_exps.weight", (width, width, experts), seed + 3),
            f32_tensor(f"blk.{layer}.ffn_up_exps.weight", (width, width, experts), seed + 4),
            f32_tensor(f"blk.{layer}.ffn_down_exps.weight", (width, width, experts), seed + 5),
        ]
    return Gguf(keys, [*tensors, f32_tensor("output_norm.weight", (width + 1,), 99)])
