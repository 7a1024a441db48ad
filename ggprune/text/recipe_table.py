"""Published calibration mixes as data: which rows of which data sets, and how they read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ggprune.text.documents import Message
from ggprune.text.layouts import Row, read_turns


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
    form: Callable[[Row], Iterable[Message]]
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


def _pair(question: str, answer: str) -> Callable[[Row], list[Message]]:

    def form(row: Row) -> list[Message]:
        return [Message("user", str(row[question])), Message("assistant", str(row[answer]))]

    return form


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


_CODE_ALPACA = ("theblackcat102/evol-codealpaca-v1", "train")
_THOUGHTS = ("open-r1/Mixture-of-Thoughts", "train")
_XLAM = ("Salesforce/xlam-function-calling-60k", "train")
_SWE_SMITH = ("SWE-bench/SWE-smith-trajectories", "tool")
_GSM8K = ("openai/gsm8k", "train")
_MATH_500 = ("HuggingFaceH4/MATH-500", "test")
_HUMAN_EVAL = ("evalplus/humanevalplus", "test")
_PUBMED = ("qiaojin/PubMedQA", "train")
_SCIENCE = ("derek-thomas/ScienceQA", "train")
_PUBMED_FIELDS = ("question", "context", "long_answer", "final_decision")
_SCIENCE_FIELDS = ("question", "choices", "answer", "hint", "solution")


def _pairs(
    domain: str, dataset: str, split: str, count: int, fields: tuple[str, str], **more: Any
) -> Part:
    return Part(domain, dataset, split, count, fields, _pair(*fields), **more)


def _alpaca(count: int, skip: int = 0) -> Part:
    return _pairs("coding", *_CODE_ALPACA, count, ("instruction", "output"), skip=skip)


def _thoughts(subset: str, count: int) -> Part:
    domain = f"reasoning-{subset}"
    return Part(domain, *_THOUGHTS, count, ("messages",), _conversation, subset)


def _xlam(count: int) -> Part:
    return Part("tool-calling", *_XLAM, count, ("tools", "query", "answers"), _tool_call)


def _swe_smith(count: int) -> Part:
    return Part("agentic-coding", *_SWE_SMITH, count, ("messages",), _conversation)


RECIPES: dict[str, Recipe] = {
    "reap-agentic": Recipe(
        title="REAP's mix for agentic reasoning models",
        origin="https://github.com/CerebrasResearch/reap, README of 2026-03-19",
        note=(
            "Data sets, subsets, splits and counts as published; the fields as in its "
            "src/reap/data.py. The authors draw rows at random and use up to 16,384 tokens of "
            "each; here tool calls are written as JSON text, not in the model's own format. "
            "Salesforce/xlam-function-calling-60k is gated: accept its conditions first."
        ),
        parts=(
            _alpaca(4096),
            _xlam(4096),
            _thoughts("code", 4096),
            _thoughts("math", 4096),
            _thoughts("science", 4096),
            _swe_smith(4096),
        ),
    ),
    "seed-mix": Recipe(
        title="The twelve sources of 0xSero/gemma-4-21b-a4b-it-REAP",
        origin="https://huggingface.co/0xSero/gemma-4-21b-a4b-it-REAP, its card",
        note=(
            "Data sets, subsets and counts as the card lists them. It names no splits and no "
            "fields: those are our choice. MATH-500, GSM8K and HumanEval+ are also benchmarks: "
            "a model calibrated with this mix should not be praised for its score on them."
        ),
        parts=(
            _alpaca(1000),
            _alpaca(1636, skip=1000),
            _thoughts("code", 3480),
            _thoughts("math", 3578),
            _thoughts("science", 3576),
            _xlam(1000),
            _swe_smith(1000),
            Part("biomedical", *_PUBMED, 800, _PUBMED_FIELDS, _pubmed, "pqa_labeled"),
            Part("science", *_SCIENCE, 800, _SCIENCE_FIELDS, _science),
            _pairs("grade-school-math", *_GSM8K, 4466, ("question", "answer"), subset="main"),
            _pairs("competition-math", *_MATH_500, 500, ("problem", "solution")),
            _pairs("code-correctness", *_HUMAN_EVAL, 164, ("prompt", "canonical_solution")),
        ),
    ),
}
