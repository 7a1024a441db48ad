from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ggprune.calibration.statistics import Domain, ExpertSums, Statistics
from ggprune.cli.main import cli
from ggprune.errors import InputError, MismatchError
from ggprune.plan import LayerPlan, Plan
from ggprune.report import (
    ReportInput,
    build,
    concentration,
    example_lines,
    render,
    summary_lines,
    view,
    write_report,
)
from tests.support import report_data
from tests.support.plans import planned

# --- concentration, worked by hand -------------------------------------------------------------


def values(*numbers: float) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.float64)


def test_top_share() -> None:
    assert concentration.top_share(values(1, 4, 3, 2), 2) == pytest.approx(0.7)
    assert concentration.top_share(values(1, 4, 3, 2), 9) == pytest.approx(1)
    assert concentration.top_share(values(0, 0), 1) == 0


def test_experts_for_a_share() -> None:
    # Cumulative shares of 4, 3, 2, 1 are 0.4, 0.7, 0.9, 1.
    assert concentration.experts_for(values(1, 4, 3, 2), 0.8) == 3
    assert concentration.experts_for(values(1, 4, 3, 2), 0.7) == 2
    assert concentration.experts_for(values(1, 4, 3, 2), 0.71) == 3
    assert concentration.experts_for(values(0.6, 0.3, 0.6), 0.8) == 2
    assert concentration.experts_for(values(5, 0, 0), 1.0) == 1
    assert concentration.experts_for(values(0, 0), 0.8) == 0


def test_gini() -> None:
    assert concentration.gini(values(1, 1, 1, 1)) == pytest.approx(0)
    assert concentration.gini(values(0, 0, 1, 0)) == pytest.approx(3 / 4)
    # 2 (1·1 + 2·2 + 3·3 + 4·4) / (4·10) - 5/4 = 60/40 - 5/4
    assert concentration.gini(values(3, 1, 4, 2)) == pytest.approx(0.25)
    assert concentration.gini(values(0, 0)) == 0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30).filter(lambda x: sum(x) > 1e-3))
def test_gini_is_half_the_relative_mean_difference(numbers: list[float]) -> None:
    x = np.array(numbers)
    wanted = np.abs(x[:, None] - x).mean() / (2 * x.mean())
    assert concentration.gini(x) == pytest.approx(wanted, abs=1e-9)


def test_overlap_is_a_mean_over_layers() -> None:
    math = np.array([[4.0, 3, 2, 1], [4, 3, 2, 1]])
    code = np.array([[4.0, 1, 3, 2], [1, 2, 3, 4]])  # shares {0}, then nothing
    table = concentration.overlap([math, code], 2)
    assert table.tolist() == [[2, 0.5], [0.5, 2]]


def test_overlap_leaves_out_layers_without_tokens() -> None:
    math = np.array([[4.0, 3, 2, 1], [0, 0, 0, 0]])
    code = np.array([[4.0, 3, 2, 1], [4, 3, 2, 1]])
    none = np.zeros((2, 4))
    table = concentration.overlap([math, code, none], 2)
    assert table[0, 1] == 2 and table[0, 0] == 2
    assert np.isnan(table[0, 2]) and np.isnan(table[2, 2])


def test_relative() -> None:
    multiples = concentration.relative(np.array([[1.0, 2, 3], [0, 0, 0]]))
    assert multiples.tolist() == [[0.5, 1, 1.5], [0, 0, 0]]
    ranks = concentration.relative(np.array([[-5.0, 9, 3]]))
    assert ranks.tolist() == [[0, 1, 0.5]]


# --- the numbers -------------------------------------------------------------------------------


def small() -> tuple[Statistics, Plan]:
    """One layer of four experts and two domains, for sums by hand."""

    def domain(name: str, contribution: list[float]) -> Domain:
        sums = ExpertSums.zeros(1, 4)
        sums.contribution_sum[0] = contribution
        sums.count[0] = [1, 1, 2, 2]
        sums.tokens[0] = 3
        return Domain(name, 3, name, sums)

    whole = report_data.statistics_of(1, 4, 2)
    parts = (domain("math", [1, 2, 3, 4]), domain("code", [8, 1, 1, 0]))
    statistics = replace(whole, domains=parts)
    return statistics, planned(statistics, 2, "contribution")


