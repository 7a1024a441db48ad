"""ggprune: prune the experts of mixture-of-experts GGUF models, offline, still quantized.

As a library::

    import ggprune

    pruned = ggprune.prune("model.gguf", keep=109)
    print(pruned.path, pruned.evaluation)

or stage by stage::

    statistics = ggprune.calibrate("model.gguf")
    plan = ggprune.choose(statistics, keep=109)
    print(ggprune.evaluate("model.gguf", plan).total)
    ggprune.apply("model.gguf", plan, "model-109e.gguf")

The names are listed in ``__init__.pyi``, and imported when they are first used, so that
``import ggprune`` costs nothing. Notes go to the logger ``ggprune``; a function's ``progress``
shows how far it is. Every error is a GgpruneError.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def _home() -> dict[str, tuple[str, str]]:
    """Read where each public name lives, as (module, name there)."""
    import ast
    from pathlib import Path

    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name: (str(node.module), alias.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__all__":
        return sorted(_home())
    # Private names, submodules among them, are asked for by Python itself.
    if (name.startswith("__") and name != "__version__") or name not in _home():
        raise AttributeError(f"module 'ggprune' has no attribute {name!r}")
    module, there = _home()[name]
    return getattr(importlib.import_module(module), there)


def __dir__() -> list[str]:
    return sorted(_home())
