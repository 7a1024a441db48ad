"""Published calibration mixes: how rows of their data sets read; which rows is in recipes.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from ggprune.text.documents import Message
from ggprune.text.layouts import Row, read_turns

Form = Callable[[Row], Iterable[Message]]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one data set.

    Attributes:
        domain: the name its text is counted under.
        dataset: owner/name on the Hub.
        count: rows.
        form: makes a document's turns of a row's fields.
        subset: of the data set ("configuration"); None for its only one.
        skip: rows that an earlier part of the same data set has taken.
    """

    domain: str
    dataset: str
    split: str
    count: int
    fields: tuple[str, ...]
    form: Form
    subset: str | None = None
    skip: int = 0

    def __str__(self) -> str:
        subset = f"[{self.subset}]" if self.subset else ""
        return f"{self.dataset}{subset}({self.split})"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A mix: its title, where it was published, what is known of it and what is not, its parts."""

    title: str
    origin: str
    note: str
    parts: tuple[Part, ...]

    @property
    def count(self) -> int:
        """Rows of all parts."""
        return sum(part.count for part in self.parts)


def _pair(question: str, answer: str) -> tuple[tuple[str, str], Form]:
    def form(row: Row) -> list[Message]:
        return [Message("user", str(row[question])), Message("assistant", str(row[answer]))]

    return (question, answer), form


def _conversation(row: Row) -> Iterable[Message]:
    return read_turns(row["messages"], "messages")


def _tool_call(row: Row) -> list[Message]:
    """xLAM: the tools, a query, and the calls that answer it."""
    return [
        Message("system", f"You can call these tools:\n{_as_json(row['tools'])}"),
        Message("user", str(row["query"])),
        Message("assistant", _as_json(row["answers"])),
    ]


def _as_json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _pubmed(row: Row) -> list[Message]:
    context = "\n".join(row["context"]["contexts"])
    answer = f"{row['long_answer']}\n\nAnswer: {row['final_decision']}"
    return [Message("user", f"{context}\n\n{row['question']}"), Message("assistant", answer)]


def _science(row: Row) -> list[Message]:
    letters = "ABCDEFGH"
    choices = [f"{letter}. {text}" for letter, text in zip(letters, row["choices"], strict=False)]
    question = "\n".join(filter(None, [row["hint"], row["question"], *choices]))
    answer = f"Answer: {letters[row['answer']]}"
    return [
        Message("user", question),
        Message("assistant", "\n\n".join(filter(None, [row["solution"], answer]))),
    ]


#: How rows read, by the name that recipes.json uses: their fields, and the turns made of these.
_FORMS: dict[str, tuple[tuple[str, ...], Form]] = {
    "instruction": _pair("instruction", "output"),
    "question": _pair("question", "answer"),
    "problem": _pair("problem", "solution"),
    "prompt": _pair("prompt", "canonical_solution"),
    "messages": (("messages",), _conversation),
    "xlam": (("tools", "query", "answers"), _tool_call),
    "pubmed": (("question", "context", "long_answer", "final_decision"), _pubmed),
    "scienceqa": (("question", "choices", "answer", "hint", "solution"), _science),
}


def _part(form: str, **stated: Any) -> Part:
    fields, make = _FORMS[form]
    return Part(fields=fields, form=make, **stated)


def _recipe(parts: Iterable[Mapping[str, Any]], **stated: str) -> Recipe:
    return Recipe(parts=tuple(_part(**part) for part in parts), **stated)


RECIPES: dict[str, Recipe] = {
    name: _recipe(**stated)
    for name, stated in json.loads(
        files(__package__).joinpath("recipes.json").read_text(encoding="utf-8")
    ).items()
}