def test_how_experts_were_chosen() -> None:
    statistics, plan = small()
    assert build(ReportInput(statistics, plan))["model"]["formula"] == "Σ g‖f‖"
    covered = build(ReportInput(statistics, replace(plan, method="cover")))
    assert "Σ over tokens of exp" in covered["model"]["formula"]


def test_numbers_by_hand() -> None:
    statistics, plan = small()
    report = build(ReportInput(statistics, plan))
    # Sums of both domains: 9, 3, 4, 4 of 20; 0 and 2 stay.
    assert plan.layers[0].keep == (0, 2)
    assert report["retained"]["worst"] == {"layer": 0, "share": pytest.approx(13 / 20)}
    assert report["heat_map"]["scores"] == [[9, 3, 4, 4]]
    assert report["heat_map"]["relative"] == [[1.8, 0.6, 0.8, 0.8]]
    assert report["heat_map"]["dropped"] == [[1, 3]]
    assert report["heat_map"]["counts"] == [[2, 2, 4, 4]]
    # A quarter of four is one: the best of math is 3, of code 0.
    assert report["domains"]["top"] == 1
    assert report["domains"]["overlap"] == [[1, 0], [0, 1]]
    assert report["domains"]["by_chance"] == pytest.approx(1 / 4)
    kept = report["domains"]["retained"]
    assert [part["mean"] for part in kept] == [pytest.approx(4 / 10), pytest.approx(9 / 10)]
    assert report["concentration"]["layers"][0]["experts_for_share"] == 3


def test_blended_scores_are_shown_as_the_plan_blends() -> None:
    statistics, plan = small()
    blended = replace(plan, settings={"weights": {"math": 0.25, "code": 0.75}})
    report = build(ReportInput(statistics, blended))
    # 0.25 · (1, 2, 3, 4)/10 + 0.75 · (8, 1, 1, 0)/10
    assert report["heat_map"]["scores"] == [pytest.approx([0.625, 0.125, 0.15, 0.1])]
    assert "blended" in report["heat_map"]["note"]


def test_methods_that_are_no_score_are_named() -> None:
    statistics, plan = small()
    report = build(ReportInput(statistics, replace(plan, method="search")))
    assert report["heat_map"]["score"] == "contribution"
    assert "search" in report["heat_map"]["note"]


def test_retained_comes_from_statistics_where_the_plan_does_not_say() -> None:
    statistics, _ = small()
    plan = Plan(2, {0: LayerPlan((1, 3))}, experts=4)
    report = build(ReportInput(statistics, plan))
    assert report["retained"]["mean"] == pytest.approx(7 / 20)
    assert build(ReportInput(plan=plan))["retained"] is None


def test_drop_metadata_alone_is_enough() -> None:
    statistics, plan = small()
    metadata = {
        "source": {"name": "a.gguf", "size_bytes": 1000, "fingerprint": "f"},
        "result": {"name": "b.gguf", "size_bytes": 600},
        "keep": 2,
        "experts": 4,
        "method": "contribution",
        "layers": plan.as_json()["layers"],
        "calibration": {"domains": {"math": {"tokens": 3, "sha256": "s"}}, "settings": {"n": 1}},
        "evaluation": report_data.scores(0.1),
    }
    report = build(ReportInput(metadata=metadata))
    assert report["size"] == {"before": 1000, "after": 600, "saved": 400, "saved_share": 0.4}
    measured = ReportInput(statistics, plan, evaluation=report_data.scores(0.1))
    assert report["retained"] == build(measured)["retained"]
    assert report["evaluation"]["kld_mean"] == 0.1
    assert report["provenance"]["plan_sha256"] == plan.hash
    assert report["provenance"]["calibration_texts"]["math"]["tokens"] == 3


