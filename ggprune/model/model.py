"""A model as its header describes it: any file (Model), and one that can be pruned (MoeModel)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from ggprune.errors import InputError, UnsupportedModelError
from ggprune.gguf_file import GgufModel, Tensor, ValueType, tensor_type_name
from ggprune.model import architectures
from ggprune.model.architectures import Architecture
from ggprune.model.counts import ExpertCounts
from ggprune.model.identity import Identity, router_hash, tokenizer_hash
from ggprune.model.sketch import expert_sketch, router_sketch
from ggprune.model.tensors import HASH_TABLE, ExpertTensor, Role, layer_of, role_of
from ggprune.util import Closing

log = logging.getLogger(__name__)

#: Metadata values longer than this are vocabularies, never a model's own numbers.
_LONG_VALUE = 1 << 16
#: All of them together: many such values are a damaged file's.
_LONG_METADATA = 1 << 20
_ARCHITECTURE = "general.architecture"
#: LLAMA_MAX_EXPERTS (src/llama-hparams.h).
_MAX_EXPERTS = 1024
_NOT_A_MODEL = {
    "mmproj": "a multimodal projector (mmproj), which has no experts",
    "adapter": "a LoRA adapter, not a model",
    "imatrix": "an importance matrix, not a model",
    "ggprune-stats": "a ggprune statistics file, not a model",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Model(Closing):
    """A GGUF model as its header describes it; made by :func:`describe`.

    Attributes:
        gguf: the open file(s).
        architecture: its row in the table; None for one that ggprune does not know.
        metadata: keys of the architecture without their prefix, and ``general.*``.
        layers: ``block_count``.
        moe_layers: layers with experts that decoding runs.
        mtp_layers: layers that predict further tokens (MTP); decoding does not run them.
        mtp_tensors: names of all tensors of those layers.
        counts: experts in each layer (0 in a dense model), top-k, groups.
        expert_tensors: by name, all tensors with one slice an expert; MTP layers included.
        hash_tables: by layer, the tables that choose experts by token id (hash_routing).
        refusal: why the model cannot be pruned; None if it can: then this is a MoeModel.
    """

    gguf: GgufModel
    architecture: Architecture | None
    metadata: Mapping[str, Any]
    layers: int
    moe_layers: tuple[int, ...]
    mtp_layers: tuple[int, ...]
    mtp_tensors: frozenset[str]
    counts: ExpertCounts
    expert_tensors: Mapping[str, ExpertTensor]
    hash_tables: Mapping[int, Tensor]
    refusal: str | None = None

    @property
    def trained_context(self) -> int | None:
        """Tokens of context that the model was trained with; None if the file does not say."""
        length = self.metadata.get("context_length")
        return length if isinstance(length, int) and length > 0 else None

    def context_within(self, ctx: int) -> int:
        """Limit a context to the trained one, with a note."""
        trained = self.trained_context
        if trained is None or ctx <= trained:
            return ctx
        log.info("ctx=%s: the model was trained with %s tokens; that many are used", ctx, trained)
        return trained

    def close(self) -> None:
        """Close the file(s)."""
        self.gguf.close()

    @property
    def name(self) -> str:
        """The model's name for people."""
        return str(self.metadata.get("general.name") or self.gguf.stem)

    @property
    def experts(self) -> int:
        """Experts in each layer; 0 in a dense model."""
        return self.counts.experts

    @property
    def experts_used(self) -> int:
        """Experts used for each token (top-k)."""
        return self.counts.used

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """Layers with experts, ascending; MTP layers included."""
        return tuple(sorted({found.layer for found in self.expert_tensors.values()}))

    @property
    def expert_bytes(self) -> int:
        """Bytes of all per-expert tensors: what pruning can take from."""
        return sum(found.tensor.nbytes for found in self.expert_tensors.values())

    def quant_types(self) -> dict[str, int]:
        """Bytes by tensor type, largest first."""
        total: dict[str, int] = {}
        for tensor in self.gguf.tensors:
            name = tensor_type_name(tensor.type)
            total[name] = total.get(name, 0) + tensor.nbytes
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def tensors_of(self, layer: int, role: Role) -> tuple[Tensor, ...]:
        """List the per-expert tensors of a layer with this role."""
        return tuple(
            found.tensor
            for found in self.expert_tensors.values()
            if found.layer == layer and found.role is role
        )

    def prunable(self) -> MoeModel:
        """Return the model as one that can be pruned.

        Raises:
            UnsupportedModelError: it cannot, with the reason.
        """
        raise UnsupportedModelError(
            f"{self.gguf.path}: cannot be pruned: {self.refusal}",
            remedy="`ggprune inspect` shows what the file holds.",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class MoeModel(Model):
    """A mixture-of-experts model that can be pruned; made by :func:`open_model`."""

    architecture: Architecture

    def prunable(self) -> MoeModel:
        """Return the model itself."""
        return self

    def check_used(self, experts_used: int | None, keep: int) -> None:
        """Raise InputError unless the model can use so many of ``keep`` experts a token."""
        self.counts.check_used(experts_used, keep)
        if experts_used and isinstance(self.metadata.get(architectures.EXPERT_USED_KEY), list):
            raise InputError(
                f"experts_used={experts_used}: {self.gguf.path} has a number for every layer, "
                "which cannot be changed to one"
            )
        if experts_used and self.hash_tables and experts_used != self.experts_used:
            raise InputError(
                f"experts_used={experts_used}: {self.gguf.path} has layers whose table names "
                f"{self.experts_used} experts for every token"
            )
        if experts_used and len(self._derived_widths) > 1:
            raise InputError(
                f"experts_used={experts_used}: {self.gguf.path} has experts of several widths, "
                "which llama.cpp derives from the experts used",
                remedy="Convert the model again with a current convert_hf_to_gguf.py.",
            )

    def keys_for(self, experts_used: int) -> dict[str, int]:
        """Metadata of a file whose tokens use so many experts, keys without prefix."""
        keys = {architectures.EXPERT_USED_KEY: experts_used}
        if self._derived_widths:
            keys[architectures.EXPERT_WIDTH_KEY] = max(self._derived_widths)
        return keys

    def overrides(self, experts_used: int | None) -> dict[str, int]:
        """Metadata that makes llama.cpp use so many experts a token of this file; none for None.

        Raises:
            InputError: llama.cpp would derive another width of the experts.
        """
        if experts_used is None:
            return {}
        values = {architectures.EXPERT_USED_KEY: experts_used}
        if self._derived_widths:
            # llama.cpp ignores what overrides a missing key, so the length it divides is changed.
            said = architectures.SHARED_WIDTH_KEY in self.metadata
            dense = (".ffn_up.weight",) if said else (".ffn_up.weight", ".ffn_up_shexp.weight")
            if any(tensor.name.endswith(dense) for tensor in self.gguf.tensors):
                raise InputError(
                    f"experts_used={experts_used}: {self.gguf.path} has no "
                    f"{architectures.EXPERT_WIDTH_KEY}, so this can only be measured on a "
                    "written file",
                    remedy="Write it with `ggprune apply`, and evaluate the file.",
                )
            values[architectures.FEED_FORWARD_KEY] = max(self._derived_widths) * experts_used
        return {f"{self.architecture.name}.{key}": value for key, value in values.items()}

    @cached_property
    def _derived_widths(self) -> frozenset[int]:
        """Widths of the experts, if llama.cpp derives them: feed_forward_length / experts used."""
        metadata = self.metadata
        down = [found for found in self.expert_tensors.values() if found.role is Role.DOWN]
        widths = frozenset(found.tensor.shape[0] for found in down)
        length = metadata.get(architectures.FEED_FORWARD_KEY, 0)
        lengths = {length[f.layer] for f in down} if isinstance(length, list) else {length}
        known = architectures.EXPERT_WIDTH_KEY in metadata or lengths == widths
        derived = {n // self.experts_used for n in lengths} == widths
        return widths if derived and not known else frozenset()

    def identity(self) -> Identity:
        """Hash what identifies the model; reads all routers and rows of some experts, once."""
        return self._identity

    @cached_property
    def _identity(self) -> Identity:
        routers, downs = (
            [t for layer in self.moe_layers for t in self.tensors_of(layer, role)]
            for role in (Role.ROUTER, Role.DOWN)
        )
        return Identity(
            architecture=self.architecture.name,
            layers=self.layers - len(self.mtp_layers),
            experts=self.experts,
            experts_used=self.experts_used,
            tokenizer=tokenizer_hash(self.gguf),
            router=router_hash(self.gguf, routers),
            name=self.name,
            groups=self.counts.groups,
            groups_used=self.counts.groups_used,
            router_sketch=router_sketch(self.gguf, routers),
            expert_sketch=expert_sketch(self.gguf, downs, self.experts),
        )


def describe(source: GgufModel | str | os.PathLike[str]) -> Model:
    """Describe the model in a file, or in open GGUF files.

    Never refuses: what cannot be pruned is described with the reason in ``refusal``; what can
    is a MoeModel.

    Raises:
        InputError, FormatError: the file cannot be read or is damaged.
    """
    gguf = source if isinstance(source, GgufModel) else GgufModel(source)
    pair = gguf.keys.get(_ARCHITECTURE)
    name = str(gguf.get(_ARCHITECTURE)) if pair and pair.type == ValueType.STRING else ""
    metadata = _metadata(gguf, name)
    tokens = gguf.keys.get("tokenizer.ggml.tokens")
    if tokens is not None and tokens.type == ValueType.ARRAY:
        metadata.setdefault(architectures.VOCABULARY_KEY, gguf.length(tokens))
    tensors, unknown = _expert_tensors(gguf.tensors)
    mtp = architectures.mtp_layers(metadata, (tensor.name for tensor in gguf.tensors))
    layers = {found.layer for found in tensors.values()}
    model = Model(
        gguf=gguf,
        architecture=architectures.ARCHITECTURES.get(name),
        metadata=metadata,
        layers=architectures.number(metadata, architectures.BLOCK_COUNT_KEY),
        moe_layers=tuple(sorted(layers - set(mtp))),
        mtp_layers=mtp,
        mtp_tensors=frozenset(t.name for t in gguf.tensors if mtp and layer_of(t.name) in mtp),
        counts=ExpertCounts(
            architectures.number(metadata, architectures.EXPERT_COUNT_KEY),
            _largest(metadata, architectures.EXPERT_USED_KEY),
            architectures.number(metadata, architectures.EXPERT_GROUP_KEY) or 1,
            architectures.number(metadata, architectures.EXPERT_GROUP_USED_KEY) or 1,
        ),
        expert_tensors=tensors,
        hash_tables={
            layer: tensor
            for tensor in gguf.tensors
            if tensor.name.endswith(HASH_TABLE) and (layer := layer_of(tensor.name)) in layers
        },
    )
    refusal = _refusal(model, name, unknown)
    if refusal:
        return replace(model, refusal=refusal)
    return MoeModel(**{field.name: getattr(model, field.name) for field in fields(model)})


def open_model(path: str | os.PathLike[str]) -> MoeModel:
    """Open a model that can be pruned.

    Raises:
        InputError, FormatError: the file cannot be read or is damaged.
        UnsupportedModelError: it cannot be pruned, with the reason.
    """
    model = describe(path)
    try:
        return model.prunable()
    except UnsupportedModelError:
        model.close()
        raise


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


def _expert_tensors(tensors: Iterable[Tensor]) -> tuple[dict[str, ExpertTensor], str]:
    """Recognise each tensor, once; with the complaint about an unknown one."""
    known: dict[str, ExpertTensor] = {}
    unknown = ""
    for tensor in tensors:
        try:
            role = role_of(tensor.name)
        except UnsupportedModelError as error:
            shape = " x ".join(map(str, tensor.shape))
            unknown = unknown or f"{error.message} (shape {shape})"
            continue
        layer = layer_of(tensor.name)
        if role is not None and layer is not None:
            known[tensor.name] = ExpertTensor(layer, role, tensor)
    return known, unknown


def _refusal(model: Model, name: str, unknown: str) -> str:
    """Why this model cannot be pruned, or nothing; ``unknown`` complains of a tensor."""
    kind = str(model.metadata.get("general.type", ""))
    if kind in _NOT_A_MODEL or name == "clip":
        return f"it is {_NOT_A_MODEL.get(kind, _NOT_A_MODEL['mmproj'])}"
    if not name:
        return "it has no general.architecture, so it is not a model llama.cpp runs"
    count = model.metadata.get(architectures.EXPERT_COUNT_KEY)
    if not count and not model.expert_tensors and not unknown:
        return f"it is a dense {name} model: it has no experts"
    if model.architecture is None:
        return f"ggprune does not know the architecture {name!r} (docs/architectures.md lists all)"
    known = model.architecture.refusal(model.metadata)
    if known is not None:
        return known.reason
    return unknown or _aborts(model, model.architecture) or _inconsistency(model)


def _aborts(model: Model, architecture: Architecture) -> str:
    """Say at which of its numbers llama.cpp would refuse the file or abort, or nothing."""
    if isinstance(model.metadata.get(architectures.EXPERT_COUNT_KEY), list):
        return (
            f"its {architectures.EXPERT_COUNT_KEY} is a list, one number for each layer; "
            "llama.cpp has one number for all layers"
        )
    if model.experts > _MAX_EXPERTS:
        return (
            f"it has {model.experts:,} experts in a layer; llama.cpp aborts at more than "
            f"{_MAX_EXPERTS:,}"
        )
    try:
        architectures.gating_of(architecture, model.metadata)
    except UnsupportedModelError as error:
        return error.message
    return ""


def _inconsistency(model: Model) -> str:
    """Say what does not fit together between metadata and tensors, or nothing."""
    if not 0 < model.experts_used <= model.experts:
        return f"it says {model.experts_used} of {model.experts} experts are used"
    if not model.moe_layers and model.expert_tensors:
        return "it holds only MTP layers, which decoding does not run: prune the whole model"
    if not model.moe_layers:
        return f"it says {model.experts} experts, but has no expert tensors"
    groups = model.counts.groups
    if groups > 1 and model.experts % groups:
        return f"its {model.experts} experts do not divide into {groups} groups"
    for tensor in (found.tensor for found in model.expert_tensors.values()):
        if not tensor.shape or tensor.shape[-1] != model.experts:
            shape = " x ".join(map(str, tensor.shape))
            return f"{tensor.name} has the shape {shape}, not {model.experts} experts outermost"
        if tensor.nbytes % model.experts:
            return f"{tensor.name} does not divide into {model.experts} equal slices"
    routed = {found.layer for found in model.expert_tensors.values() if found.role is Role.ROUTER}
    for layer in model.expert_layers:
        if layer not in routed:
            return f"layer {layer} has experts but no router (ffn_gate_inp.weight)"
    return ""


def _largest(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata.get(key, 0)
    if isinstance(value, list):
        return max((item for item in value if isinstance(item, int)), default=0)
    return architectures.number(metadata, key)
