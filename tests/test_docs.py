"""The documentation: what is made from the source is up to date, and links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import textwrap
from pathlib import Path

import click
import pytest

from ggprune.cli.main import COMMANDS, DEFAULT, cli
from ggprune.model.architectures import ARCHITECTURES
from tests.support.layers import MODULES, tree

ROOT = Path(__file__).parents[1]
MAKER = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
PAGES = [
    *(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("*.md"))),
    *(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("docs/*.md"))),
]


@pytest.mark.parametrize("name", MAKER["TABLES"])
def test_tables_are_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == MAKER["page"](name), "run `make docs`"


def anchors(page: Path) -> set[str]:
    """Headings as GitHub turns them into anchors."""
    headings = re.findall(r"^#+ +(.+?) *$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.replace("`", "")).lower().replace(" ", "-")
        for heading in headings
    }


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


EXAMPLES = [
    (name, text)
    for name in PAGES
    for text in re.findall(
        r"^```python\n(.*?)^```", (ROOT / name).read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
]


@pytest.mark.parametrize(("name", "text"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_python_examples_name_what_there_is(name: str, text: str) -> None:
    """Each compiles, its imports work, and what it takes from a module is there."""
    modules = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules[alias.asname or alias.name] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            assert module is None or hasattr(module, node.attr), f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("name", PAGES)
def test_files_of_the_repository_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    folders = "tests|benchmarks|fixtures|examples|ggprune|docs"
    named = re.findall(rf"\b((?:{folders})/[a-z0-9_/.-]+\.[a-z0-9]+)\b", text)
    if name != "CHANGELOG.md":  # Which tells of files that have gone.
        assert [path for path in named if not (ROOT / path).exists()] == []


def test_example_of_an_architecture_is_the_source() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Adding an architecture")[2].partition("\n## ")[0]
    examples = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
    sources = ("ggprune/model/architectures.py", "tests/support/tiny/architectures.py")
    for example, source in zip(examples, sources, strict=True):
        assert textwrap.indent(example, "    ") in (ROOT / source).read_text(encoding="utf-8")


def test_an_architecture_is_named_in_one_module() -> None:
    """Knowledge of architectures is one table; Ollama's own list goes by model."""
    others = {
        name: named
        for name, path in MODULES.items()
        if not name.startswith(("ggprune.model.architectures", "ggprune.publish.ollama"))
        and (named := strings(path) & ARCHITECTURES.keys() - {"llama", "deepseek"})
    }
    assert others == {}, "llama is also a tokenizer, deepseek a reasoning format"


def strings(path: Path) -> set[str]:
    nodes = ast.walk(tree(path))
    return {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and node.value.__class__ is str
    }


def named_options() -> list[tuple[str, str, str]]:
    """Page, command and option wherever a page writes a command line of ggprune."""
    found = []
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"(?:^|`|\$ )ggprune ([^`\n]+)", text, re.MULTILINE):
            words = line.split("#")[0].split("|")[0].split()
            command = words[0] if words and words[0] in COMMANDS else DEFAULT
            options = [word.partition("=")[0].rstrip(".,;:)]") for word in words]
            found += [(name, command, each) for each in options if re.match(r"--[a-z]", each)]
    return sorted({each for each in found if each[0] != "CHANGELOG.md"})


def test_options_that_are_named_exist() -> None:
    wrong = []
    for name, command, option in named_options():
        found = cli.get_command(click.Context(cli), command)
        assert found is not None
        known = {each for p in found.params for each in (*p.opts, *p.secondary_opts)}
        if option not in known | {"--help", "--version", "--help-all"}:
            wrong.append((name, command, option))
    assert wrong == []
    assert len(named_options()) > 30


def test_guided_tours_pass_what_there_is() -> None:
    """Each row names a module and what it defines."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(ggprune/[\w/]+\.py)` \| (.+?) \|", text, re.MULTILINE)
    assert len(rows) > 20
    for module, where in rows:
        defined = {getattr(node, "name", None) for node in tree(ROOT / module).body}
        assert set(re.findall(r"`(\w+)`", where)) <= defined, module
