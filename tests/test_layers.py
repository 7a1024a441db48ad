"""The packages form a list, and each imports only what stands before it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ggprune"

#: From the bottom to the top; CONTRIBUTING.md's table has the same order.
LAYERS = (
    "errors",
    "types",
    "util",
    "version",
    "gguf_file",
    "model",
    "plan",
    "llama",
    "hub",
    "text",
    "calibration",
    "rewrite",
    "evaluation",
    "choosing",
    "quantization",
    "fitting",
    "report",
    "publish",
    "pipeline",
    "api",
    "doctor",
    "batch_config",
    "batch",
    "cli",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(name: str) -> Iterator[str]:
    """Modules of the package that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def layer(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer(name) for name in MODULES} == {"", *LAYERS}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_layers_below_its_own(name: str) -> None:
    if not layer(name):
        return  # ggprune/__init__.py only forwards names.
    own = LAYERS.index(layer(name))
    upward = [other for other in imports(name) if layer(other) and LAYERS.index(layer(other)) > own]
    if name == "ggprune.llama.quantizer":
        upward.remove("ggprune.quantization.imatrix")  # Until it is handed the arrays.
    assert upward == []


@pytest.mark.xfail(strict=True, reason="choosing is still one circle")
def test_no_circle_of_modules() -> None:
    graph = {name: {o for o in imports(name) if o != name} for name in MODULES if layer(name)}
    while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert sorted(graph) == []
