"""Write a tiny model of any architecture in ``SPECS``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.support.tiny.architectures import SPECS, Spec, Value
from tests.support.tiny.parts import DIMENSIONS, PARTS


def _shapes(parts: str, prefix: str, sizes: Mapping[str, int]) -> Iterator[tuple[str, list[int]]]:
    for part in parts.split():
        for tensor in PARTS[part].split():
            name, _, dimensions = tensor.partition(":")
            # Expressions come from the tables above only.
            yield prefix + name, [eval(size, {}, dict(sizes)) for size in dimensions.split(",")]


def _weights(name: str, shape: list[int], random: np.random.Generator) -> NDArray[np.float32]:
    """Draw weights that keep activations near 1 and let experts differ in direction and size."""
    values = random.standard_normal(shape[::-1])
    if name.endswith("ssm_a"):
        values = -np.exp(0.3 * values)
    elif "norm" in name and not name.endswith(".bias"):
        values = 1 + 0.1 * values
    elif name.endswith(("scale", "scale.weight", "ssm_d", "rope_freqs.weight")):
        values = np.exp(0.2 * values)
    elif name.endswith((".bias", "exp_probs_b", "_base.weight")):
        values = 0.1 * values
    elif name == "token_embd.weight":
        pass
    else:
        values /= np.sqrt(shape[0])
    if "_exps.weight" in name:
        sizes = random.uniform(0.5, 2.0, size=shape[-1])
        values *= sizes.reshape(-1, *[1] * (values.ndim - 1))
    return values.astype(np.float32)


def _vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Write a byte-level vocabulary: three special tokens, 256 bytes, some words."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3, *[6] * 256]
    words = ["\u2581", *"etaoinshrdlu", "\u2581the", "\u2581of", "\u2581and", "in", "er", "on"]
    tokens += words
    types += [1] * len(words)
    while len(tokens) < size:
        tokens.append(f"<extra_{len(tokens)}>")
        types.append(5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(size)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_token_type_count(1)


def _add_key(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    kinds = gguf.GGUFValueType
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        kind = {bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING}
        writer.add_key_value(key, value, kind[type(value)])


def _keys(spec: Spec, sizes: Mapping[str, int], count: int, used: int) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "context_length": 256,
        "embedding_length": sizes["embd"],
        "block_count": count,
        "feed_forward_length": sizes["ff"],
        "attention.head_count": sizes["heads"],
        "attention.head_count_kv": 1
        if "attention.kv_lora_rank" in spec.keys
        else sizes["kv_heads"],
        "attention.key_length": sizes["head"],
        "attention.value_length": sizes["head"],
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": sizes["head"],
        "expert_count": sizes["experts"],
        "expert_used_count": used,
        "expert_feed_forward_length": sizes["ff_exp"],
        **spec.keys,
    }
    if spec.lead:
        keys["leading_dense_block_count"] = 1
    return keys


def tiny_tensors(
    architecture: str, sizes: Mapping[str, int], depth: int, mtp: int
) -> Iterator[tuple[str, list[int]]]:
    """List the tensors of a model: names, and dimensions in GGML's order."""
    spec = SPECS[architecture]
    yield from _shapes(spec.top, "", sizes)
    for layer in range(depth + mtp):
        if layer >= depth:
            parts = spec.mtp or ""
        elif spec.lead and layer == 0:
            parts = spec.lead
        else:
            parts = spec.layers[(layer - bool(spec.lead)) % len(spec.layers)]
        yield from _shapes(parts, f"blk.{layer}.", sizes)


def write_tiny(
    path: Path | str,
    architecture: str,
    *,
    experts: int = 16,
    used: int = 4,
    layers: int | None = None,
    mtp: int | None = None,
    groups: tuple[int, int] | None = None,
    seed: int = 0,
    dtype: str = "F32",
    keys: Mapping[str, Value] | None = None,
    tensors: str = "",
) -> Path:
    """Write a tiny model.

    Args:
        path: the file to write.
        architecture: one of ``SPECS``.
        experts: experts in each MoE layer.
        used: experts that a token uses.
        layers: layers, without MTP layers; None: enough to have every kind.
        mtp: MTP layers; None: one where the architecture has them.
        groups: groups of experts, and how many a token uses; None: as in ``SPECS``.
        seed: of the random weights.
        dtype: type of matrices with rows that are a multiple of 32; the others are F32.
        keys: metadata to add or replace, without the architecture's prefix; "tokenizer." stays.
        tensors: parts to add to every layer with experts, such as ``"scales"``.
    """
    spec = SPECS[architecture]
    sizes = {**DIMENSIONS, **spec.dimensions, "experts": experts, "used": used}
    depth = layers or bool(spec.lead) + max(2, len(spec.layers))
    last = (1 if spec.mtp else 0) if mtp is None else mtp
    metadata = {**_keys(spec, sizes, depth + last, used), **(keys or {})}
    if last:
        metadata["nextn_predict_layers"] = last
    if (groups or spec.groups)[0]:
        metadata["expert_group_count"], metadata["expert_group_used_count"] = groups or spec.groups

    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name(f"tiny {architecture}")
    for key, value in metadata.items():
        if callable(value):
            factor = used if key == "expert_used_count" else 1
            array = [factor * value(layer, depth) for layer in range(depth + last)]
            _add_key(writer, f"{architecture}.{key}", array)
        else:
            whole = key if key.startswith("tokenizer.") else f"{architecture}.{key}"
            _add_key(writer, whole, value)
    _vocabulary(writer, sizes["vocab"])
    random = np.random.default_rng(seed)
    kind = gguf.GGMLQuantizationType[dtype]
    for name, shape in _with_extra(architecture, sizes, depth, last, tensors):
        if name.endswith("tid2eid.weight"):
            # A table: each token's experts, all different.
            every = np.tile(np.arange(experts, dtype=np.int32), (shape[1], 1))
            writer.add_tensor(name, random.permuted(every, axis=1)[:, : shape[0]])
            continue
        data = _weights(name, shape, random)
        if _is_matrix(name, shape) and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def _is_matrix(name: str, shape: list[int]) -> bool:
    """Say whether llama.cpp's quantizer would touch a tensor, roughly."""
    kept = re.search(r"norm|_ape|ssm_|hc_|gate_inp|conv|token_types|res_score|_b\.weight", name)
    return name.endswith(".weight") and len(shape) > 1 and shape[0] % 32 == 0 and not kept


def _with_extra(
    architecture: str, sizes: Mapping[str, int], depth: int, mtp: int, extra: str
) -> Iterator[tuple[str, list[int]]]:
    tensors = dict(tiny_tensors(architecture, sizes, depth, mtp))
    for name in list(tensors):
        if name.endswith("ffn_gate_inp.weight"):
            tensors.update(_shapes(extra, name.removesuffix("ffn_gate_inp.weight"), sizes))
    yield from tensors.items()
