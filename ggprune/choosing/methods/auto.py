"""The best of the one-shot methods, by measuring their plans."""

from __future__ import annotations

from ggprune.choosing.methods.method import Method, register
from ggprune.choosing.search.measuring import best

register(
    Method(
        name="auto",
        formula="the best of the one-shot methods on the search text",
        source="docs/methods.md#measuring-plans",
        needs="search",
        decide=best,
    )
)
