"""Text as the stages pass it on: messages, documents, and the sources of one domain."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """A plain text, or a conversation; one of the two is empty.

    ``where`` names it in messages: a file, and a line of it. ``tools`` are those that the
    assistant may call, as JSON: a list of objects with ``type`` and ``function``.
    """

    text: str = ""
    messages: tuple[Message, ...] = ()
    where: str = ""
    tools: str = ""

    @property
    def awaits_answer(self) -> bool:
        """Whether it is a conversation that the model is to continue."""
        return bool(self.messages) and self.messages[-1].role != "assistant"


@dataclass(frozen=True, slots=True)
class Source:
    """The text of one domain."""

    domain: str
    documents: tuple[Document, ...]

    @property
    def sha256(self) -> str:
        """Hash of what the text says, wherever it lies."""
        digest = hashlib.sha256()
        for document in self.documents:
            turns = [[message.role, message.content] for message in document.messages]
            said = [document.text, turns, *filter(None, [document.tools])]
            digest.update(json.dumps(said).encode())
        return digest.hexdigest()
