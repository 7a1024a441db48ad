"""ggprune: prune the experts of mixture-of-experts GGUF models, offline, still quantized.

As a library::

    from pathlib import Path
    import ggprune

    statistics = ggprune.run_calibration(Path("model.gguf"))
    plan = ggprune.make_plan(statistics, keep=109)
    ggprune.apply_plan(Path("model.gguf"), plan, Path("model-109e.gguf"))

Names are imported when they are first used, so that ``import ggprune`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggprune.api import apply_plan, evaluate_plan, make_plan, run_calibration
    from ggprune.calibration.merge import merge
    from ggprune.calibration.run import Settings
    from ggprune.calibration.statistics import Domain, ExpertSums, Statistics
    from ggprune.choosing.methods.sums import METHODS, score
    from ggprune.errors import GgpruneError
    from ggprune.evaluation.evaluator import Evaluation, Evaluator
    from ggprune.llama.options import RunOptions
    from ggprune.model import Identity, MoeModel, open_model
    from ggprune.plan import LayerPlan, Plan
    from ggprune.version import VERSION

__all__ = [
    "METHODS",
    "VERSION",
    "Domain",
    "Evaluation",
    "Evaluator",
    "ExpertSums",
    "GgpruneError",
    "Identity",
    "LayerPlan",
    "MoeModel",
    "Plan",
    "RunOptions",
    "Settings",
    "Statistics",
    "apply_plan",
    "evaluate_plan",
    "make_plan",
    "merge",
    "open_model",
    "run_calibration",
    "score",
]

_HOME = {
    "api": ("apply_plan", "evaluate_plan", "make_plan", "run_calibration"),
    "calibration.run": ("Settings",),
    "errors": ("GgpruneError",),
    "evaluation.evaluator": ("Evaluation", "Evaluator"),
    "llama.options": ("RunOptions",),
    "calibration.merge": ("merge",),
    "model": ("Identity", "MoeModel", "open_model"),
    "plan": ("LayerPlan", "Plan"),
    "choosing.methods.sums": ("METHODS", "score"),
    "calibration.statistics": ("Domain", "ExpertSums", "Statistics"),
    "version": ("VERSION",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"ggprune.{module}"), name)
    raise AttributeError(f"module 'ggprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
