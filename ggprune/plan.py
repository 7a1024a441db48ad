"""Which experts stay, by layer, and the JSON file that says so."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ggprune.errors import InputError, MismatchError
from ggprune.gguf_file import write_text
from ggprune.model import Identity, MoeModel
from ggprune.model.architectures import Architecture
from ggprune.util import check_shape, read_json

FORMAT = "ggprune-plan"
VERSION = 1
#: ``format`` of drop metadata, which lie beside a pruned file and are easily taken for its plan.
DROP_METADATA = "ggprune-drop-metadata"
HAND_WRITTEN = "hand-written"
LAST_LAYER_RULE = "MTP layer: the experts of the last layer that decoding runs"


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What happens in one layer.

    Attributes:
        keep: experts that stay, ascending.
        retained: share of the layer's Σ g‖f‖ they have; None if it was not observed.
        rule: how they were chosen where it was not by the plan's method (MTP layers).
    """

    keep: tuple[int, ...]
    retained: float | None = None
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which experts stay.

    Attributes:
        keep: experts a layer; their mean in a plan with counts by layer, for a masked copy.
        layers: by block number.
        method: how they were chosen.
        experts: a layer before; 0 if a hand-written plan does not say.
        architecture: of the model; may be empty in a hand-written plan.
        identity: of the model; None in a hand-written plan.
        settings: of the method: seed, blend, and what it measured.
        experts_used: for each token; None for as many as the model uses.
        zero_bias: whether the bias that the router adds to its logits becomes 0 (gpt-oss).
    """

    keep: int
    layers: Mapping[int, LayerPlan]
    method: str = HAND_WRITTEN
    experts: int = 0
    architecture: str = ""
    identity: Identity | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    experts_used: int | None = None
    zero_bias: bool = False

    @property
    def hash(self) -> str:
        """SHA-256 of what is kept: two plans with the same hash make the same file."""
        kept = {str(layer): list(part.keep) for layer, part in sorted(self.layers.items())}
        facts = [self.keep, kept, *([self.experts_used] if self.experts_used else [])]
        facts += ["zero_bias"] * self.zero_bias
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def worst_retained(self) -> tuple[int, float] | None:
        """The layer that loses most, and the share it keeps."""
        known = [(p.retained, layer) for layer, p in self.layers.items() if p.retained is not None]
        return (min(known)[1], min(known)[0]) if known else None

    @property
    def mean_retained(self) -> float | None:
        """Mean over layers of the share kept."""
        known = [part.retained for part in self.layers.values() if part.retained is not None]
        return sum(known) / len(known) if known else None

    @property
    def counts(self) -> tuple[int, int]:
        """The fewest and the most experts that a layer keeps."""
        kept = [len(part.keep) for part in self.layers.values()]
        return min(kept), max(kept)

    def dropped(self, layer: int) -> tuple[int, ...]:
        """Experts of a layer that go, ascending."""
        kept = set(self.layers[layer].keep)
        return tuple(expert for expert in range(self.experts) if expert not in kept)

    def with_mtp(self, layers: Collection[int]) -> Plan:
        """Complete MTP layers: one that the plan lacks gets the experts of the last other layer.

        Decoding does not run them, so statistics say nothing of them.

        Args:
            layers: MTP layers with experts.
        """
        last = self.layers[max(layer for layer in self.layers if layer not in layers)]
        rule = LayerPlan(last.keep, None, LAST_LAYER_RULE)
        added = {layer: rule for layer in sorted(layers) if layer not in self.layers}
        return replace(self, layers={**self.layers, **added})

    def without(self, layers: Collection[int]) -> Plan:
        """Leave layers out."""
        left = {layer: part for layer, part in self.layers.items() if layer not in layers}
        return replace(self, layers=left)

    def as_json(self) -> dict[str, Any]:
        """Give the plan's file form."""
        layers: dict[str, dict[str, Any]] = {}
        for layer, part in sorted(self.layers.items()):
            layers[str(layer)] = {"keep": list(part.keep), "drop": list(self.dropped(layer))}
            if part.retained is not None:
                layers[str(layer)]["retained"] = part.retained
            if part.rule:
                layers[str(layer)]["rule"] = part.rule
        return {
            "format": FORMAT,
            "version": VERSION,
            "architecture": self.architecture,
            "experts": self.experts,
            "keep": self.keep,
            **({"experts_used": self.experts_used} if self.experts_used else {}),
            **({"zero_bias": True} if self.zero_bias else {}),
            "method": self.method,
            "settings": dict(self.settings),
            "model": self.identity.as_dict() if self.identity else None,
            "layers": layers,
        }

    def save(self, path: Path) -> None:
        """Write the plan's file.

        Raises:
            OutputError: it cannot be written.
        """
        write_text(path, json.dumps(self.as_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan, ours or hand-written.

        Raises:
            InputError: it is missing or not a plan, with what is wrong in it.
        """
        return cls.from_json(read_json(path, "a plan"), str(path))

    @classmethod
    def from_json(cls, data: Any, name: str) -> Plan:
        """Make a plan of its file form.

        Args:
            data: as read from JSON.
            name: where it comes from, for messages.

        Raises:
            InputError: it is not a plan, with what is wrong in it.
        """
        if isinstance(data, dict) and data.get("format") == DROP_METADATA:
            raise InputError(
                f"{name}: is drop metadata of a pruned file, not a plan",
                remedy="A plan is what `ggprune plan` wrote; `prune` leaves the model's statistics "
                "beside the result, to make it again: ggprune plan STATS.gguf --keep "
                f"{data.get('keep', 'N')} -o PLAN.json",
            )
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(
                f'{name}: is not a plan: it lacks "format": "{FORMAT}"',
                remedy="Make one with `ggprune plan`; `ggprune lists` makes one of lists of "
                "experts.",
            )
        if "version" not in data:
            raise InputError(f"{name}: has no version, expected {VERSION}")
        if data["version"] != VERSION:
            raise InputError(f"{name}: is of version {data['version']!r:.40}, expected {VERSION}")
        check_shape(data, _SHAPE, name)
        numbers = {key: data.get(key) or 0 for key in ("keep", "experts", "experts_used")}
        for key, value in numbers.items():
            if not 0 <= value <= _MOST_EXPERTS:
                raise InputError(f"{name}: {key} is {value!r:.40}, expected a number of experts")
        experts = numbers["experts"]
        layers = {_layer_number(key, name): part for key, part in data["layers"].items()}
        if not layers:
            raise InputError(f"{name}: layers is empty, expected an entry for each layer")
        plans = {n: _layer_plan(part, experts, f"{name}: layer {n}") for n, part in layers.items()}
        model = data.get("model") or {}
        return cls(
            numbers["keep"] or len(next(iter(plans.values())).keep),
            plans,
            data.get("method") or HAND_WRITTEN,
            experts,
            data.get("architecture") or "",
            Identity(**{f.name: model[f.name] for f in fields(Identity) if f.name in model})
            if model
            else None,
            data.get("settings") or {},
            numbers["experts_used"] or None,
            bool(data.get("zero_bias")),
        )

    def for_model(self, model: MoeModel, name: str = "the plan", *, by_layer: bool = False) -> Plan:
        """Check the plan against a model and complete what a hand-written one leaves out.

        Args:
            name: what to call the plan in messages.
            by_layer: whether layers may keep different numbers, as only a masked copy can.

        Raises:
            MismatchError: it was made for another model.
            InputError: it does not fit: layers, indices, counts, groups, experts used.
        """
        architecture = model.architecture
        if self.architecture and self.architecture != architecture.name:
            raise MismatchError(
                f"{name} is for {self.architecture}, {model.gguf.path} is {architecture.name}"
            )
        if self.experts and self.experts != model.experts:
            raise MismatchError(
                f"{name} is for {self.experts} experts a layer, "
                f"{model.gguf.path} has {model.experts}"
            )
        if self.identity is not None:
            self.identity.check_same(
                model.identity(),
                name,
                str(model.gguf.path),
                remedy='If you know better, set "model" to null in the plan\'s file.',
            )
        for count in self.counts if by_layer else [self.keep]:
            model.counts.check(count)
        model.check_used(self.experts_used, min(self.counts))
        if self.zero_bias:
            check_zero_bias(architecture, f"{name}: zero_bias=True")
        self._check_layers(model, name, by_layer=by_layer)
        changes_used = self.experts_used != model.experts_used
        return replace(
            self,
            experts=model.experts,
            architecture=architecture.name,
            identity=self.identity or model.identity(),
            experts_used=self.experts_used if changes_used else None,
        )

    def _check_layers(self, model: MoeModel, name: str, *, by_layer: bool) -> None:
        missing = [layer for layer in model.moe_layers if layer not in self.layers]
        unknown = [layer for layer in self.layers if layer not in model.expert_layers]
        if missing or unknown:
            what = f"has no layer {missing[0]}" if missing else f"has a layer {unknown[0]}"
            raise InputError(
                f"{name}: {what}, the model has experts in "
                f"{model.expert_layers[0]} to {model.expert_layers[-1]}"
            )
        size = model.experts // model.counts.groups
        for layer, part in self.layers.items():
            expected = len(part.keep) if by_layer else self.keep
            if len(part.keep) != expected or part.keep[-1] >= model.experts:
                raise InputError(
                    f"{name}: layer {layer} keeps {len(part.keep)} experts up to number "
                    f"{part.keep[-1]}, expected {expected} below {model.experts}",
                    remedy="llama.cpp has one number of experts for all layers; counts by layer "
                    "are for masked copies: apply it with mask=True.",
                )
            by_group = [0] * model.counts.groups
            for expert in part.keep:
                by_group[expert // size] += 1
            if len(set(by_group)) > 1:
                raise InputError(
                    f"{name}: layer {layer} keeps {by_group} experts by group, they must be equal"
                )


def check_zero_bias(architecture: Architecture | None, asked: str) -> None:
    """Raise InputError unless routers of an architecture have a bias; begins with ``asked``."""
    if architecture is None or not architecture.router_bias:
        raise InputError(f"{asked}: the router of {getattr(architecture, 'name', '?')} has no bias")


#: More experts than any model has: a number above it is a slip.
_MOST_EXPERTS = 1 << 16
_IDENTITY = {
    f.name + ("" if f.default is MISSING else "?"): int if f.type == "int" else str
    for f in fields(Identity)
}
#: The file's shape, see util.check_shape.
_SHAPE: dict[str, Any] = {
    "keep?": int,
    "experts?": int,
    "experts_used?": int,
    "zero_bias?": bool,
    "method?": str,
    "architecture?": str,
    "settings?": {
        "seed?": int,
        "weights?": {str: float},
        "coverage?": {str: float},
        "calibration?": {str: str},
    },
    "model?": _IDENTITY,
    "layers": {str: {"keep?": [int], "drop?": [int], "retained?": float, "rule?": str}},
}


def _layer_number(key: str, name: str) -> int:
    if not re.fullmatch("0|[1-9][0-9]{0,4}", key):
        raise InputError(f"{name}: {key!r:.40} is not the number of a layer")
    return int(key)


def _layer_plan(part: Mapping[str, Any], experts: int, where: str) -> LayerPlan:
    keep, drop = part.get("keep"), part.get("drop")
    if keep is None and (drop is None or not experts):
        raise InputError(
            f"{where} has no list of experts to keep"
            + ("" if drop is None else ', and with "drop" alone the plan has to say "experts"')
        )
    limit = experts or _MOST_EXPERTS
    gone = set(expert_numbers(drop, limit, f"{where}: drop") if drop and experts else ())
    if keep is None:
        keep = sorted(set(range(experts)) - gone)
    keep = sorted(expert_numbers(keep, limit, f"{where}: keep"))
    if not keep:
        raise InputError(f"{where} keeps no expert")
    if gone and gone != set(range(experts)) - set(keep):
        wrong = min(gone.symmetric_difference(set(range(experts)) - set(keep)))
        raise InputError(
            f"{where}: keep and drop contradict each other, for instance on expert {wrong}",
            remedy="Give one of them.",
        )
    share = part.get("retained")
    if share is not None and not 0 <= share <= 1 + 1e-9:
        raise InputError(f"{where}: retained is {share}, expected a share from 0 to 1")
    return LayerPlan(tuple(keep), None if share is None else float(share), part.get("rule") or "")


def expert_numbers(values: Any, experts: int, where: str) -> list[int]:
    """Check a list of different expert numbers below ``experts``, and return it.

    Raises:
        InputError: it is something else; the message begins with ``where``.
    """
    if not isinstance(values, list) or not all(type(each) is int for each in values):
        raise InputError(f"{where} is not a list of expert numbers")
    outside = next((each for each in values if not 0 <= each < experts), None)
    if outside is not None:
        raise InputError(f"{where} names expert {outside!r:.40}, expected 0 to {experts - 1}")
    if len(set(values)) < len(values):
        twice = next(each for each in values if values.count(each) > 1)
        raise InputError(f"{where} names expert {twice} twice")
    return values