def test_nothing_to_report() -> None:
    with pytest.raises(InputError, match="nothing to report"):
        build(ReportInput(command="ggprune"))


def test_statistics_and_plan_of_two_models() -> None:
    statistics, plan = small()
    assert plan.identity is not None
    other = replace(plan, identity=replace(plan.identity, router="other"))
    with pytest.raises(MismatchError, match="router"):
        build(ReportInput(statistics, other))


@pytest.mark.parametrize(
    "broken",
    [
        ReportInput(evaluation={"domains": {"math": 3}, "tokens": 9}),
        ReportInput(evaluation={"domains": [1], "tokens": 9}),
        ReportInput(evaluation={"base": 7}),
        ReportInput(sweep={"points": [1]}),
        ReportInput(sweep={"points": [{"keep": 3}]}),
        ReportInput(sweep={"points": {"a": 1}}),
        ReportInput(sweep={"points": [], "smallest": 3}),
        ReportInput(tasks={"tasks": [{"task": "gsm8k"}]}),
        ReportInput(probe={"modes": {"greedy": 1}}),
        ReportInput(probe={"modes": {"greedy": {"probes": [{"prompt": "Hi"}]}}}),
        ReportInput(metadata={"layers": {"0": {"keep": 1}}, "keep": 3}),
        ReportInput(metadata={"source": "a.gguf", "result": []}),
    ],
)
def test_damaged_parts_are_named(broken: ReportInput, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_report(tmp_path / "report.html", broken)
    assert not list(tmp_path.iterdir())


def test_numbers_that_json_does_not_have() -> None:
    report = build(ReportInput(evaluation={"kld_mean": float("nan"), "ppl_ratio": float("inf")}))
    assert report["evaluation"] == {"kld_mean": None, "ppl_ratio": None}
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("where", ["plan", "metadata"])
def test_calibration_texts_that_only_the_plan_records(where: str, tmp_path: Path) -> None:
    settings = {"calibration": {"code": "c0de"}}
    plan = Plan(3, {0: LayerPlan((0, 1, 2))}, "reap", settings=settings)
    given = ReportInput(plan=plan)
    if where == "metadata":
        layers = {"0": {"keep": [0, 1, 2]}}
        given = ReportInput(metadata={"keep": 3, "layers": layers, "settings": settings})
    report = write_report(tmp_path / "report.html", given)
    assert report["provenance"]["calibration_texts"] == {"code": {"sha256": "c0de"}}
    assert "c0de" in (tmp_path / "report.html").read_text()


# --- the page, without a browser ---------------------------------------------------------------

_NUMBERS = re.compile(r'<script type="application/json" id="numbers">(.*?)</script>', re.DOTALL)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return build(report_data.realistic())


@pytest.fixture(scope="module")
def page(report: dict[str, Any]) -> str:
    return render(report)


def test_page_and_json_hold_the_same_numbers(page: str, report: dict[str, Any]) -> None:
    found = _NUMBERS.search(page)
    assert found
    numbers = json.loads(found[1])
    for name in ("model", "retained", "heat_map", "concentration", "evaluation"):
        assert numbers[name] == report[name]
    own = {(p["method"], p["keep"]): p["kld_mean"] for p in report["sweep"]["points"]}
    shown = {(p["method"], p["keep"]): p["kld_mean"] for p in numbers["sweep"]["points"]}
    assert shown == own


def test_table_of_retained_shares_reads_down_as_the_seed_does(
    page: str, report: dict[str, Any]
) -> None:
    table = re.search(r'<table class="layers">(.*?)</table>', page, re.DOTALL)
    assert table
    rows = re.findall(r"<tr>(.*?)</tr>", table[1])[1:]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    assert [row[::2] for row in cells[:2]] == [["L0", "L10", "L20"], ["L1", "L11", "L21"]]
    assert len(cells) == 10
    shown = {name: text for row in cells for name, text in zip(row[::2], row[1::2], strict=True)}
    for each in report["retained"]["layers"]:
        assert shown[f"L{each['layer']}"] == f"{each['share'] * 100:.2f}\u202f%"


def test_page_refers_to_nothing_outside(page: str) -> None:
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert re.findall(r"(?:src|href)\s*=\s*(\S+)", own) == ['"data:,">']
    assert "@import" not in own and "url(" not in own
    assert "default-src 'none'" in own


def test_page_is_light(page: str) -> None:
    assert len(page.encode()) < 1_000_000


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 7])
def test_few_layers(layers: int) -> None:
    text = render(build(report_data.realistic(layers, 16, 12)))
    assert all(f"<th>L{layer}</th>" in text for layer in range(layers))


