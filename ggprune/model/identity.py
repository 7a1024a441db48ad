"""What tells that two files are quantizations of one model."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ggprune.errors import MismatchError
from ggprune.gguf_file import GgufModel, Tensor, tensor_type_name
from ggprune.model import sketch
from ggprune.model.counts import ExpertCounts

log = logging.getLogger(__name__)

_HASH_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells that two files are quantizations of one model.

    The router stays in F32 or F16 whatever the quantization, so it identifies the model; files may
    share it and have other experts, so some of their weights are compared too. Hashes are SHA-256;
    what is empty is unknown and agrees with any.

    Attributes:
        architecture, layers, experts, experts_used: of the model.
        tokenizer: hash of the vocabulary.
        router: hash of all routers as F32.
        name: for people only, since whoever quantizes may change it.
        groups, groups_used: of experts.
        router_sketch: one projection of each layer's router; see sketch.py.
        expert_sketch: projections of rows of some experts.
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
    router_sketch: str = field(default="", compare=False)
    expert_sketch: str = field(default="", compare=False)

    @property
    def counts(self) -> ExpertCounts:
        """How many experts there are, are used, and how they are grouped."""
        return ExpertCounts(self.experts, self.experts_used, self.groups, self.groups_used)

    def as_dict(self) -> dict[str, Any]:
        """Give what is known, as files have it; sketches only where there are any."""
        sketches = ("router_sketch", "expert_sketch")
        return {k: v for k, v in asdict(self).items() if v or k not in sketches}

    def check_same(
        self, other: Identity, mine: str, others: str, *, remedy: str | None = None
    ) -> None:
        """Compare with another file's identity.

        Another vocabulary of a model with the same router is only warned of: whoever converts a
        model may rename a token, and the experts are the same.

        Args:
            other: the identity to compare with.
            mine: what this one describes, for the message ("plan.json").
            others: what the other one describes.
            remedy: what to do about a difference, beside using files of one model.

        Raises:
            MismatchError: names the first thing that differs.
        """
        alike = self._same_router(other)
        for name in ("architecture", "layers", "experts", "experts_used", "tokenizer"):
            a, b = getattr(self, name), getattr(other, name)
            if a == b or a == "" or b == "":
                continue
            if name == "tokenizer" and alike:
                log.warning(
                    "%s and %s have other vocabularies, but the same router: they are taken for "
                    "one model with renamed tokens",
                    mine,
                    others,
                )
                continue
            raise _mismatch(mine, others, f"{name} is {_short(a)} and {_short(b)}", remedy)
        if alike is False:
            what = f"router is {_short(self.router)} and {_short(other.router)}"
            raise _mismatch(mine, others, what, remedy)
        if difference := sketch.experts_differ(self.expert_sketch, other.expert_sketch):
            raise _mismatch(mine, others, difference, remedy)

    def _same_router(self, other: Identity) -> bool | None:
        """Compare the routers; None: what is known does not tell."""
        hashed = bool(self.router and other.router)
        if hashed and self.router == other.router:
            return True
        near = sketch.routers_alike(
            self.router_sketch, other.router_sketch, sketch.ROUNDED if hashed else sketch.QUANTIZED
        )
        return False if hashed and near is None else near


def _mismatch(mine: str, others: str, what: str, remedy: str | None) -> MismatchError:
    advice = "Use files made from the same model; its quantization may differ."
    return MismatchError(
        f"{mine} and {others} are not of one model: {what}",
        remedy=f"{advice} {remedy}" if remedy else advice,
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
