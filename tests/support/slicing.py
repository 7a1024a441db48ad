"""Every generated model, and pruning by brute force: code that knows nothing of ggprune's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ggprune.model.architectures import ARCHITECTURES, Architecture
from tests.support.tiny import DIMENSIONS, SPECS, tiny_tensors, write_tiny

EXPERTS, USED, KEPT = 16, 4, 11
TOKENS = np.random.default_rng(7).integers(3, 259, size=64).tolist()

# What real files of these architectures may have, beside the model that SPECS gives.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe: softmax over the chosen": ("afmoe", {"keys": {"expert_gating_func": 3}}),
    "cohere2moe: softmax": ("cohere2moe", {"keys": {"expert_gating_func": 1}}),
    "cohere2moe: softmax over the chosen": ("cohere2moe", {"keys": {"expert_gating_func": 3}}),
    "deepseek2: groups": ("deepseek2", {"groups": (4, 2)}),
    "deepseek2: softmax, bias, not normalised": (
        "deepseek2",
        {"keys": {"expert_gating_func": 1, "expert_weights_norm": False}},
    ),
    "deepseek2: no MTP": ("deepseek2", {"mtp": 0}),
    "llama: one expert used": ("llama", {"used": 1}),
    "qwen3moe: scales": ("qwen3moe", {"tensors": "scales"}),
    "qwen3moe: groups": ("qwen3moe", {"groups": (2, 1)}),
    "qwen3moe: Q8_0": ("qwen3moe", {"dtype": "Q8_0"}),
}
PRUNED = [
    name for name in SPECS if name != "grovemoe"
]  # grovemoe emits every name twice and is refused
CASES = {**{name: (name, {}) for name in PRUNED}, **VARIANTS}
Metadata = dict[str, Any]


def make(folder: Path, case: str) -> tuple[Path, Architecture]:
    name, options = CASES[case]
    path = write_tiny(folder / "base.gguf", name, experts=EXPERTS, **{"used": USED, **options})
    return path, ARCHITECTURES[name]


def read(path: Path) -> tuple[Metadata, dict[str, gguf.ReaderTensor]]:
    """Read metadata (without the architecture's prefix) and tensors."""
    reader = gguf.GGUFReader(path)
    prefix = reader.fields["general.architecture"].contents() + "."
    metadata = {
        key.removeprefix(prefix): field.contents()
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    return metadata, {tensor.name: tensor for tensor in reader.tensors}


@cache
def per_expert_suffixes() -> frozenset[str]:
    """Name the tensors that have a part for each expert: those that grow with their number."""
    grown = {f"ffn_{part}_exps.scale" for part in ("gate", "up", "down")}
    for name in SPECS:
        small, large = (
            dict(tiny_tensors(name, {**DIMENSIONS, **SPECS[name].dimensions, "experts": n}, 4, 1))
            for n in (EXPERTS, 2 * EXPERTS)
        )
        for tensor, shape in small.items():
            if large[tensor] != shape:
                assert large[tensor][:-1] == shape[:-1], "the outermost axis is the expert axis"
                grown.add(without_layer(tensor))
    return frozenset(grown)


def per_expert(names: Iterable[str]) -> set[str]:
    return {name for name in names if without_layer(name) in per_expert_suffixes()}


def without_layer(name: str) -> str:
    return re.sub(r"^blk\.\d+\.", "", name)


def moe_layers(names: Iterable[str]) -> set[int]:
    return {
        int(match[1])
        for name in names
        if (match := re.match(r"blk\.(\d+)\.ffn_down_exps\.w", name))
    }


def reference_slice(
    source: Path, target: Path, keep: Mapping[int, Sequence[int]], changed: Mapping[str, Any]
) -> Path:
    """Keep some experts in each layer (and no tensors of layers that keep none), by brute force."""
    reader = gguf.GGUFReader(source)
    name = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, name)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            value = changed.get(key.removeprefix(f"{name}."), field.contents())
            kind = field.types[0]
            writer.add_key_value(
                key, value, kind, field.types[-1] if len(field.types) > 1 else None
            )
    sliced = per_expert(tensor.name for tensor in reader.tensors)
    for tensor in reader.tensors:
        match = re.match(r"blk\.(\d+)\.", tensor.name)
        if match and int(match[1]) not in keep:
            continue
        data = tensor.data
        if match and tensor.name in sliced:
            data = data[keep[int(match[1])]]
        if match and tensor.name.endswith("tid2eid.weight"):
            stay = keep[int(match[1])]
            rows = router_rows(reader, int(match[1]))
            data = np.array(
                [[stay.index(e) for e in stand_ins(row, stay, rows)] for row in data.tolist()],
                np.int32,
            )
        writer.add_tensor(tensor.name, np.ascontiguousarray(data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def router_rows(reader: gguf.GGUFReader, layer: int) -> np.ndarray:
    (router,) = [t for t in reader.tensors if t.name == f"blk.{layer}.ffn_gate_inp.weight"]
    return np.array(router.data, np.float64)


def stand_ins(row: Sequence[int], stay: Sequence[int], rows: np.ndarray) -> list[int]:
    """Replace each dropped expert by the free kept one with the largest cosine, from the left."""

    def cosine(a: int, b: int) -> float:
        return float(rows[a] @ rows[b] / np.linalg.norm(rows[a]) / np.linalg.norm(rows[b]))

    found = list(row)
    for place, expert in enumerate(found):
        if expert not in stay:
            others = {e for e in found if e in stay}
            free = [e for e in stay if e not in others]
            found[place] = max(free, key=lambda other: cosine(expert, other))
    return found


def masking(
    path: Path, architecture: Architecture, dropped: Mapping[int, Sequence[int]]
) -> tuple[Callable[[str, Any], None], frozenset[str]]:
    """Make a function that takes experts out of the choice, and name the nodes it is for."""
    reader = gguf.GGUFReader(path)
    hashed = {
        int(tensor.name.split(".")[1]): router_rows(reader, int(tensor.name.split(".")[1]))
        for tensor in reader.tensors
        if tensor.name.endswith("tid2eid.weight")
    }

    def mask(name: str, node: Any) -> None:
        what, _, number = name.rpartition("-")
        gone = list(dropped[int(number)])
        if what != "ffn_moe_topk":
            node.array[..., gone] = -1e30
            return
        rows = hashed[int(number)]
        stay = [expert for expert in range(len(rows)) if expert not in gone]
        chosen = node.array.reshape(-1, node.array.shape[-1])
        chosen[:] = [stand_ins(row, stay, rows) for row in chosen.tolist()]

    nodes = {f"{node}-{layer}" for node in architecture.mask_nodes for layer in dropped}
    return mask, frozenset(nodes | {f"ffn_moe_topk-{layer}" for layer in hashed})


def choose(metadata: Metadata) -> dict[int, list[int]]:
    """Choose the experts to keep: another set in each layer, as many in each group."""
    random = np.random.default_rng(3)
    groups = metadata.get("expert_group_count", 1)
    size = EXPERTS // groups
    kept = KEPT if groups == 1 else size - 1
    return {
        layer: sorted(
            int(group * size + expert)
            for group in range(groups)
            for expert in random.choice(size, kept, replace=False)
        )
        for layer in range(metadata["block_count"])
    }
