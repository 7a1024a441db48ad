"""A journal of measurements goes on where it was cut, and is of one thing."""

from __future__ import annotations

from pathlib import Path

from ggprune.evaluation.journal import Journal


def test_what_was_measured_is_known_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, {"source": "a"})
    journal.put("64:Q8_0", {"kld_mean": 0.5})
    journal.put("48:Q8_0", [1.0, 2.5])
    assert Journal(path, {"source": "a"}).known == journal.known
    for rest in ('["cut sh', "3\n", '[["no name"], 1]\n', "[1, 2, 3]\n"):
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(rest)
        again = Journal(path, {"source": "a"})
        assert again.known == journal.known
        again.put("64:Q8_0", {"kld_mean": 0.5})
        assert Journal(path, {"source": "a"}).known == journal.known
    assert len(path.read_text(encoding="utf-8").splitlines()) == 3


def test_what_is_of_another_thing_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path, {"source": "a"}).put("name", 1)
    assert Journal(path, {"source": "b"}).known == {}
    assert Journal(path, {"source": "a"}).known == {}


def test_without_a_file_nothing_is_kept() -> None:
    journal = Journal(None, "anything")
    journal.put("name", 1)
    assert journal.known == {"name": 1}
