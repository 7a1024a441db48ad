"""What a GGUF file is: its architecture, layers, experts, sizes, identity."""

from ggprune.model.model import ExpertCounts, Identity, MoeModel, describe, open_model

__all__ = ["ExpertCounts", "Identity", "MoeModel", "describe", "open_model"]
