"""Generation side by side: what the base model and a candidate write when asked the same."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ggprune.calibration.generate import Sampling, generate
from ggprune.evaluation.probe_gate import Answer, gate
from ggprune.gguf_file import GgufModel
from ggprune.llama.callback import Observer
from ggprune.llama.session import LlamaModel
from ggprune.text import chat
from ggprune.text.answers import final_answer, json_of
from ggprune.text.builtin import PROBES, builtin_file
from ggprune.text.documents import Document, Message
from ggprune.types import Advance, no_advance

FORMAT = "ggprune-probe"
_VERSION = 2
GREEDY = "greedy"
SAMPLED = "sampled"
#: The kind of prompts that ask for a sentence or two.
SHORT = "short"
#: Below this share of distinct 4-grams a text goes round in circles.
LOOP_RATIO = 0.55
#: A text shorter than this many 4-grams says nothing about its variety.
_FEWEST_GRAMS = 32
#: A suffix counts as repeated if a piece stands at the end this often, and this many tokens long.
_REPEATS = 4
_REPEATED_TOKENS = 24
#: Used where a model states no settings of its own.
DEFAULT_SAMPLING = Sampling(temperature=0.7, top_p=0.9)
_SPECIAL = re.compile(r"<\|?[a-z_]+\|?>")


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt.

    Attributes:
        name: its identifier.
        kind: code, math, philosophy, long_context, repetition, tools, language or short.
        messages: the conversation to continue.
        expect_json: whether the answer must be one JSON object.
    """

    name: str
    kind: str
    messages: tuple[Message, ...]
    expect_json: bool = False


def builtin_probes() -> list[Probe]:
    """Return the prompts that ship with ggprune."""
    probes = []
    for line in builtin_file(PROBES).splitlines():
        record = json.loads(line)
        messages = tuple(Message(turn["role"], turn["content"]) for turn in record["messages"])
        probes.append(Probe(record["id"], record["kind"], messages, bool(record["expect_json"])))
    return probes


def own_sampling(gguf: GgufModel) -> Sampling:
    """Return the settings a model's file states (``general.sampling.*``), or DEFAULT_SAMPLING."""
    temperature = gguf.get("general.sampling.temp")
    if temperature is None:
        return DEFAULT_SAMPLING
    # 0 means no limit to llama.cpp; what lies beyond the default's 64 tokens is noise.
    top_k = int(gguf.get("general.sampling.top_k", 0)) or Sampling().top_k
    top_p = float(gguf.get("general.sampling.top_p", 1.0))
    return Sampling(temperature=float(temperature), top_p=top_p, top_k=top_k)


def answer_all(
    llama: LlamaModel,
    probes: Sequence[Probe],
    modes: Mapping[str, Sampling],
    *,
    max_tokens: int,
    parallel: int,
    observers: Sequence[Observer] = (),
    advance: Advance = no_advance,
) -> dict[str, list[Answer]]:
    """Let a model answer every probe in every mode, many at a time.

    Args:
        llama: loaded.
        probes: the prompts.
        modes: settings by name.
        max_tokens: of each answer.
        parallel: sequences at the same time.
        observers: a mask.
        advance: called with the number of tokens just generated.
    """
    with GgufModel(llama.path) as gguf:
        template = chat.template_of(llama, gguf.get("tokenizer.chat_template"))
    prompts = [chat.tokenize(llama, template, Document(messages=p.messages)) for p in probes]
    found = {}
    for mode, sampling in modes.items():
        answers = generate(
            llama,
            prompts,
            max_tokens=max_tokens,
            parallel=parallel,
            sampling=sampling,
            observers=observers,
            advance=advance,
        )
        found[mode] = [
            measure(llama, ids, expect_json=probe.expect_json)
            for probe, ids in zip(probes, answers, strict=True)
        ]
    return found


