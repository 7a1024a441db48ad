"""A mixture-of-experts model as its header describes it: layers, experts, sizes, identity."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ggprune.errors import InputError, MismatchError, UnsupportedModelError
from ggprune.gguf_file import GgufModel, Tensor, ValueType, tensor_type_name
from ggprune.model import architectures
from ggprune.model.architectures import Architecture, Role

#: Metadata values longer than this are vocabularies, never a model's own numbers.
_LONG_VALUE = 1 << 16
#: All of them together: many such values are a damaged file's.
_LONG_METADATA = 1 << 20
_ARCHITECTURE = "general.architecture"
_HASH_CHUNK = 8 << 20
_NOT_A_MODEL = {
    "mmproj": "a multimodal projector (mmproj), which has no experts",
    "adapter": "a LoRA adapter, not a model",
    "imatrix": "an importance matrix, not a model",
    "ggprune-stats": "a ggprune statistics file, not a model",
}


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """What limits how many experts can be kept.

    Attributes:
        experts: in each layer.
        used: top-k.
        groups: blocks of equal size that the router first chooses from; 1 for none.
        groups_used: how many of them a token may use.
    """

    experts: int
    used: int
    groups: int = 1
    groups_used: int = 1

    @property
    def least(self) -> int:
        """The smallest number that can be kept.

        llama.cpp scores a group by its best two experts, so two a group must stay.
        """
        if self.groups <= 1:
            return self.used
        return max(2, -(-self.used // self.groups_used)) * self.groups

    def possible(self) -> range:
        """Numbers that can be kept, ascending, all of them included."""
        return range(self.least, self.experts + 1, self.groups)

    def check(self, keep: int) -> None:
        """Raise InputError, with the nearest possible numbers, unless ``keep`` is possible."""
        if keep in self.possible():
            return
        if keep >= self.experts:
            problem = f"the model has {self.experts} experts a layer"
        elif keep < self.least:
            problem = f"at least {self.least} must stay ({self.used} are used for each token)"
        else:
            problem = f"the experts form {self.groups} groups, which must stay equal"
        near = sorted({self.rounded(keep, "down"), self.rounded(keep, "up")})
        raise InputError(
            f"--keep {keep}: {problem}",
            remedy=f"Possible and nearest: {' or '.join(map(str, near))}.",
        )

    def check_used(self, experts_used: int) -> None:
        """Raise InputError unless so many experts a token are possible; 0 leaves the number."""
        if not 0 <= experts_used <= self.used:
            raise InputError(
                f"--experts-used {experts_used}: the model uses {self.used}",
                remedy=f"Take a number from 1 to {self.used}.",
            )

    def rounded(self, keep: int, way: str) -> int:
        """The nearest possible number that is not above (``down``) or below (``up``)."""
        possible = self.possible()
        if way == "down":
            return max((n for n in possible if n <= keep), default=possible[0])
        return min((n for n in possible if n >= keep), default=possible[-1])


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


@dataclass(frozen=True, slots=True)
class MoeModel:
    """Description of a model, made by :func:`describe`.

    Attributes:
        gguf: the open file(s).
        architecture: its row in the table; None for one that ggprune does not know.
        metadata: keys of the architecture without their prefix, and ``general.*``.
        layers: ``block_count``.
        moe_layers: layers with experts that decoding runs.
        mtp_layers: layers that predict further tokens (MTP); decoding does not run them.
        experts: in each layer with experts; 0 in a dense model.
        experts_used: top-k.
        groups: of experts, as blocks of equal size; 1 for none.
        groups_used: groups the router may choose from.
        expert_tensors: by layer, all tensors with one slice an expert; MTP layers included.
        refusal: why the model cannot be pruned; empty if it can.
    """

    gguf: GgufModel
    architecture: Architecture | None
    metadata: Mapping[str, Any]
    layers: int
    moe_layers: tuple[int, ...]
    mtp_layers: tuple[int, ...]
    experts: int
    experts_used: int
    groups: int
    groups_used: int
    expert_tensors: Mapping[int, tuple[Tensor, ...]]
    refusal: str

    @property
    def name(self) -> str:
        """The model's name for people."""
        return str(self.metadata.get("general.name") or self.gguf.stem)

    @property
    def expert_bytes(self) -> int:
        """Bytes of all per-expert tensors: what pruning can take from."""
        return sum(t.nbytes for tensors in self.expert_tensors.values() for t in tensors)

    @property
    def counts(self) -> ExpertCounts:
        """How many experts there are, are used, and how they are grouped."""
        return ExpertCounts(self.experts, self.experts_used, self.groups, self.groups_used)

    def require_prunable(self) -> Architecture:
        """Give the table's row, or say why there is nothing to prune.

        Raises:
            UnsupportedModelError: with the reason.
        """
        if self.refusal or self.architecture is None:
            raise UnsupportedModelError(
                f"{self.gguf.path}: cannot be pruned: {self.refusal}",
                remedy="`ggprune inspect` shows what the file holds.",
            )
        return self.architecture

    def overrides(self, experts_used: int) -> dict[str, int]:
        """Metadata that makes llama.cpp use so many experts a token; none for 0."""
        if not experts_used:
            return {}
        prefix = self.require_prunable().name
        return {f"{prefix}.{architectures.EXPERT_USED_KEY}": experts_used}

    def check_used(self, experts_used: int) -> None:
        """Raise InputError unless the model can be told to use so many experts a token."""
        self.counts.check_used(experts_used)
        if experts_used and isinstance(self.metadata.get(architectures.EXPERT_USED_KEY), list):
            raise InputError(
                f"--experts-used {experts_used}: {self.gguf.path} has a number for every layer, "
                "which cannot be changed to one"
            )

    def size_with(self, keep: int) -> int:
        """Bytes of the file (near enough: without padding) with ``keep`` experts a layer."""
        return self.gguf.size - self.expert_bytes * (self.experts - keep) // max(self.experts, 1)

    def quant_types(self) -> dict[str, int]:
        """Bytes by tensor type, largest first."""
        total: dict[str, int] = {}
        for tensor in self.gguf.tensors:
            name = tensor_type_name(tensor.type)
            total[name] = total.get(name, 0) + tensor.nbytes
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def tensors_of(self, layer: int, role: Role) -> tuple[Tensor, ...]:
        """Per-expert tensors of a layer with this role."""
        return tuple(
            tensor
            for tensor in self.expert_tensors.get(layer, ())
            if (known := architectures.expert_tensor(tensor.name)) and known.role is role
        )

    def identity(self) -> Identity:
        """Hash what identifies the model; reads all routers, so it is not free."""
        return _identity(self)


