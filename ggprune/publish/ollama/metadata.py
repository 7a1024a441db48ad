"""What a GGUF's metadata says about running it: stops, context, sampling, licence, messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ggprune.errors import InputError
from ggprune.publish.ollama.families import CHANNEL_PAIRS, END_OF_TURN, SAMPLING, Renderer
from ggprune.publish.ollama.templates import Family
from ggprune.publish.ollama.text import number
from ggprune.text.chat import ChatTemplate
from ggprune.text.documents import Message

#: Context length in tokens written when none is asked for, or the model's own if that is shorter:
#: long enough for a conversation, and its cache fits beside a model that just fits in memory.
DEFAULT_NUM_CTX = 8192

_END_IDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eot", "eos", "eom"))
_NAME_KEYS = ("name", "basename", "size_label", "base_model.0.name")

Parameters = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Facts:
    """The parts of the metadata that several decisions need; empty where a key is missing.

    ``tokens`` are the vocabulary's texts by id, ``known`` the same as a set, ``end_ids`` the ids
    named as ends of a turn, a text or a message.
    """

    architecture: str
    name: str
    jinja: str
    tokens: tuple[str, ...]
    known: frozenset[str]
    end_ids: tuple[int, ...]
    context_length: int
    experts: int

    @classmethod
    def of(cls, metadata: Mapping[str, object]) -> Facts:
        """Pick the facts out of a GGUF's keys and decoded values."""
        architecture = _text(metadata.get("general.architecture"))
        listed = metadata.get("tokenizer.ggml.tokens")
        tokens = tuple(map(_text, listed)) if isinstance(listed, Iterable) else ()
        ids = (metadata.get(key) for key in _END_IDS)
        length = metadata.get(f"{architecture}.context_length")
        experts = metadata.get(f"{architecture}.expert_count")
        return cls(
            architecture=architecture,
            name=" ".join(_text(metadata.get(f"general.{key}")) for key in _NAME_KEYS),
            jinja=_text(metadata.get("tokenizer.chat_template")),
            tokens=tokens,
            known=frozenset(tokens),
            end_ids=tuple(int(n) for n in ids if isinstance(n, int)),
            context_length=int(length) if isinstance(length, int) else 0,
            experts=experts if isinstance(experts, int) else 0,
        )


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def stops(facts: Facts, rule: Renderer | None, family: Family | None, asked: str) -> list[str]:
    """Return the texts at which a turn ends, each once.

    They are the tokens that the metadata names by id, and those end-of-turn tokens that the chat
    template (or the Go template chosen instead) writes and the vocabulary has; ``asked`` is added.
    """
    found = [rule.stop] if rule and rule.stop else []
    found += [facts.tokens[n] for n in facts.end_ids if 0 <= n < len(facts.tokens)]
    written = [token for token in END_OF_TURN if token in facts.jinja]
    written += family.stops if family else ()
    found += [token for token in written if token in facts.known or not facts.known]
    for pair in CHANNEL_PAIRS:
        if facts.known.issuperset(pair):
            found = [token for token in found if token != "<|end|>"]
    return [token for token in dict.fromkeys([*found, asked]) if token.strip()]


def context(facts: Facts, asked: object) -> tuple[Parameters, list[str]]:
    """Return ``num_ctx`` and what to say about it.

    ``asked`` is None for the model's own length up to ``DEFAULT_NUM_CTX``, 0 to leave it out.

    Raises:
        InputError: ``asked`` is not a whole number, or negative.
    """
    trained = facts.context_length
    if asked is None:
        if not trained:
            return [], []
        chosen = min(trained, DEFAULT_NUM_CTX)
        note = [f"num_ctx: the model was made for {trained}; more takes more memory."]
        return [("num_ctx", str(chosen))], note if chosen < trained else []
    chosen = int(number("num_ctx", asked))
    if chosen < 0:
        raise InputError(
            f"num_ctx is {chosen}, not a number of tokens",
            remedy="Give a positive number, or 0 to leave it to Ollama.",
        )
    note = [f"num_ctx {chosen} is more than the {trained} tokens the model was made for."]
    return [("num_ctx", str(chosen))] if chosen else [], note if 0 < trained < chosen else []


def sampling(
    metadata: Mapping[str, object], asked: Mapping[str, object]
) -> tuple[Parameters, list[str]]:
    """Return sampling settings found in the metadata, then those asked for, and notes on the rest.

    Raises:
        InputError: an unknown parameter or an ill-typed value.
    """
    found = {name: metadata[key] for key, name in SAMPLING.items() if key in metadata}
    left = [
        f"{key} has no counterpart in Ollama: left out."
        for key in metadata
        if key.startswith("general.sampling.") and key not in SAMPLING
    ]
    return [(name, number(name, value)) for name, value in {**found, **asked}.items()], left


def default_system(jinja: str) -> str | None:
    """Return the system message that a chat template writes where a conversation has none.

    It is what stands without one where, with one, that one stands. None if there is no such
    place, or if it changes from day to day.
    """
    mark, user = "\x02", Message("user", "\x03")
    try:
        template = ChatTemplate(jinja, bos="", eos="", name="the model")
        without, given = template.render([user]), template.render([Message("system", mark), user])
    except InputError:
        return None
    before, found, after = given.partition(mark)
    fits = without.startswith(before) and without.endswith(after)
    end = len(without) - len(after)
    if not found or not fits or end <= len(before) or "strftime_now" in jinja:
        return None
    message = without[len(before) : end]
    return None if "\x03" in message else message


def licence(metadata: Mapping[str, object]) -> tuple[str, ...]:
    """Return the licence as one text: its name and identifier, then its address."""
    short, name, link = (
        _text(metadata.get(f"general.license{suffix}")).strip() for suffix in ("", ".name", ".link")
    )
    if short and name and short.lower() != name.lower():
        name = f"{name} ({short})"
    text = "\n".join(part for part in (name or short, link) if part)
    return (text,) if text else ()
