"""What tests of evaluation share: options that compute exactly, a text, a plan of any experts."""

from __future__ import annotations

import numpy as np

from ggprune.llama.options import RunOptions
from ggprune.model import MoeModel
from ggprune.plan import LayerPlan, Plan

OPTIONS = RunOptions(threads=1, repack=False, gpu_layers=0)
TEXT = "the theory of the rain and the sun is that one is often not in the other's place. " * 8


def random_plan(model: MoeModel, keep: int, seed: int = 0) -> Plan:
    """Any experts, the same number in every group."""
    draw = np.random.default_rng(seed)
    size = model.experts // model.counts.groups

    def kept() -> tuple[int, ...]:
        groups = [
            start + draw.choice(size, keep // model.counts.groups, replace=False)
            for start in range(0, model.experts, size)
        ]
        return tuple(sorted(np.concatenate(groups).tolist()))

    return Plan(keep, {layer: LayerPlan(kept()) for layer in model.moe_layers})