def describe(gguf: GgufModel) -> MoeModel:
    """Describe the model in open GGUF files.

    Never refuses: what cannot be pruned is described with the reason in ``refusal``.
    """
    pair = gguf.keys.get(_ARCHITECTURE)
    name = str(gguf.get(_ARCHITECTURE)) if pair and pair.type == ValueType.STRING else ""
    row = architectures.find(name)
    metadata = _metadata(gguf, name)
    experts = _number(metadata, architectures.EXPERT_COUNT_KEY)
    tensors, unknown = _expert_tensors(gguf.tensors)
    mtp = set(architectures.mtp_layers(metadata, {tensor.name for tensor in gguf.tensors}))
    model = MoeModel(
        gguf=gguf,
        architecture=row,
        metadata=metadata,
        layers=_number(metadata, architectures.BLOCK_COUNT_KEY),
        moe_layers=tuple(layer for layer in sorted(tensors) if layer not in mtp),
        mtp_layers=tuple(sorted(mtp)),
        experts=experts,
        experts_used=_largest(metadata, architectures.EXPERT_USED_KEY),
        groups=_number(metadata, architectures.EXPERT_GROUP_KEY) or 1,
        groups_used=_number(metadata, architectures.EXPERT_GROUP_USED_KEY) or 1,
        expert_tensors=tensors,
        refusal="",
    )
    refusal = unknown or _refusal(model, name)
    return _with_refusal(model, refusal) if refusal else model


def open_model(path: Any) -> MoeModel:
    """Open and describe a model; the caller closes ``model.gguf``.

    Raises:
        InputError, FormatError: the file cannot be read or is damaged.
    """
    return describe(GgufModel(path))


def _with_refusal(model: MoeModel, refusal: str) -> MoeModel:
    fields = {name: getattr(model, name) for name in MoeModel.__slots__}
    return MoeModel(**{**fields, "refusal": refusal})


def _metadata(gguf: GgufModel, architecture: str) -> dict[str, Any]:
    """Keys of the architecture without prefix, and the general ones."""
    prefix = f"{architecture}."
    found: dict[str, Any] = {}
    room = _LONG_METADATA
    for key, pair in gguf.keys.items():
        length = pair.end - pair.value
        if not key.startswith((prefix, "general.")) or length > min(_LONG_VALUE, room):
            continue
        room -= length
        if key.startswith(prefix):
            found[key.removeprefix(prefix)] = gguf.get(key)
        else:
            found[key] = gguf.get(key)
    return found


