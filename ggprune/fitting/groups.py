"""Tensors that get one type together: neighbouring layers of one class."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ggprune.gguf_file import Tensor
from ggprune.model import MoeModel
from ggprune.model.tensors import Role, layer_of, role_of

EMBEDDING, HEAD = "embedding", "head"
ATTENTION, SHARED, GATE_UP, DOWN = "attention", "shared FFN", "experts gate/up", "experts down"


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that get one type.

    Attributes:
        part: the class of tensors: ATTENTION, SHARED, GATE_UP, DOWN, EMBEDDING or HEAD.
        layers: first and last; None outside the layers.
    """

    part: str
    layers: tuple[int, int] | None
    tensors: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        """What people are told."""
        if self.layers is None:
            return self.part
        first, last = self.layers
        return f"{self.part} {first}" if first == last else f"{self.part} {first}-{last}"

    @property
    def experts(self) -> bool:
        """Whether its bytes are those of experts."""
        return self.part in (GATE_UP, DOWN)

    @property
    def nbytes(self) -> int:
        """Bytes in the source."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def pattern(self) -> str:
        """A regular expression, in the syntax of C++ and Python, that matches exactly these."""
        if self.layers is None:
            return exactly(self.tensors)
        layers = sorted({layer_of(t.name) or 0 for t in self.tensors})
        suffixes = sorted({t.name.split(".", 2)[2].replace(".", r"\.") for t in self.tensors})
        return rf"^blk\.({'|'.join(map(str, layers))})\.({'|'.join(suffixes)})$"


def exactly(tensors: Iterable[Tensor]) -> str:
    """Write a regular expression that matches the names of these tensors and no others."""
    return f"^({'|'.join(re.escape(tensor.name) for tensor in tensors)})$"


def groups_of(model: MoeModel, names: Collection[str], most: int) -> tuple[Group, ...]:
    """Put tensors into groups.

    Every class of every layer is a group; then neighbours of one class are joined, those first
    that hold the fewest bytes together, until there are few enough. The first and the last layer
    often differ from all others, so they are joined late. MTP layers, which decoding does not
    run, go with the last layer that it does.

    Args:
        names: of tensors that can be quantized.
        most: groups, at least one for each class.
    """
    found: dict[tuple[str, int], list[Tensor]] = {}
    last = max(set(range(model.layers)) - set(model.mtp_layers), default=0)
    for tensor in model.gguf.tensors:
        if tensor.name in names:
            layer = layer_of(tensor.name)
            key = part_of(tensor.name), -1 if layer is None else min(layer, last)
            found.setdefault(key, []).append(tensor)
    runs: dict[str, list[list[int]]] = {}
    for part, layer in sorted(found):
        runs.setdefault(part, []).append([layer])
    sizes = {key: sum(t.nbytes for t in tensors) for key, tensors in found.items()}

    def cost(part: str, layers: Sequence[int]) -> float:
        ends = sum(layer in (0, last) for layer in layers)
        return sum(sizes[part, layer] for layer in layers) * (1 + ends)

    while sum(map(len, runs.values())) > most:
        pairs = [
            (cost(part, one + other), part, index)
            for part, each in runs.items()
            for index, (one, other) in enumerate(itertools.pairwise(each))
        ]
        if not pairs:
            break
        _, part, index = min(pairs)
        runs[part][index] += runs[part].pop(index + 1)
    return tuple(
        Group(
            part,
            None if layers[0] < 0 else (layers[0], layers[-1]),
            tuple(tensor for layer in layers for tensor in found[part, layer]),
        )
        for part, each in runs.items()
        for layers in each
    )


def part_of(name: str) -> str:
    """Return the class of a tensor, by its name."""
    if layer_of(name) is None:
        return HEAD if name.startswith("output") else EMBEDDING
    role = role_of(name)
    if role is not None:
        return DOWN if role is Role.DOWN else GATE_UP
    suffix = name.split(".", 2)[2]
    return SHARED if suffix.startswith("ffn_") else ATTENTION