def test_tasks_as_the_seed_card_has_them(page: str) -> None:
    text = page.replace("\N{NARROW NO-BREAK SPACE}", " ")
    row = re.search(r"<tr><th>gpqa_diamond_cot_zeroshot</th>(.*?)</tr>", text)
    assert row
    cells = re.findall(r'<td class="n">(.*?)</td>', row[1])
    minus = "\N{MINUS SIGN}"
    assert cells == ["198", "75.25 % ± 3.14 %", "71.72 % ± 3.14 %", f"{minus}3.53 ± 4.44"]


def test_names_are_escaped() -> None:
    evil = "</script><script>alert(1)</script>"
    statistics, plan = small()
    statistics = replace(
        statistics,
        identity=replace(statistics.identity, name=evil),
        domains=tuple(replace(d, name=f"{d.name}{evil}") for d in statistics.domains),
    )
    measured = {**report_data.scores(0.1), "domains": {evil: report_data.scores(0.1)}}
    text = render(build(ReportInput(statistics, plan, evaluation=measured, command=evil)))
    assert text.count("</script") == text.count("<script") == 5
    assert "alert(1)" in text


@pytest.mark.parametrize(
    "part",
    [
        ReportInput(evaluation={"kld_mean": 0.1}),
        ReportInput(evaluation={"kld_mean": 0.1, "domains": {}}),
        ReportInput(plan=small()[1]),
        ReportInput(statistics=small()[0]),
        ReportInput(metadata={"source": {"name": "a.gguf"}, "result": None}),
        ReportInput(sweep=report_data.sweep()),
        ReportInput(probe=report_data.probe()),
        ReportInput(tasks=report_data.tasks()),
        ReportInput(probe={"modes": {"greedy": {}}}),
        ReportInput(sweep={"points": []}, probe={}, plan=small()[1]),
    ],
)
def test_missing_parts_are_left_out(part: ReportInput) -> None:
    report = build(part)
    assert "<h1>" in render(report)
    assert 0 < len(summary_lines(report)) < 25, report


# --- the terminal ------------------------------------------------------------------------------


def ruined() -> ReportInput:
    """Everything that can be bad is."""
    given = report_data.realistic(keep=64)
    bad = report_data.evaluation()
    bad["ppl_ratio"] = 1.9
    for name in bad["domains"]:
        bad["domains"][name]["ppl_ratio"] = 1.5
    bad["domains"]["code"]["ppl_ratio"] = 4.0
    bad["domains"]["code"]["tokens"] = 5_000
    probe = report_data.probe()
    probe["modes"]["greedy"]["gate"]["checks"]["loops"]["verdict"] = "fail"
    return replace(given, evaluation=bad, probe=probe)


def test_summary_is_short_and_says_bad() -> None:
    report = build(ruined())
    assert [each["gate"] for each in report["findings"]] == [
        "perplexity", "cliff", "domain", "answers",
    ]  # fmt: skip
    lines = summary_lines(report)
    assert len(lines) < 25
    assert sum(line.startswith("BAD: ") for line in lines) == 4
    assert any("1.90" in line for line in lines)
    fewer = summary_lines(report, 16)
    assert len(fewer) == 16 and fewer[-8:] == lines[-8:]
    assert [line.split() for line in fewer[:8]] == [line.split() for line in lines[:8]]
    text = render(report)
    assert f"{len(report['findings'])} things" in text
    assert "<code>ggprune sweep</code> shows" in text


