"""The parts of what a model writes: thinking, tool calls, JSON, and the answer proper."""

from __future__ import annotations

import json
import re
from typing import Any

from ggprune.model.architectures import ARCHITECTURES
from ggprune.text.layouts import json_or_none

_THOUGHTS = tuple({row.thoughts: None for row in ARCHITECTURES.values()})
#: Where thinking begins, and where it ends.
THINKING_STARTS, THINKING_ENDS = (
    "|".join(thought.split(".*?")[side] for thought in _THOUGHTS) for side in (0, 1)
)
#: Tool calls as the chat templates of models write them: Qwen, Hermes, GLM and MiniMax; Gemma 4;
#: LFM2; DeepSeek; Kimi; gpt-oss; Mistral; Llama 3; and JSON on a line of its own, which data sets'
#: calls become.
TOOL_CALLS = "|".join(
    (
        r"<(?:\w+:)?tool_call>.*?</(?:\w+:)?tool_call>",
        r"<\|tool_call>.*?<tool_call\|>",
        r"<\|tool_call_start\|>.*?<\|tool_call_end\|>",
        r"<｜tool▁calls▁begin｜>.*?<｜tool▁calls▁end｜>",  # noqa: RUF001
        r"<\|tool_calls_section_begin\|>.*?<\|tool_calls_section_end\|>",
        r"<\|channel\|>commentary to=.*?<\|call\|>",
        r"(?:\[TOOL_CALLS\]|<\|python_tag\|>).*",
        r'^[ \t]*\{[^\n]*"(?:arguments|parameters)"[^\n]*\}[ \t]*$',
    )
)
_FLAGS = re.DOTALL | re.MULTILINE
_END = re.compile(THINKING_ENDS)
_START = re.compile(THINKING_STARTS)
_CALL = re.compile(TOOL_CALLS, _FLAGS)
_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)


def final_answer(text: str) -> str:
    """Return what follows the thinking; nothing if the thinking does not end."""
    rest = _END.split(text)[-1]
    return "" if _START.search(rest) else rest.strip()


def opened_thinking(prompt: str) -> str:
    """Return the thinking that a prompt begins for the model; nothing if it begins none."""
    starts = [match.start() for match in _START.finditer(prompt)]
    opened = prompt[starts[-1] :] if starts else ""
    return "" if _END.search(opened) else opened


def json_of(answer: str) -> Any:
    """Return the JSON that an answer is, with or without a code fence around it; None if none."""
    fenced = _FENCE.search(answer)
    return json_or_none(fenced[1] if fenced else answer)


def calls_of(answer: str) -> list[tuple[str, Any]]:
    """Return the tool calls that an answer makes in JSON: names, and arguments as values.

    OpenAI's arguments are JSON within JSON; ``parameters`` are arguments too. Calls that a model
    writes in other syntax are not read.
    """
    parts = [match[0] for match in _CALL.finditer(answer)]
    values = [value for part in parts for value in _values(part)] if parts else json_of(answer)
    found: list[tuple[str, Any]] = []
    for value in values if isinstance(values, list) else [values]:
        called = value.get("function", value) if isinstance(value, dict) else None
        if isinstance(called, dict) and isinstance(called.get("name"), str):
            given = called.get("arguments", called.get("parameters"))
            if given is not None:
                found.append((called["name"], _parsed(given)))
    return found


def _values(text: str) -> list[Any]:
    """Return the JSON objects in a text, one after another; those in a list one by one."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
        else:
            found.append(value)
    return found


def _parsed(value: Any) -> Any:
    return json_or_none(value) if isinstance(value, str) else value
