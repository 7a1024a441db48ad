"""The chat template of a model: conversations as the text it was trained on."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from ggprune.errors import InputError
from ggprune.text.documents import Document, Message

if TYPE_CHECKING:
    from ggprune.llama.session import LlamaModel


#: Roles that some templates pass over without a word.
_RARE = ("system", "tool", "developer")


class ChatTemplate:
    """Renders conversations with a Jinja template, in jinja2's sandbox.

    ``source`` is ``tokenizer.chat_template``; ``bos`` and ``eos`` are the texts of these tokens,
    which templates write themselves; ``name`` is the model's, for messages.

    Raises:
        InputError: it is not a valid template.
    """

    def __init__(self, source: str, *, bos: str, eos: str, name: str) -> None:
        self._name = name
        self._tokens = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = _environment().from_string(source)
        except Exception as error:  # Templates are programs: they may fail in any way.
            raise self._failed(error) from error

    def render(self, messages: Sequence[Message], tools: str = "") -> str:
        """Write a conversation as text, ready to be continued if the user spoke last.

        A template that knows no turns of tools, or no system message, gets these as messages of
        the user; one that does not write which tools there are (Document.tools), as a system
        message.

        Raises:
            InputError: the template fails, with its own words.
        """
        given = json.loads(tools) if tools else None
        if given and not self._writes(given):
            messages, given = [Message("system", tools), *messages], None
        failure: Exception | None = None
        incomplete: str | None = None
        plain = _renamed(messages, {"tool": "user", "developer": "system"})
        for attempt in (messages, plain, _renamed(plain, {"system": "user"})):
            try:
                text = self._render(attempt, given)
            except Exception as error:
                failure = failure or error
            else:
                if all(_holds(text, each.content) for each in attempt if each.role in _RARE):
                    return text
                incomplete = incomplete or text
        if incomplete is None:
            raise self._failed(failure or ValueError("it writes nothing")) from failure
        return incomplete

    def _writes(self, tools: Sequence[Any]) -> bool:
        try:
            text = self._render([Message("user", "?")], tools)
        except Exception:
            return False
        return all(tool["function"]["name"] in text for tool in tools)

    def _render(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        text: str = self._template.render(
            messages=turns,
            add_generation_prompt=messages[-1].role != "assistant",
            enable_thinking=True,
            tools=tools,
            **self._tokens,
        )
        return text

    def _failed(self, error: Exception) -> InputError:
        return InputError(
            f"{self._name}: its chat template fails: {error or type(error).__name__}",
            remedy="Give plain text (files whose names end in .txt) instead of conversations.",
        )


def template_of(model: LlamaModel, source: str | None) -> ChatTemplate | None:
    """Return the template of a loaded model; None if its file has none.

    Raises:
        InputError: it is not a valid template.
    """
    if not source:
        return None
    bos = model.piece(model.bos).decode("utf-8", "replace") if model.bos >= 0 else ""
    eos = model.piece(model.eos).decode("utf-8", "replace") if model.eos >= 0 else ""
    return ChatTemplate(source, bos=bos, eos=eos, name=str(model.path))


def tokenize(model: LlamaModel, template: ChatTemplate | None, document: Document) -> list[int]:
    """Tokenize a document, with BOS exactly once where the model wants one.

    A model without a template gets the contents of messages as plain text.
    """
    if not document.messages:
        return model.tokenize(document.text)
    if template is None:
        contents = (document.tools, *(message.content for message in document.messages))
        return model.tokenize("\n\n".join(filter(None, contents)))
    tokens = model.tokenize(template.render(document.messages, document.tools), parse_special=True)
    if tokens[:2] == [model.bos, model.bos]:
        # The template wrote it, and the tokenizer too.
        del tokens[0]
    return tokens


def tokenize_with_answers(
    model: LlamaModel, template: ChatTemplate | None, document: Document
) -> tuple[list[int], list[int]]:
    """Tokenize a conversation; also return the positions of what the assistant says, ascending.

    Its place is found by rendering the conversation up to it and with it: that far the tokens
    agree. So the token that ends an answer belongs to it.
    """
    tokens = tokenize(model, template, document)
    said: list[int] = []
    for index, message in enumerate(document.messages):
        if message.role == "assistant":
            start = _agreeing(model, template, document, index, tokens) if index else 0
            said += range(start, _agreeing(model, template, document, index + 1, tokens))
    return tokens, said


def _agreeing(
    model: LlamaModel,
    template: ChatTemplate | None,
    document: Document,
    turns: int,
    tokens: Sequence[int],
) -> int:
    """How many tokens the conversation's first ``turns`` share with all of it."""
    if turns == len(document.messages):
        return len(tokens)
    part = tokenize(model, template, replace(document, messages=document.messages[:turns]))
    for position, (one, other) in enumerate(zip(part, tokens, strict=False)):
        if one != other:
            return position
    return min(len(part), len(tokens))


def _holds(text: str, content: str) -> bool:
    """Whether a template wrote a message's content, as it is or as JSON."""
    content = content.strip()
    return content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text


def _renamed(messages: Sequence[Message], roles: Mapping[str, str]) -> list[Message]:
    """Give roles other names, and join neighbours of one: many templates want them to alternate."""
    joined: list[Message] = []
    for message in messages:
        role, content = roles.get(message.role, message.role), message.content
        if joined and joined[-1].role == role:
            content = f"{joined.pop().content}\n\n{content}"
        joined.append(Message(role, content))
    return joined


def _environment() -> Any:
    """Make what transformers renders chat templates in (utils/chat_template_utils.py)."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """``{% generation %}``, which marks answers for training, is passed over."""

        tags = {"generation"}  # noqa: RUF012 (declared so by Jinja)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.globals.update(raise_exception=_raise, strftime_now=_now)
    # Jinja's own also escapes what HTML acts on, and takes no options.
    environment.filters["tojson"] = _to_json
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    options: Any = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)


def _now(form: str) -> Any:
    # A fixed day: the same text must give the same tokens tomorrow.
    return datetime.datetime(2026, 1, 1).strftime(form)