def test_an_example_is_the_first_prompt_that_the_whole_model_answers_well() -> None:
    probe = report_data.probe()
    for mode in probe["modes"].values():
        first, second, _ = mode["probes"]
        first["base"]["ended"] = False
        second["prompt"] = "Say \n\x1b[1mwhy."
        second["base"]["text"] = "Because it is " + "so very " * 40
        second["candidate"] |= {"text": "", "ended": False, "loop": True}
    asked, whole, pruned = example_lines(probe)
    assert asked == "asked        Say \\u001b[1mwhy."
    assert whole.startswith("whole model  Because it is so very") and whole.endswith("so very …")
    assert 140 < len(whole) < 180
    assert pruned == "pruned       (nothing)"


def test_an_example_is_the_first_prompt_if_none_is_answered_well() -> None:
    probe = report_data.probe()
    for mode in probe["modes"].values():
        for each in mode["probes"]:
            each["base"]["loop"] = True
    assert example_lines(probe)[0] == "asked        Prompt of code-toposort"
    assert example_lines({"modes": {"greedy": {}}}) == example_lines(None) == []


def test_summary_of_a_good_plan_does_not_say_bad() -> None:
    report = build(report_data.realistic(keep=124))
    assert report["findings"] == []
    text = "\n".join(summary_lines(report))
    assert "BAD" not in text
    assert "16.8 GB -> 14.4 GB (-14.1 %)" in text
    assert "128 -> 124 a layer, by contribution" in text
    assert "Nothing bad was found" in render(report)


def test_settings_that_are_nested_are_shown() -> None:
    values = {
        "weights": {"chat": 0.25, "code": 0.75},
        "search": {"rounds": 3, "meter": {"tokens": 4096}},
        "protect": ["code", "math"],
        "pooled": False,
        "text": None,
        "hashes": {f"name {i}": "0" * 64 for i in range(9)},
    }
    assert view.settings(values) == (
        "weights: chat 0.25, code 0.75; search: rounds 3, meter (tokens 4096); "
        "protect: code, math; pooled: no"
    )


def test_box_and_chart_name_the_same_layers() -> None:
    report = build(replace(report_data.realistic(6, 64, 44), evaluation=None, probe=None))
    low = [each["layer"] for each in report["retained"]["layers"] if each["low"]]
    text = render(report)
    assert len(low) == 6 and "6 layers keep less than 95%" in text
    assert text.count('class="n worst"') >= 6 and "Orange: layers below 95" in text


def test_measured_cost_and_its_scale_are_said() -> None:
    report = build(replace(report_data.realistic(6, 64, 44), sweep=None))
    assert report["findings"] == [], "the layers keep little, but that cost little"
    text = render(report)
    assert 'class="n worst"' not in text and "Orange:" not in text
    assert "Nothing bad was found" in text and "0.031 to Q4_K_M and 0.10 to Q3_K_M" in text
    assert any("0.031 to Q4_K_M" in line for line in summary_lines(report))


def test_summary_never_rounds_up_to_all() -> None:
    statistics, plan = small()
    almost = replace(plan, layers={0: LayerPlan((0, 2), 0.999999)})
    assert "100.00 %" not in "\n".join(summary_lines(build(ReportInput(statistics, almost))))


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(7.0, 2, "7.0"), (12.04, 2, "12"), (0.0220, 3, "0.0220"), (1234.5, 3, "1230"), (0, 3, "0"),
     (3.2e-7, 2, "3.2e-07"), *((other, 3, "\N{EN DASH}") for other in (None, "x", True))],
)  # fmt: skip
def test_significant_digits(value: Any, digits: int, text: str) -> None:
    assert view.number(value, digits) == text


