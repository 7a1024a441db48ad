"""Text is divided into parts that have nothing in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggprune.errors import InputError
from ggprune.text.documents import Source
from ggprune.text.held_out import choose_text


def lines(sources: tuple[Source, ...]) -> list[str]:
    return [line for s in sources for d in s.documents for line in d.text.splitlines()]


@pytest.mark.parametrize("evaluated", [False, True])
def test_search_text_is_set_aside(tmp_path: Path, evaluated: bool) -> None:
    whole = [f"line {n}" for n in range(100)]
    (tmp_path / "t.txt").write_text("\n".join(whole))
    (tmp_path / "e.txt").write_text("other")
    named = [("text", str(tmp_path / "t.txt"))]
    held_out = [("text", str(tmp_path / "e.txt"))] if evaluated else []
    choice = choose_text(named, held_out, search_share=0.2)
    parts = [lines(part) for part in (choice.calibration, choice.search)]
    if evaluated:
        assert lines(choice.held_out) == ["other"]
    else:
        parts.append(lines(choice.held_out))
    assert [line for part in parts for line in part] == whole
    assert [len(part) for part in parts] == ([80, 20] if evaluated else [72, 18, 10])


def test_nothing_is_set_aside_unless_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\n" * 10)
    assert choose_text([("text", str(tmp_path / "t.txt"))]).search == ()
    assert choose_text([], search_share=0.2).search == ()


def test_one_line_is_split_between_words(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("word " * 100)
    choice = choose_text([("one", str(tmp_path / "one.txt"))])
    assert lines(choice.calibration) == ["word " * 90]
    assert lines(choice.held_out) == ["word " * 10]


def test_one_word_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "word.txt").write_text("word")
    with pytest.raises(InputError, match="no text left to hold out"):
        choose_text([("one", str(tmp_path / "word.txt"))])
