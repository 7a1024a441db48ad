"""Which of its own Go templates Ollama takes for a model's chat template.

``ollama create`` compares ``tokenizer.chat_template`` with a list in its source
(template/index.json): the nearest entry by edit distance, if that is below 100, names a Go
template that is stored with the model and then wins over the model's own (template/template.go,
server/model.go). So a model may be shown another model's prompt format without a word.

``detected.txt`` has a fingerprint of each entry: each character as one of 32 classes. The distance
of two fingerprints is at most that of the texts, so what Ollama detects is never missed.
benchmarks/ollama_fingerprints.py makes the file from Ollama's source (MIT licence).
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib.resources import files

#: Ollama's limit: a distance from here on is no match.
LIMIT = 100
_CLASSES = "0123456789abcdefghijklmnopqrstuv"


@dataclass(frozen=True, slots=True)
class Detected:
    """One of Ollama's templates, by its name, and how far the model's own is from it."""

    name: str
    distance: int


@functools.lru_cache(8)
def detect(jinja: str) -> Detected | None:
    """Return the Go template that Ollama stores for a chat template; None if it stores none."""
    mine, best = classes_of(jinja), Detected("", LIMIT)
    for name, known in _known() if jinja else ():
        if abs(len(known) - len(mine)) < best.distance:
            distance = edit_distance(known, mine)
            best = min(best, Detected(name, distance), key=lambda each: each.distance)
    return best if best.name else None


def beyond_go(jinja: str) -> str:
    """Return "tools" or "thinking" if a chat template has what most Go templates lack.

    From version 0.30 on Ollama prefers such a chat template to a Go template
    (server/images.go, ``shouldPreferChatTemplate``).
    """
    if "tools" in jinja or "tool_call" in jinja:
        return "tools"
    splits = any(f"content.split({q}</think>{q})" in jinja for q in "'\"")
    own = "reasoning_content" in jinja or "<SPECIAL_12>" in jinja
    thinks = ("<think>" in jinja and "</think>" in jinja) or (splits and not own)
    return "thinking" if thinks else ""


def classes_of(text: str) -> str:
    """Return a text with each character replaced by its class."""
    return "".join(map(_class_of, text))


@functools.cache
def _class_of(character: str) -> str:
    return _CLASSES[hashlib.sha256(character.encode("utf-8", "replace")).digest()[0] % 32]


@functools.cache
def _known() -> tuple[tuple[str, str], ...]:
    text = files(__package__).joinpath("detected.txt").read_text(encoding="ascii")
    return tuple((name, known) for name, known in map(str.split, text.splitlines()))


def edit_distance(pattern: str, text: str) -> int:
    """Return the Levenshtein distance of two texts.

    By bit vectors a column at a time (Myers, https://doi.org/10.1145/316542.316550, in the form of
    Hyyrö), so that templates of thousands of characters are compared in milliseconds.
    """
    if not pattern:
        return len(text)
    places: dict[str, int] = {}
    for i, character in enumerate(pattern):
        places[character] = places.get(character, 0) | 1 << i
    ones = (1 << len(pattern)) - 1
    last = 1 << (len(pattern) - 1)
    more, less, distance = ones, 0, len(pattern)
    for character in text:
        equal = places.get(character, 0)
        down = equal | less
        across = (((equal & more) + more) ^ more) | equal
        rises, falls = less | (~(across | more) & ones), more & across
        distance += bool(rises & last) - bool(falls & last)
        rises, falls = (rises << 1 | 1) & ones, (falls << 1) & ones
        more, less = falls | (~(down | rises) & ones), rises & down
    return distance
