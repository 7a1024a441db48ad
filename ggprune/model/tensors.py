"""Which tensors hold one slice an expert, recognised by name and checked by shape.

The expert axis is always the outermost one, so the slice of an expert is contiguous.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ggprune.errors import UnsupportedModelError
from ggprune.gguf_file import Tensor


class Role(enum.Enum):
    """What a per-expert tensor is for."""

    GATE = "gate"
    UP = "up"
    DOWN = "down"
    GATE_UP = "gate_up"
    BIAS = "bias"
    SCALE = "scale"
    INPUT_SCALE = "input_scale"
    ROUTER = "router"
    ROUTER_BIAS = "router_bias"
    SELECTION_BIAS = "selection_bias"


#: Roles of the experts' weight matrices.
MATRICES: Final = frozenset({Role.GATE, Role.UP, Role.DOWN, Role.GATE_UP})


@dataclass(frozen=True, slots=True)
class ExpertTensor:
    """A tensor of a model with one slice an expert."""

    layer: int
    role: Role
    tensor: Tensor


def _roles() -> dict[str, Role]:
    roles = {
        "ffn_gate_inp.weight": Role.ROUTER,
        "ffn_gate_inp.bias": Role.ROUTER_BIAS,
        "exp_probs_b.bias": Role.SELECTION_BIAS,
        "exp_probs_b": Role.SELECTION_BIAS,  # hy_v3 names it without a suffix
        "exp_probs_b_vl.bias": Role.SELECTION_BIAS,  # deepseek4, for image tokens
        "ffn_gate_up_exps.weight": Role.GATE_UP,
        "ffn_gate_up_exps.bias": Role.BIAS,
    }
    for part in (Role.GATE, Role.UP, Role.DOWN):
        stem = f"ffn_{part.value}_exps"
        roles[f"{stem}.weight"] = part
        roles[f"{stem}.bias"] = Role.BIAS
        roles[f"{stem}.scale"] = Role.SCALE
        roles[f"{stem}.input_scale"] = Role.INPUT_SCALE
    return roles


#: Roles by the tensor's name without ``blk.N.``.
ROLES: Final[Mapping[str, Role]] = MappingProxyType(_roles())

#: Names that look per expert and are not, with what they are.
SHARED_TENSORS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "ffn_gate_inp.scale": "gemma4: scale of the router's input, [n_embd]",
        "ffn_norm_exps.weight": "arctic: norm before the experts, [n_embd]",
        "ffn_gate_tid2eid.weight": "deepseek4: experts by token, see hash_routing",
    }
)

#: A table of the experts that each token uses, [n_expert_used, n_vocab]: see hash_routing.
HASH_TABLE: Final = "ffn_gate_tid2eid.weight"

# The grovemoe tensors are known, but no model that has them is pruned.
_LOOKS_PER_EXPERT = re.compile(
    r"exps|exp_probs|expert|tid2eid|^ffn_gate_inp\.|^ffn_(gate|up|down)\.\d+\."
)
_ONE_EXPERT = re.compile(r"^ffn_(gate|up|down)\.\d+\.")
_LAYER = re.compile(r"blk\.(\d+)\.(.+)", re.DOTALL)


def layer_of(name: str) -> int | None:
    """Return N of a tensor ``blk.N.…``, or None."""
    match = _LAYER.fullmatch(name)
    return int(match[1]) if match else None


def role_of(name: str) -> Role | None:
    """Recognise a per-expert tensor by name; None: the tensor is not per expert.

    The caller checks that the outermost dimension equals ``expert_count``.

    Raises:
        UnsupportedModelError: an unknown tensor that looks per expert; copying it unchanged could
            give a model that loads and computes nonsense.
    """
    match = _LAYER.fullmatch(name)
    suffix = match[2] if match else name
    if match and suffix in ROLES:
        return ROLES[suffix]
    if (match and suffix in SHARED_TENSORS) or not _LOOKS_PER_EXPERT.search(suffix):
        return None
    if _ONE_EXPERT.search(suffix):
        raise UnsupportedModelError(
            f"tensor {name} holds one expert in the layout that llama.cpp gave up in 2024",
            remedy="Convert the model again with a current convert_hf_to_gguf.py.",
        )
    raise UnsupportedModelError(
        f"tensor {name} looks as if it had a part for every expert, and ggprune does not know it",
        remedy="A newer ggprune may know it; please report the model.",
    )
