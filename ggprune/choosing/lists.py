"""Lists of experts by layer, as other tools write and read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from ggprune.choosing.scores import choose_all
from ggprune.errors import InputError
from ggprune.model import MoeModel
from ggprune.plan import LayerPlan, Plan, expert_numbers

#: What a list holds: the experts that stay, those that go, or all of them, the best first.
Meaning = Literal["kept", "dropped", "ranked"]
METHOD = "imported"

#: Parts of keys that tell the meaning.
_TELLS: dict[Meaning, re.Pattern[str]] = {
    "kept": re.compile(r"keep|kept|retain|remain|surviv", re.IGNORECASE),
    "dropped": re.compile(r"drop|prun|remov|delet", re.IGNORECASE),
    "ranked": re.compile(r"rank|order|sort", re.IGNORECASE),
}
#: A key that names a layer has one number in it: 3, layer_3, model.layers.3.mlp, blk.3.
_LAYER = re.compile(r"\D*?(\d{1,4})\D*")
_NUMBER_KEYS = ("layer", "layer_idx", "layer_id", "layer_index")
_LAYOUTS = (
    'Known layouts: {"0": [3, 17], …} by block number (also "layer_0", "model.layers.0.mlp"), '
    '{"pruned": {"0": [3, 17], …}}, {"0": {"keep": [3, 17]}, …}, '
    '[{"layer": 0, "drop": [3, 17]}, …], and [[3, 17], …] with one list for each layer that has '
    "experts."
)


def plan_from_lists(
    data: Any,
    model: MoeModel,
    *,
    meaning: Meaning | None = None,
    keep: int | None = None,
    name: str = "the lists",
) -> Plan:
    """Make a plan of lists by layer.

    Args:
        data: as read from JSON, in any of the known layouts.
        model: that the lists are for; layers are its block numbers.
        meaning: what the lists hold; None where their keys tell.
        keep: experts a layer, for ranked lists.
        name: where the lists come from, for messages.

    Raises:
        InputError: it is something else, does not tell what the lists hold, or does not fit the
            model.
    """
    try:
        told, lists = _find(data, model, name, None)
    except RecursionError:
        lists = {}
    if not lists:
        raise InputError(f"{name}: has no lists of experts by layer", remedy=_LAYOUTS)
    meaning = meaning or told
    if meaning is None:
        raise InputError(
            f"{name}: does not tell whether its experts are kept or dropped",
            remedy="Say it: meaning=kept, meaning=dropped or meaning=ranked.",
        )
    if meaning == "ranked":
        if keep is None:
            raise InputError(
                f"{name}: ranks experts and does not say how many stay", remedy="Give keep=N."
            )
        model.counts.check(keep)
    layers = {}
    for layer, experts in sorted(lists.items()):
        numbers = expert_numbers(experts, model.experts, f"{name}: layer {layer}")
        stays = _kept(numbers, meaning, model, keep)
        if not stays:
            raise InputError(f"{name}: layer {layer} keeps no expert")
        layers[layer] = LayerPlan(stays)
    plan = Plan(len(next(iter(layers.values())).keep), layers, METHOD)
    return plan.for_model(model, name)


def lists_of(plan: Plan, meaning: Meaning) -> dict[str, dict[str, list[int]]]:
    """Write a plan as lists by layer: ``{"dropped": {"0": [3, 17], …}}``.

    Raises:
        InputError: a plan does not rank.
    """
    if meaning == "ranked":
        raise InputError("meaning=ranked: a plan does not rank experts")
    if meaning == "dropped" and not plan.experts:
        raise InputError("the plan does not say how many experts there are")
    layers = sorted(plan.layers)
    kept = {str(n): list(plan.layers[n].keep) for n in layers}
    return {meaning: kept if meaning == "kept" else {str(n): list(plan.dropped(n)) for n in layers}}


def _kept(
    numbers: list[int], meaning: Meaning, model: MoeModel, keep: int | None
) -> tuple[int, ...]:
    if meaning == "kept":
        return tuple(sorted(numbers))
    if meaning == "dropped":
        return tuple(sorted(set(range(model.experts)) - set(numbers)))
    assert keep is not None
    scores = np.full((1, model.experts), -np.inf)
    scores[0, numbers] = -np.arange(len(numbers))
    best: list[int] = choose_all(scores, keep, model.counts.groups)[0].tolist()
    return tuple(best) if np.isfinite(scores[0, best]).all() else ()


def _find(
    data: Any, model: MoeModel, name: str, told: Meaning | None
) -> tuple[Meaning | None, dict[int, Any]]:
    """Find the lists and what they hold."""
    if isinstance(data, list):
        return _from_list(data, model, name, told)
    if not isinstance(data, dict):
        return told, {}
    inner = data.get("layers")
    if isinstance(inner, dict | list):
        return _find(inner, model, name, told)
    for meaning in get_args(Meaning):
        for key, value in data.items():
            if _TELLS[meaning].search(key) and not _LAYER.fullmatch(key) and _nested(value):
                return _find(value, model, name, meaning)
    lists: dict[int, Any] = {}
    for key, value in data.items():
        match = _LAYER.fullmatch(key)
        if match and isinstance(value, list | dict):
            told, lists[_unused(int(match[1]), lists, name)] = _of_layer(key, value, name, told)
    return told, lists


def _nested(value: Any) -> bool:
    """Whether it holds lists of several layers, rather than experts of one."""
    return isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(each, list | dict) for each in value)
    )


def _from_list(
    data: list[Any], model: MoeModel, name: str, told: Meaning | None
) -> tuple[Meaning | None, dict[int, Any]]:
    lists: dict[int, Any] = {}
    for entry in (entry for entry in data if isinstance(entry, dict)):
        number = next((entry[k] for k in _NUMBER_KEYS if type(entry.get(k)) is int), None)
        if number is not None:
            rest = {key: value for key, value in entry.items() if key not in _NUMBER_KEYS}
            told, lists[_unused(number, lists, name)] = _of_layer(str(number), rest, name, told)
    if lists or not data or not all(isinstance(entry, list) for entry in data):
        return told, lists
    if len(data) != len(model.moe_layers):
        raise InputError(
            f"{name}: has {len(data)} lists, the model has experts in {len(model.moe_layers)} "
            "layers",
            remedy='Name the layers: {"0": […], …} by block number.',
        )
    return told, dict(zip(model.moe_layers, data, strict=True))


def _unused(layer: int, lists: Mapping[int, Any], name: str) -> int:
    if layer in lists:
        raise InputError(f"{name}: names layer {layer} twice")
    return layer


def _of_layer(key: str, value: Any, name: str, told: Meaning | None) -> tuple[Meaning | None, Any]:
    """Return the list of one layer, and what it holds if a key says so."""
    if isinstance(value, list):
        return told, value
    for meaning in get_args(Meaning):
        for inner, experts in value.items():
            if _TELLS[meaning].search(inner) and isinstance(experts, list):
                if told not in (None, meaning):
                    raise InputError(f"{name}: layer {key} says {meaning}, others {told}")
                return meaning, experts
    raise InputError(f"{name}: layer {key} has no list of experts", remedy=_LAYOUTS)