# --- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    given = report_data.realistic(6, 16, 12)
    assert given.statistics and given.plan
    given.statistics.save(folder / "s.gguf")
    given.plan.save(folder / "p.json")
    options = ["--statistics", str(folder / "s.gguf"), "--plan", str(folder / "p.json")]
    for name in ("metadata", "evaluation", "sweep", "probe", "tasks", "frontier"):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(getattr(given, name)))
        options += [f"--{name}", str(path)]
    return options


def test_command_writes_the_page_and_says_the_essential(inputs: list[str], tmp_path: Path) -> None:
    target = tmp_path / "r.html"
    ran = CliRunner().invoke(cli, ["report", *inputs, "-o", str(target)])
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.startswith("model ")
    assert str(target) in ran.stderr and str(target) not in ran.stdout
    assert target.read_text().startswith("<!doctype html>")


def test_command_prints_json(inputs: list[str], tmp_path: Path) -> None:
    ran = CliRunner().invoke(cli, ["report", *inputs, "--json"])
    assert ran.exit_code == 0, ran.output
    wanted = build(replace(report_data.realistic(6, 16, 12), command=""))
    assert json.loads(ran.stdout) == json.loads(json.dumps(wanted))
    assert not list(tmp_path.iterdir())


def test_command_does_not_replace_files_unasked(inputs: list[str], tmp_path: Path) -> None:
    target = tmp_path / "r.html"
    target.write_text("mine")
    arguments = ["report", *inputs, "-o", str(target)]
    ran = CliRunner().invoke(cli, arguments)
    assert ran.exit_code != 0 and target.read_text() == "mine"
    assert CliRunner().invoke(cli, [*arguments, "--force"]).exit_code == 0
    assert target.read_text() != "mine"


@pytest.mark.parametrize("text", ["", "[1]", "{", "\xff"])
def test_command_with_bad_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    path.write_bytes(text.encode("latin-1"))
    ran = CliRunner().invoke(cli, ["report", "--evaluation", str(path), "--json"])
    assert isinstance(ran.exception, InputError)
    assert str(path) in str(ran.exception)


# --- in a browser ------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    # Nothing is resolved, so that whatever the page asked for would fail and be complained about.
    "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--hide-scrollbars",
    "--no-pdf-header-footer", "--window-size=1200,900", "--dump-dom",
]  # fmt: skip
_LIGHT, _DARK = "1", "0"


@dataclass(frozen=True)
class Visit:
    """What Chromium made of a page."""

    dom: str
    console: list[str]
    screenshot: Path
    pdf: Path

    @property
    def charts(self) -> dict[str, str]:
        parts = re.split(r'<div class="chart" data-chart="([^"]+)"', self.dom)
        return dict(zip(parts[1::2], parts[2::2], strict=True))


