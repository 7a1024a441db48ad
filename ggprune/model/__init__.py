"""What a GGUF file is: its architecture, layers, experts, sizes, identity."""

from ggprune.model.counts import ExpertCounts
from ggprune.model.identity import Identity
from ggprune.model.model import Model, MoeModel, describe, open_model

__all__ = ["ExpertCounts", "Identity", "Model", "MoeModel", "describe", "open_model"]
