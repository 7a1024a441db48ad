"""The layers of the package, and what its modules import, read from their source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ggprune"

#: From the bottom to the top: each imports only what stands before it.
LAYERS = (
    "errors",
    "types",
    "util",
    "fields",
    "interrupts",
    "system",
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


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a module; several tests look at every one."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(name: str) -> tuple[str, ...]:
    """Modules of the package that a module imports, anywhere in it."""
    return tuple(_imports(name))


def _imports(name: str) -> Iterator[str]:
    for node in ast.walk(tree(MODULES[name])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def layer(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def purpose(name: str) -> str:
    """The first paragraph of a layer's docstring."""
    text = ast.get_docstring(tree(MODULES[f"ggprune.{name}"]))
    return " ".join((text or "").partition("\n\n")[0].split())
