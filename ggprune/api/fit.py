"""The best file of a size, under its public name."""

from ggprune.fitting.job import fit_model as fit

__all__ = ["fit"]
