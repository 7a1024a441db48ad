"""Everything that can be known of a request is refused before anything is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ggprune.calibration.run import Run
from ggprune.choosing.check import check_request
from ggprune.choosing.request import Budget, Request
from ggprune.cli.main import cli
from ggprune.errors import InputError
from ggprune.model import ExpertCounts
from tests.support.tiny import write_tiny

LAYERS, DOMAINS = (1, 2, 3), ("code", "prose")
COUNTS = ExpertCounts(16, 4)


def check(counts: ExpertCounts = COUNTS, **asked: Any) -> None:
    budget = asked.pop("budget", Budget(keep=8))
    check_request(Request(budget=budget, **asked), "qwen3moe", LAYERS, counts, DOMAINS)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"method": "rep"}, "method=rep: .* Did you mean reap"),
        ({"always_keep": ("99:1",)}, "always_keep=99:1: there is no such layer"),
        ({"always_keep": ("1:16",)}, "always_keep=1:16: there is no such layer or expert"),
        ({"always_keep": ("one",)}, "always_keep=one: is not LAYER:EXPERT"),
        ({"always_keep": ("1:0,1,2,3,4,5,6,7,8",)}, "layer 1: 9 experts are protected"),
        ({"protect_domains": ("cod=0.9",)}, "protect_domains=cod=0.9: .* Did you mean code"),
        ({"protect_domains": ("code=9",)}, "'9' is no coverage"),
        ({"blend": "pros=1"}, "blend=pros=1: .* Did you mean prose"),
        ({"blend": "uniforme"}, "blend=uniforme: .* Did you mean uniform"),
        ({"blend": "code=x"}, "'x' is not a weight"),
        ({"blend": "maxmin", "method": "reap"}, "blend=maxmin: scores by method=reap"),
        ({"blend": "maxmin", "method": "weights"}, "no sums over tokens"),
        ({"rounds": 2, "method": "auto"}, "rounds=2: method=auto does not score"),
        ({"experts_used": 17, "budget": Budget(retain=0.9)}, "experts_used=17: the model uses 4"),
        ({"experts_used": 9, "budget": Budget(keep=8)}, "uses 4, and 8 are kept"),
        ({"budget": Budget(keep=3)}, "keep=3: at least 4"),
        ({"budget": Budget(keep=17)}, "keep=17: the model has 16"),
        ({"budget": Budget(keep=9, multiple_of=4)}, "keep=9: is not a multiple of 4"),
        ({"budget": Budget(ratio=0.5, multiple_of=40)}, "multiple_of=40"),
        ({"budget": Budget(keep=9, ratio=0.5)}, "keep=9, ratio=0.5: give one"),
        ({"budget": Budget()}, "how many experts"),
    ],
)
def test_what_the_header_and_the_texts_decide(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check(**asked)


def test_a_budget_checks_its_own_fields() -> None:
    with pytest.raises(InputError, match="rounding='left'"):
        Budget(keep=9, rounding="left")  # type: ignore[arg-type]


def test_what_is_possible_passes() -> None:
    check(method="auto", blend="maxmin", always_keep=("1:3;2:4",), protect_domains=("code",))
    check(method="contribution", rounds=2, blend="code=2", experts_used=3)
    check(budget=Budget(target_size=10**9))
    with pytest.raises(InputError, match="of group 0"):
        check(ExpertCounts(16, 4, 4, 2), always_keep=("1:0,1,2",))


@pytest.mark.llama
@pytest.mark.parametrize(
    "wrong",
    [
        ["--method", "rep"],
        ["--always-keep", "99:1"],
        ["--protect-domain", "foo"],
        ["--blend", "foo=1"],
        ["--method", "auto", "--search-text", "a=missing.txt"],
        ["--experts-used", "9"],
    ],
)
def test_prune_refuses_before_it_calibrates(
    wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option's slip costs a second, not an hour."""
    model = str(write_tiny(tmp_path / "m.gguf", "qwen3moe"))
    monkeypatch.setattr(Run, "run_into", lambda *_, **__: pytest.fail("calibrates"))
    run = CliRunner().invoke(
        cli, ["prune", model, "--keep", "8", *wrong, "-o", str(tmp_path / "o.gguf")]
    )
    assert isinstance(run.exception, InputError), run.output
    assert wrong[-1].partition("=")[0] in run.exception.message
