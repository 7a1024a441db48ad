"""What tests of evaluation share: options that compute exactly, a text, a plan of any experts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ggprune.calibration.observers import RoutingObserver
from ggprune.calibration.statistics import Domain, Statistics
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.model import MoeModel, open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.text.documents import Document, Source

OPTIONS = RunOptions(threads=1, repack=False, gpu_layers=0)
TEXT = "the theory of the rain and the sun is that one is often not in the other's place. " * 8
SOURCES = [Source("text", (Document(text=TEXT),))]


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


def calibrated(path: Path, text: str, tokens: int = 400) -> Statistics:
    """What calibration on a text's first tokens gathers."""
    model = open_model(path)
    observer = RoutingObserver(model.architecture, model.moe_layers, model.experts)
    with LlamaModel(path, OPTIONS) as llama:
        ids = llama.tokenize(text)[:tokens]
        with LlamaContext(llama, n_ctx=512, observers=[observer]) as context:
            for start in range(0, len(ids), 500):
                context.clear()
                context.decode([Tokens(0, 0, ids[start : start + 500])])
    domain = Domain("text", len(ids), SOURCES[0].sha256, observer.take())
    return Statistics(model.identity(), model.moe_layers, (domain,))
