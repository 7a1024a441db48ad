"""Ways to choose experts: every module here registers its methods in METHODS.

A new method is a new module; nothing else names it. See CONTRIBUTING.md.
"""

from __future__ import annotations

import importlib
import pkgutil

from ggprune.choosing.methods.method import METHODS, Method, find, of_sums, ordered, register

__all__ = ["METHODS", "Method", "find", "of_sums", "ordered", "register"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
