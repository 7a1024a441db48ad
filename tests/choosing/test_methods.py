"""The table of methods: what is made from it, and that adding to it takes one file."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggprune.choosing.choose import rank
from ggprune.choosing.methods import METHODS, Method, find, register
from ggprune.choosing.methods.method import NEEDS
from ggprune.choosing.request import DEFAULT, DEFAULT_OF_SUMS, Budget, Request, Resources
from ggprune.cli.main import cli
from ggprune.errors import InputError
from ggprune.publish.card import METHODS as CARD_METHODS
from tests.support.plans import planned
from tests.support.statistics import routed, statistics_of

ROOT = Path(__file__).parents[2]
KEEP = Request(budget=Budget(keep=8))


@pytest.fixture
def harmonic() -> Iterator[Method]:
    """The worked example of CONTRIBUTING.md, registered from outside."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text.partition("## Adding a method")[2], re.S)
    exec(compile(example, "CONTRIBUTING.md", "exec"), {})
    yield METHODS["harmonic"]
    del METHODS["harmonic"]


def test_the_worked_example_stands_everywhere(harmonic: Method) -> None:
    statistics = statistics_of()
    plan = planned(statistics, 8, "harmonic")
    assert plan.method == "harmonic" and all(len(part.keep) == 8 for part in plan.layers.values())
    for command in ("plan", "prune"):
        assert "harmonic" in CliRunner().invoke(cli, [command, "--help"]).output
    with pytest.raises(Exception, match="Did you mean harmonic"):
        find("harmonics")
    assert "harmonic" in rank(find("auto"), statistics, KEEP, Resources())
    tables = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    assert "| `harmonic` | 2 / (1/N + 1/Σ g‖f‖) | statistics |" in tables["page"]("docs/methods.md")
    assert CARD_METHODS["harmonic"].described.endswith("2 / (1/N + 1/Σ g‖f‖) (an example)")


def test_it_is_gone_again() -> None:
    assert "harmonic" not in CliRunner().invoke(cli, ["plan", "--help"]).output


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="reap already"):
        register(METHODS["reap"])


def test_every_method_says_what_it_needs_and_has_one_way_to_choose() -> None:
    for name, method in METHODS.items():
        assert method.name == name and method.needs in NEEDS and method.formula and method.source
        ways = (method.sums, method.score, method.decide)
        assert sum(way is not None for way in ways) == 1, name
        assert (method.decide is not None) == (method.needs == "search"), name
    assert {DEFAULT, DEFAULT_OF_SUMS} <= METHODS.keys()


def test_auto_tries_what_the_statistics_allow() -> None:
    statistics, auto = statistics_of(domains=2), find("auto")
    sums = rank(auto, statistics, KEEP, Resources())
    assert list(sums) == ["contribution", "contribution, maxmin", "gate", "reap"]
    blended = rank(auto, statistics, replace(KEEP, blend="maxmin"), Resources())
    assert list(blended) == ["contribution, maxmin", "gate, maxmin"]
    one = routed()
    tried = rank(auto, one, KEEP, Resources())
    assert list(tried) == [DEFAULT, "cover", "contribution", "gate", "reap"]
    # With several domains a candidate may weigh them, and its plan says so.
    two = rank(auto, replace(one, domains=one.domains * 2), KEEP, Resources())
    assert list(two) == [DEFAULT, "cover", "contribution, maxmin", "contribution", "gate", "reap"]
    blends = [ranking.decided(8).facts.get("blend") for ranking in two.values()]
    assert blends == [None, None, "maxmin", None, None, None]


def test_covering_needs_the_routing_of_tokens() -> None:
    statistics = statistics_of(domains=1)
    for name, method in METHODS.items():
        if method.needs == "routing":
            with pytest.raises(InputError, match=f"method={name}: the statistics hold sums only"):
                planned(statistics, 8, name)


def test_no_module_tells_methods_apart_by_name() -> None:
    """Names of methods stand in their own modules, in the defaults, and nowhere else."""
    names = "|".join(map(re.escape, METHODS))
    compared = re.compile(rf"(==|!=|\bin \(|\bis) ?[\"']({names})[\"']")
    for path in (ROOT / "ggprune").rglob("*"):
        if path.suffix in (".py", ".j2") and "methods" not in path.parts:
            for line in path.read_text(encoding="utf-8").splitlines():
                assert not compared.search(line) or '"auto"' in line, f"{path}: {line}"
