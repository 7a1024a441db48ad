"""Mixture-of-experts models of any size with random weights, to time how they run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type


@dataclass(frozen=True)
class Shape:
    """A qwen3moe model: softmax routing, no shared experts."""

    layers: int = 12
    experts: int = 64
    used: int = 8
    width: int = 1024
    inner: int = 512
    vocabulary: int = 32_768
    type: Type = Type.Q4_K

    @property
    def head(self) -> int:
        return 64


def generate(path: Path, shape: Shape) -> Path:
    """Write a model; the same shape gives the same bytes."""
    noise = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "qwen3moe")
    _keys(writer, shape)
    tensors = list(_tensors(shape))
    for name, dimensions, kind in tensors:
        # Dimensions in NumPy's order; the writer wants those of the raw bytes.
        rows = gguf.quant_shape_to_byte_shape(dimensions, kind) if kind != Type.F32 else dimensions
        dtype = np.dtype(np.uint8 if kind != Type.F32 else np.float32)
        size = int(np.prod(rows)) * dtype.itemsize
        writer.add_tensor_info(name, rows, dtype, size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dimensions, kind in tensors:
        writer.write_tensor_data(_data(name, dimensions, kind, noise))
    writer.close()
    return path


def _keys(writer: gguf.GGUFWriter, shape: Shape) -> None:
    heads = shape.width // shape.head
    writer.add_name("generated for timing")
    writer.add_block_count(shape.layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.inner)
    writer.add_expert_feed_forward_length(shape.inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(max(heads // 4, 1))
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.used)
    # Bytes, some words and fillers: enough for llama-imatrix to read a text.
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    fillers = [f"\u2581w{number}" for number in range(shape.vocabulary - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens + fillers)
    writer.add_token_scores([-float(number) for number in range(shape.vocabulary)])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(fillers)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _tensors(shape: Shape) -> list[tuple[str, tuple[int, ...], Type]]:
    width, inner, experts, kind = shape.width, shape.inner, shape.experts, shape.type
    shared = max(width // shape.head // 4, 1) * shape.head
    found: list[tuple[str, tuple[int, ...], Type]] = [
        ("token_embd.weight", (shape.vocabulary, width), kind),
        ("output_norm.weight", (width,), Type.F32),
        ("output.weight", (shape.vocabulary, width), kind),
    ]
    for layer in range(shape.layers):
        for name, dimensions, its_kind in [
            ("attn_norm", (width,), Type.F32),
            ("attn_q", (width, width), kind),
            ("attn_k", (shared, width), kind),
            ("attn_v", (shared, width), kind),
            ("attn_output", (width, width), kind),
            ("attn_q_norm", (shape.head,), Type.F32),
            ("attn_k_norm", (shape.head,), Type.F32),
            ("ffn_norm", (width,), Type.F32),
            ("ffn_gate_inp", (experts, width), Type.F32),
            ("ffn_gate_exps", (experts, inner, width), kind),
            ("ffn_up_exps", (experts, inner, width), kind),
            ("ffn_down_exps", (experts, width, inner), kind),
        ]:
            found.append((f"blk.{layer}.{name}.weight", dimensions, its_kind))
    return found


def _data(
    name: str, dimensions: tuple[int, ...], kind: Type, noise: np.random.Generator
) -> np.ndarray:
    if kind == Type.F32:
        if len(dimensions) == 1:
            return np.ones(dimensions, np.float32)
        return noise.standard_normal(dimensions, np.float32) / np.float32(dimensions[-1] ** 0.5)
    scale = np.float16(0.5 / dimensions[-1] ** 0.5)
    rows = gguf.quant_shape_to_byte_shape(dimensions, kind)
    if kind == Type.Q8_0:
        blocks = noise.integers(0, 256, (int(np.prod(rows)) // 34, 34), np.uint8)
        blocks[:, :2] = np.frombuffer((scale / 64).astype(np.float16).tobytes(), np.uint8)
    elif kind == Type.Q4_K:
        blocks = noise.integers(0, 256, (int(np.prod(rows)) // 144, 144), np.uint8)
        # A value is 8·d·q - 8·m with q from 0 to 15: m = 7.5 d makes the mean 0.
        d = np.float16(scale / 32)
        blocks[:, :4] = np.frombuffer(np.array([d, 7.5 * d], np.float16).tobytes(), np.uint8)
        blocks[:, 4:12], blocks[:, 12:16] = 8, 0x88
    else:
        raise ValueError(f"no generator for {kind.name}")
    return blocks.reshape(rows)
