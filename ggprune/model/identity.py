"""What tells that two files are quantizations of one model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ggprune.errors import MismatchError
from ggprune.gguf_file import GgufModel, Tensor, tensor_type_name
from ggprune.model.counts import ExpertCounts

_HASH_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells that two files are quantizations of one model.

    The router is kept in F32 whatever the quantization, so its bytes identify the weights; the
    name is for people only, since whoever quantizes may change it. Hashes are SHA-256; an empty
    one is unknown and agrees with any.
    """

    architecture: str
    layers: int
    experts: int
    experts_used: int
    tokenizer: str
    router: str
    name: str = ""
    groups: int = 1
    groups_used: int = 1

    @property
    def counts(self) -> ExpertCounts:
        """How many experts there are, are used, and how they are grouped."""
        return ExpertCounts(self.experts, self.experts_used, self.groups, self.groups_used)

    def check_same(self, other: Identity, mine: str, others: str) -> None:
        """Compare with another file's identity.

        Args:
            other: the identity to compare with.
            mine: what this one describes, for the message ("plan.json").
            others: what the other one describes.

        Raises:
            MismatchError: names the first thing that differs.
        """
        ours, theirs = asdict(self), asdict(other)
        for field in ("architecture", "layers", "experts", "experts_used", "tokenizer", "router"):
            a, b = ours[field], theirs[field]
            if a != b and a != "" and b != "":
                raise MismatchError(
                    f"{mine} and {others} are not of one model: {field} is {_short(a)} "
                    f"and {_short(b)}",
                    remedy="Use files made from the same model; its quantization may differ.",
                )


def tokenizer_hash(gguf: GgufModel) -> str:
    """Hash the vocabulary's bytes; empty where a file has none."""
    pair = gguf.keys.get("tokenizer.ggml.tokens")
    if pair is None:
        return ""
    digest = hashlib.sha256()
    for start in range(pair.value, pair.end, _HASH_CHUNK):
        digest.update(gguf.files[0].read(start, min(_HASH_CHUNK, pair.end - start)))
    return digest.hexdigest()


def router_hash(gguf: GgufModel, routers: Iterable[Tensor]) -> str:
    """Hash all routers as F32; empty where one is quantized."""
    digest = hashlib.sha256()
    for tensor in routers:
        weights = as_float32(tensor, gguf.read(tensor))
        if weights is None:
            return ""
        digest.update(weights.tobytes())
    return digest.hexdigest()


def as_float32(tensor: Tensor, data: bytes) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """Decode an unquantized tensor to float32, flat; None for a quantized one."""
    name = tensor_type_name(tensor.type)
    if name == "F32":
        return np.frombuffer(data, "<f4")
    if name == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    if name == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return None


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) > 16 else text
