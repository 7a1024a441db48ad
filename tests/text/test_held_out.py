"""Text is divided into parts that have nothing in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggprune.errors import InputError
from ggprune.text.builtin import SEARCH, builtin_texts
from ggprune.text.documents import Source
from ggprune.text.held_out import choose_texts


def lines(sources: tuple[Source, ...]) -> list[str]:
    return [line for s in sources for d in s.documents for line in d.text.splitlines()]


@pytest.mark.parametrize("evaluated", [False, True])
def test_search_text_is_set_aside(tmp_path: Path, evaluated: bool) -> None:
    whole = [f"line {n}" for n in range(100)]
    (tmp_path / "t.txt").write_text("\n".join(whole))
    (tmp_path / "e.txt").write_text("other")
    named = [("text", str(tmp_path / "t.txt"))]
    held_out = [("text", str(tmp_path / "e.txt"))] if evaluated else []
    choice = choose_texts(named, held_out, searches=True)
    parts = [lines(part) for part in (choice.calibration, choice.search)]
    if evaluated:
        assert lines(choice.held_out) == ["other"]
    else:
        parts.append(lines(choice.held_out))
    assert [line for part in parts for line in part] == whole
    assert [len(part) for part in parts] == ([80, 20] if evaluated else [72, 18, 10])


def test_nothing_is_set_aside_unless_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\n" * 10)
    texts = choose_texts([("text", str(tmp_path / "t.txt"))])
    assert len(lines(texts.calibration)) == 9
    builtin = builtin_texts(SEARCH)
    assert texts.search == choose_texts([], searches=True).search == builtin


def test_search_text_of_its_own_leaves_the_other_whole(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\n" * 10)
    (tmp_path / "s.txt").write_text("b\n" * 10)
    search = [("mine", str(tmp_path / "s.txt"))]
    texts = choose_texts([("text", str(tmp_path / "t.txt"))], search=search, searches=True)
    assert len(lines(texts.calibration)) == 9
    assert lines(texts.search) == ["b"] * 10


def test_one_line_is_split_between_words(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("word " * 100)
    choice = choose_texts([("one", str(tmp_path / "one.txt"))])
    assert lines(choice.calibration) == ["word " * 90]
    assert lines(choice.held_out) == ["word " * 10]


def test_one_word_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "word.txt").write_text("word")
    with pytest.raises(InputError, match="no text left to hold out"):
        choose_texts([("one", str(tmp_path / "word.txt"))])