def _expert_tensors(tensors: Iterable[Tensor]) -> tuple[dict[int, tuple[Tensor, ...]], str]:
    """Per-expert tensors by layer, and the complaint about an unknown one."""
    by_layer: dict[int, tuple[Tensor, ...]] = {}
    unknown = ""
    for tensor in tensors:
        try:
            known = architectures.expert_tensor(tensor.name)
        except UnsupportedModelError as error:
            shape = " x ".join(map(str, tensor.shape))
            unknown = unknown or f"{error.message} (shape {shape})"
            continue
        layer = architectures.layer_of(tensor.name)
        if known is not None and layer is not None:
            by_layer[layer] = (*by_layer.get(layer, ()), tensor)
    return by_layer, unknown


def _refusal(model: MoeModel, name: str) -> str:
    """Why this model cannot be pruned, or nothing."""
    kind = str(model.metadata.get("general.type", ""))
    if kind in _NOT_A_MODEL or name == "clip":
        return f"it is {_NOT_A_MODEL.get(kind, _NOT_A_MODEL['mmproj'])}"
    if not name:
        return "it has no general.architecture, so it is not a model llama.cpp runs"
    if not model.experts and not model.expert_tensors:
        return f"it is a dense {name} model: it has no experts"
    if model.architecture is None:
        return f"ggprune does not know the architecture {name!r} (docs/architectures.md lists all)"
    known = model.architecture.refusal(model.metadata)
    if known is not None:
        return known.reason
    return _inconsistency(model)


def _inconsistency(model: MoeModel) -> str:
    """What does not fit together between metadata and tensors, or nothing."""
    if not 0 < model.experts_used <= model.experts:
        return f"it says {model.experts_used} of {model.experts} experts are used"
    if not model.moe_layers and model.expert_tensors:
        return "it holds only MTP layers, which decoding does not run: prune the whole model"
    if not model.moe_layers:
        return f"it says {model.experts} experts, but has no expert tensors"
    if model.groups > 1 and model.experts % model.groups:
        return f"its {model.experts} experts do not divide into {model.groups} groups"
    for layer, tensors in model.expert_tensors.items():
        for tensor in tensors:
            if not tensor.shape or tensor.shape[-1] != model.experts:
                shape = " x ".join(map(str, tensor.shape))
                return f"{tensor.name} has the shape {shape}, not {model.experts} experts outermost"
            if tensor.nbytes % model.experts:
                return f"{tensor.name} does not divide into {model.experts} equal slices"
        if not model.tensors_of(layer, Role.ROUTER):
            return f"layer {layer} has experts but no router (ffn_gate_inp.weight)"
    return ""


def _number(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata.get(key, 0)
    return value if isinstance(value, int) else 0


def _largest(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata.get(key, 0)
    if isinstance(value, list):
        return max((item for item in value if isinstance(item, int)), default=0)
    return value if isinstance(value, int) else 0


def _identity(model: MoeModel) -> Identity:
    architecture = model.require_prunable()
    return Identity(
        architecture=architecture.name,
        layers=model.layers - len(model.mtp_layers),
        experts=model.experts,
        experts_used=model.experts_used,
        tokenizer=_tokenizer_hash(model.gguf),
        router=_router_hash(model),
        name=model.name,
        groups=model.groups,
        groups_used=model.groups_used,
    )


def _tokenizer_hash(gguf: GgufModel) -> str:
    pair = gguf.keys.get("tokenizer.ggml.tokens")
    if pair is None:
        return ""
    digest = hashlib.sha256()
    for start in range(pair.value, pair.end, _HASH_CHUNK):
        digest.update(gguf.files[0].read(start, min(_HASH_CHUNK, pair.end - start)))
    return digest.hexdigest()


@functools.lru_cache(maxsize=4)
def _hash_routers(gguf: GgufModel, tensors: tuple[Tensor, ...]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        weights = as_float32(tensor, gguf.read(tensor))
        if weights is None:
            return ""
        digest.update(weights.tobytes())
    return digest.hexdigest()


def _router_hash(model: MoeModel) -> str:
    routers = [t for layer in model.moe_layers for t in model.tensors_of(layer, Role.ROUTER)]
    return _hash_routers(model.gguf, tuple(routers))


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
