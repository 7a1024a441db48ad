"""The packages form a list, and each imports only what stands before it."""

from __future__ import annotations

import re

import pytest

from tests.support.layers import LAYERS, MODULES, ROOT, imports, layer


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer(name) for name in MODULES} == {"", *LAYERS}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_layers_below_its_own(name: str) -> None:
    if not layer(name):
        return  # ggprune/__init__.py only forwards names.
    own = LAYERS.index(layer(name))
    upward = [other for other in imports(name) if layer(other) and LAYERS.index(layer(other)) > own]
    assert upward == []


def test_no_circle_of_modules() -> None:
    graph = {name: {o for o in imports(name) if o != name} for name in MODULES if layer(name)}
    while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert sorted(graph) == []


def test_no_test_module_imports_another() -> None:
    """What several need is in tests/support."""
    tests = ROOT / "tests"
    lines = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in tests.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*(from|import) tests\.([a-z_]+\.)?test_", line)
    ]
    assert lines == []
