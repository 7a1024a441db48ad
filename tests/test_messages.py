"""Messages speak to programs: outside the command line none names an option of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from ggprune.cli.main import COMMANDS, cli
from tests.support.layers import PACKAGE, tree

#: Whole command lines name options as they are written there.
COMMAND_LINE = re.compile(r"ggprune |pip install|llama-|CMAKE_ARGS|--num_fewshot")


@cache
def options() -> set[str]:
    commands = [cli.get_command(click.Context(cli), name) for name in COMMANDS]
    return {flag for c in commands if c for p in c.params for flag in p.opts if flag[:2] == "--"}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """String constants of a module that are prose: no docstrings, no single words."""
    nodes = list(ast.walk(tree(path)))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    documentation = {
        id(parent.body[0].value)
        for parent in nodes
        if isinstance(parent, documented) and ast.get_docstring(parent)
    }
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            text = "".join(p.value for p in node.values if isinstance(p, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if id(node) not in documentation and " " in text.strip():
            yield node.lineno, text


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(PACKAGE.rglob("*.py")) if "cli" not in p.relative_to(PACKAGE).parts],
    ids=lambda path: path.relative_to(PACKAGE).as_posix(),
)
def test_no_message_names_an_option(path: Path) -> None:
    found = [
        (line, text)
        for line, text in texts(path)
        for word in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
        if word in options() and not COMMAND_LINE.search(text)
    ]
    assert not found