def visit(folder: Path, text: str, scheme: str = _LIGHT) -> Visit:
    """Open a page from the disk, print it and take a picture."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    page, shot, pdf = (folder / f"report.{suffix}" for suffix in ("html", "png", "pdf"))
    page.write_text(text, encoding="utf-8")
    command = [
        CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}", f"--screenshot={shot}",
        f"--print-to-pdf={pdf}", f"--blink-settings=preferredColorScheme={scheme}", page.as_uri(),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    console = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return Visit(ran.stdout, console, shot, pdf)


#: Points at three cells of the heat map, one before and two after sorting, and notes the tooltips.
_HOVER = """<script>
const told = [];
function hover(row, column) {
  const svg = document.querySelector('[data-chart="heat-map"] svg');
  const box = svg.querySelector("image").getBoundingClientRect();
  const at = {
    bubbles: true, pointerType: "mouse",
    clientX: box.x + box.width * (column + 0.5) / 128,
    clientY: box.y + box.height * (row + 0.5) / 30,
  };
  svg.dispatchEvent(new PointerEvent("pointerenter", at));
  svg.dispatchEvent(new PointerEvent("pointermove", at));
  told.push(svg.querySelector('[aria-label="tip"]').textContent);
}
hover(3, 7);
document.getElementById("sort").click();
hover(3, 0);
hover(3, 127);
const note = document.createElement("pre");
note.id = "told";
note.textContent = told.join("|");
document.body.append(note);
</script></body>"""


@pytest.fixture(scope="module")
def visited(page: str, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    return visit(tmp_path_factory.mktemp("light"), page.replace("</body>", _HOVER))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """60 layers of 512 experts, on a dark screen."""
    text = render(build(report_data.realistic(60, 512, 384)))
    assert len(text.encode()) < 2_000_000
    return visit(tmp_path_factory.mktemp("dark"), text, _DARK)


@pytest.mark.process
def test_page_makes_no_requests_and_no_complaints(visited: Visit, large: Visit) -> None:
    assert visited.console == []
    assert large.console == []


@pytest.mark.process
def test_complaints_would_be_noticed(page: str, tmp_path: Path) -> None:
    harm = '<main><img src="https://example.invalid/a.png"><script>throw new Error(1)</script>'
    console = "\n".join(visit(tmp_path, page.replace("<main>", harm)).console)
    assert "example.invalid" in console and "Uncaught Error" in console


@pytest.mark.process
def test_all_charts_are_drawn(visited: Visit, large: Visit) -> None:
    for seen, layers in ((visited, 30), (large, 60)):
        assert set(seen.charts) == {
            "kld-by-domain", "ratio-by-domain", "sweep-kld", "sweep-ratio", "retained",
            "heat-map", "top-share", "experts-for-share", "gini", "frontier",
        }  # fmt: skip
        for name, text in seen.charts.items():
            drawn = text[: text.index("</svg>")]
            assert re.search(r"<(path|rect|circle|image) ", drawn), name
        retained = seen.charts["retained"]
        assert len(re.findall(r"<(?:rect|path) ", retained)) >= layers
        assert seen.charts["heat-map"].count("data:image/png") == 2


@pytest.mark.process
def test_heat_map_tells_about_an_expert_and_sorts(visited: Visit, report: dict[str, Any]) -> None:
    found = re.search(r'<pre id="told">(.*?)</pre>', visited.dom, re.DOTALL)
    assert found
    plain, best, worst = found[1].split("|")
    heat_map = report["heat_map"]
    scores = heat_map["scores"][3]
    state = "dropped" if 7 in heat_map["dropped"][3] else "kept"
    assert f"Layer 3, expert 7: {state}" in plain
    assert f"{heat_map['counts'][3][7]:,} tokens" in plain
    assert f"Layer 3, expert {int(np.argmax(scores))}: kept" in best and "rank 1," in best
    assert f"Layer 3, expert {int(np.argmin(scores))}: dropped" in worst and "rank 128," in worst


def corner(png: Path) -> tuple[int, int, int]:
    """The first pixel of an 8-bit RGB(A) image; filters leave it alone."""
    data, at, packed = png.read_bytes(), 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    red, green, blue = zlib.decompressobj().decompress(packed, 4)[1:4]
    return red, green, blue


@pytest.mark.process
def test_light_and_dark(visited: Visit, large: Visit) -> None:
    assert corner(visited.screenshot) == (255, 255, 255)
    assert corner(large.screenshot) == (20, 24, 29)


@pytest.mark.process
def test_prints_on_a_few_pages(visited: Visit) -> None:
    data = visited.pdf.read_bytes()
    assert data.startswith(b"%PDF-")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 8


@pytest.mark.process
@pytest.mark.skipif(not shutil.which("pdftotext"), reason="no pdftotext")
def test_paper_has_no_closed_sections(visited: Visit, page: str) -> None:
    assert "Dropped experts by layer" in page
    shown = subprocess.run(["pdftotext", visited.pdf, "-"], capture_output=True, text=True).stdout
    assert "Dropped experts by layer" not in shown and "Scores of all experts" in shown


def test_tables_need_no_javascript(page: str) -> None:
    still = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    for text in ("<th>L29</th>", "Ppl, pruned", "Mean KL", "JSON parses", "<noscript>"):
        assert text in still
