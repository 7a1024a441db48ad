"""The chat template of a model: conversations as the text it was trained on."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ggprune.errors import InputError
from ggprune.text.load import Document, Message

if TYPE_CHECKING:
    from ggprune.llama.session import LlamaModel


class ChatTemplate:
    """Renders conversations with a Jinja template, in jinja2's sandbox.

    Args:
        source: the template, as the GGUF's ``tokenizer.chat_template`` has it.
        bos, eos: the text of these tokens; templates write them themselves.
        name: the model, for messages.

    Raises:
        InputError: it is not a valid template.
    """

    def __init__(self, source: str, *, bos: str, eos: str, name: str) -> None:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self._name, self._errors = name, jinja2.TemplateError
        self._tokens = {"bos_token": bos, "eos_token": eos}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise self._failed(error) from error

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, ready to be continued if the user spoke last.

        A template that knows no system message gets it as part of the first user message.

        Raises:
            InputError: the template fails, with its own words.
        """
        try:
            return self._render(messages)
        except (self._errors, TypeError, ValueError, KeyError, AttributeError) as error:
            if messages[0].role != "system" or len(messages) < 2:
                raise self._failed(error) from error
            joined = Message(messages[1].role, f"{messages[0].content}\n\n{messages[1].content}")
            return self.render([joined, *messages[2:]])

    def _render(self, messages: Sequence[Message]) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return self._template.render(
            messages=turns,
            add_generation_prompt=messages[-1].role != "assistant",
            enable_thinking=True,
            tools=None,
            **self._tokens,
        )

    def _failed(self, error: Exception) -> InputError:
        return InputError(
            f"{self._name}: its chat template fails: {error}",
            remedy="Use --text NAME=FILE.txt for plain text instead.",
        )


def template_of(model: LlamaModel, source: str | None) -> ChatTemplate | None:
    """The template of a loaded model; None if its file has none."""
    if not source:
        return None
    bos = model.piece(model.bos).decode("utf-8", "replace") if model.bos >= 0 else ""
    eos = model.piece(model.eos).decode("utf-8", "replace") if model.eos >= 0 else ""
    return ChatTemplate(source, bos=bos, eos=eos, name=str(model.path))


def tokenize(model: LlamaModel, template: ChatTemplate | None, document: Document) -> list[int]:
    """Token ids of a document, with BOS exactly once where the model wants one.

    A model without a template gets the contents of messages as plain text.
    """
    if not document.messages:
        return model.tokenize(document.text)
    if template is None:
        return model.tokenize("\n\n".join(message.content for message in document.messages))
    tokens = model.tokenize(template.render(document.messages), parse_special=True)
    if tokens[:2] == [model.bos, model.bos]:
        # The template wrote it, and the tokenizer too.
        del tokens[0]
    return tokens


def _raise(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)


def _now(form: str) -> Any:
    # A fixed day: the same text must give the same tokens tomorrow.
    return datetime.datetime(2026, 1, 1).strftime(form)