def measure(llama: LlamaModel, ids: Sequence[int], *, expect_json: bool = False) -> Answer:
    """Measure one answer."""
    ended = bool(ids) and llama.ends_generation(ids[-1])
    said = list(ids[:-1]) if ended else list(ids)
    data = b"".join(llama.piece(token) for token in said)
    text, valid = decode(data, cut=not ended)
    ratio = distinct_ratio(said)
    return Answer(
        text=text,
        tokens=len(said),
        words=len(_SPECIAL.sub(" ", text).split()),
        distinct4=ratio,
        loop=ratio < LOOP_RATIO or ends_in_repetition(said),
        collapse=not text.strip() or len(set(said)) == 1 or not valid,
        ended=ended,
        end=llama.text(ids[-1:]) if ended else "",
        json=is_json(text) if expect_json else None,
    )


def decode(data: bytes, *, cut: bool) -> tuple[str, bool]:
    """Text, and whether it is valid UTF-8; ``cut``: it may end within a character."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data, final=not cut), True
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace"), False


def distinct_ratio(ids: Sequence[int]) -> float:
    """Distinct 4-grams over all 4-grams; 1 where there are too few to say."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return len(set(grams)) / len(grams) if len(grams) >= _FEWEST_GRAMS else 1.0


def ends_in_repetition(ids: Sequence[int]) -> bool:
    """Whether the same piece stands at the end at least four times, 24 tokens or more in all."""
    for period in range(1, len(ids) // _REPEATS + 1):
        length = period * max(_REPEATS, -(-_REPEATED_TOKENS // period))
        tail = list(ids[-length:])
        if len(ids) >= length and tail[period:] == tail[:-period]:
            return True
    return False


def is_json(text: str) -> bool:
    """Whether an answer, without thoughts and code fences, is one JSON object."""
    return isinstance(json_of(final_answer(text)), dict)


def summary(answers: Sequence[Answer]) -> dict[str, float | int | None]:
    """Means and rates over answers."""
    count = max(len(answers), 1)
    asked = [answer.json for answer in answers if answer.json is not None]
    return {
        "probes": len(answers),
        "mean_words": sum(answer.words for answer in answers) / count,
        "mean_tokens": sum(answer.tokens for answer in answers) / count,
        "distinct4": sum(answer.distinct4 for answer in answers) / count,
        "loop_rate": sum(answer.loop for answer in answers) / count,
        "collapse_rate": sum(answer.collapse for answer in answers) / count,
        "ended_rate": sum(answer.ended for answer in answers) / count,
        "json_rate": sum(asked) / len(asked) if asked else None,
    }


def side_by_side(
    probes: Sequence[Probe],
    base: Mapping[str, Sequence[Answer]],
    candidate: Mapping[str, Sequence[Answer]],
    *,
    names: tuple[str, str],
    settings: Mapping[str, Any],
    modes: Mapping[str, Sampling],
) -> dict[str, Any]:
    """Return what ``ggprune probe`` writes.

    Args:
        probes: the prompts.
        base, candidate: answers by mode, in the order of the probes.
        names: of both models.
        settings: how it was run.
        modes: settings by name.
    """
    return {
        "format": FORMAT,
        "version": _VERSION,
        "base": names[0],
        "candidate": names[1],
        "settings": dict(settings),
        "modes": {
            mode: {
                "sampling": asdict(sampling),
                **_mode(probes, base[mode], candidate[mode]),
            }
            for mode, sampling in modes.items()
        },
    }


def _mode(
    probes: Sequence[Probe], base: Sequence[Answer], candidate: Sequence[Answer]
) -> dict[str, Any]:
    rows = list(zip(probes, base, candidate, strict=True))
    kinds = dict.fromkeys(probe.kind for probe in probes)
    return {
        "base": summary(base),
        "candidate": summary(candidate),
        "gate": gate(base, candidate),
        "kinds": {
            kind: {
                "base": summary([b for p, b, _ in rows if p.kind == kind]),
                "candidate": summary([c for p, _, c in rows if p.kind == kind]),
            }
            for kind in kinds
        },
        "probes": [
            {
                "id": p.name,
                "kind": p.kind,
                "prompt": p.messages[-1].content,
                "base": asdict(b),
                "candidate": asdict(c),
            }
            for p, b, c in rows
        ],
    }


def without_texts(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``ggprune probe`` writes without the answers: what a file can hold on to."""
    left_out = ("probes", "kinds")
    modes = {
        name: {key: value for key, value in mode.items() if key not in left_out}
        for name, mode in found["modes"].items()
    }
    return {**found, "modes": modes}
