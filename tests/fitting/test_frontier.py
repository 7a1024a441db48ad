"""Which points no smaller file beats, the chart, and the line that prune ends with."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggprune.cli.frontier import command
from ggprune.errors import InputError
from ggprune.fitting import chart
from ggprune.fitting.frontier import Point, marked
from ggprune.fitting.hint import otherwise, remember
from ggprune.fitting.measure import Score


def point(size: int, kld: float, keep: int = 64, types: str = "Q4_K_M") -> Point:
    return Point(keep, types, size, Score(kld, 0.001, kld * 9, "german", kld * 2, 1000))


def test_a_point_is_marked_if_no_smaller_file_is_better() -> None:
    points = marked([point(30, 0.1), point(10, 0.3), point(20, 0.4), point(20, 0.2)])
    assert [(p.size, p.best) for p in points] == [(30, True), (20, False), (20, True), (10, True)]


def test_the_chart_is_xml_with_a_dot_for_each_point() -> None:
    points = marked([point(30, 0.1), point(20, 0.2, 48), point(25, 0.0, types="fit")])
    root = ElementTree.fromstring(chart.svg([p.as_json() for p in points], "a <title>"))
    dots = [each for each in root.iter() if each.tag.endswith("title")]
    assert len(dots) == 3
    assert ElementTree.fromstring(chart.svg([point(5, 0.1).as_json()], "one")) is not None


def test_what_the_same_bytes_buy(trained: Path, tmp_path: Path) -> None:
    size = 18_964_576
    predicted = otherwise(trained, size, work=tmp_path)
    assert "predicted" in predicted and "6.8 bits" in predicted and "\n" not in predicted
    assert f"ggprune fit {trained} --target-size {size}" in predicted
    remember(tmp_path, {"size_bytes": size - 900, "keep": 64, "experts": 64, "kld_mean": 0.0005})
    assert "64 of 64" in (known := otherwise(trained, size, work=tmp_path))
    assert "measured" in known and "0.00050" in known
    assert "predicted" in otherwise(trained, 2 * size, work=tmp_path)
    assert "No type is low enough" in otherwise(trained, 1_000_000, work=tmp_path)


def test_the_report_shows_the_frontier(tmp_path: Path) -> None:
    from ggprune.report import ReportInput, write_report

    points = [p.as_json() for p in marked([point(30_000_000, 0.125), point(20_000_000, 0.25, 48)])]
    page = tmp_path / "report.html"
    report = write_report(page, ReportInput(frontier={"points": points, "experts": 64}))
    text = page.read_text(encoding="utf-8")
    assert report["frontier"]["points"] == points
    assert 'id="frontier"' in text and "0.250" in text and "30.0" in text


@pytest.mark.parametrize(
    ("asked", "message"),
    [(["--keep", "99"], "keep=99: the model has 64"), (["--types", "Q99"], "Q99: is not a quant")],
)
def test_counts_and_types_are_checked_before_calibration(
    trained: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str], message: str
) -> None:
    monkeypatch.setattr(
        "ggprune.fitting.study.Study.__init__", lambda *_: pytest.fail("it calibrates")
    )
    result = CliRunner().invoke(command, [str(trained), *asked])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
