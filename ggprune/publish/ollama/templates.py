"""Go templates of the model families whose conversation format is known.

Most Modelfiles need none: Ollama renders the GGUF's own Jinja chat template. None of these writes
tool calls, nor the token that begins the text, which Ollama's tokenizer adds.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

# Every skeleton walks .Messages. ``$last`` marks the final message: after one of the user's, the
# answer is opened; one of the assistant's stays open, so that the model continues it. Words in
# « » are filled in by the functions below.
_LOOP = """\
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
"""

# The same marks around every role.
_UNIFORM = (
    _LOOP
    + """\
«turn»{{ .Content }}{{ if not (and $last (eq .Role "assistant")) }}«close»{{ end }}\
{{ if and $last (ne .Role "assistant") }}«answer»{{ end }}
{{- end }}"""
)

# Marks of its own for each role.
_BY_ROLE = (
    _LOOP
    + """\
{{ if eq .Role "system" }}«system»{{ .Content }}«system_end»\
{{ else if eq .Role "user" }}«user»{{ .Content }}«user_end»{{ if $last }}«answer»{{ end }}\
{{ else if eq .Role "assistant" }}«reply»{{ .Content }}{{ if not $last }}«reply_end»{{ end }}\
{{ end }}
{{- end }}"""
)

# No system role: the system message goes before one of the user's, and is used up there.
_IN_USER = (
    "{{- $system := .System }}\n"
    + _LOOP
    + """\
{{ if eq .Role "user" }}«user»{{ if «when» }}{{ $system }}

{{ $system = "" }}{{ end }}{{ .Content }}«user_end»{{ if $last }}«answer»{{ end }}\
{{ else if eq .Role "assistant" }}«reply»{{ .Content }}{{ if not $last }}«reply_end»{{ end }}\
{{ end }}
{{- end }}"""
)

# Llama 3.1 writes the system block whether or not there is a system message, with fixed dates.
_LLAMA_3_1 = """\
<|start_header_id|>system<|end_header_id|>

Cutting Knowledge Date: December 2023
Today Date: 26 Jul 2024

{{ .System }}<|eot_id|>
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
{{ if ne .Role "system" }}<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}{{ if not (and $last (eq .Role "assistant")) }}<|eot_id|>{{ end }}\
{{ if and $last (ne .Role "assistant") }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}{{ end }}
{{- end }}"""

# DeepSeek's marks, with full-width bars.
_EOS = "<\uff5cend\u2581of\u2581sentence\uff5c>"
_USER = "<\uff5cUser\uff5c>"
_ASSISTANT = "<\uff5cAssistant\uff5c>"

_Marks = tuple[str, str]


def _fill(skeleton: str, **marks: str | _Marks) -> str:
    """Replace each «name» of a skeleton by its mark, and «name_end» by what follows the text."""
    for name, mark in marks.items():
        begin, end = (mark, "") if isinstance(mark, str) else mark
        skeleton = skeleton.replace(f"«{name}»", begin).replace(f"«{name}_end»", end)
    return skeleton


def _uniform(before: str, after_role: str, close: str) -> str:
    """Put the same marks around every role, the role between the first two."""
    turn, answer = (f"{before}{role}{after_role}" for role in ("{{ .Role }}", "assistant"))
    return _fill(_UNIFORM, turn=turn, close=close, answer=answer)


def _by_role(system: _Marks, user: _Marks, reply: _Marks, answer: str | None = None) -> str:
    """Put marks around each role's text; ``answer`` begins one, if not as ``reply`` does."""
    answer = reply[0] if answer is None else answer
    return _fill(_BY_ROLE, system=system, user=user, reply=reply, answer=answer)


def _in_user(when: str, user: _Marks, reply: _Marks, answer: str) -> str:
    """Put the system message before one of the user's, ``when`` says before which."""
    return _fill(_IN_USER, when=when, user=user, reply=reply, answer=answer)


def _cohere(role: str) -> _Marks:
    return f"<|START_OF_TURN_TOKEN|><|{role}_TOKEN|>", "<|END_OF_TURN_TOKEN|>"


@dataclass(frozen=True, slots=True)
class Family:
    """A conversation format: its Go template and the signs that give it away.

    ``jinja`` are strings that the chat template must hold and ``without`` strings that it must
    not; ``tokens`` and ``without_tokens`` say the same of the vocabulary, for a GGUF that has no
    chat template (an empty ``tokens`` never matches). ``stops`` end a turn.
    """

    name: str
    template: str
    stops: tuple[str, ...]
    jinja: tuple[str, ...]
    without: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    without_tokens: tuple[str, ...] = ()


# Thinking, dates of today and built-in policies are beyond these templates.
_BEYOND = ("think", "strftime", "today", "default_system")

FAMILIES = (
    Family(
        "ChatML",
        _uniform("<|im_start|>", "\n", "<|im_end|>\n"),
        ("<|im_end|>",),
        ("<|im_start|>", "<|im_end|>", "add_generation_prompt"),
        (*_BEYOND, "<|im_sep|>", "<|im_middle|>", "<end_of_utterance>", "function calling AI"),
        ("<|im_start|>", "<|im_end|>"),
        ("<|im_sep|>", "<|im_middle|>", "<end_of_utterance>"),
    ),
    Family(
        "Llama 3",
        _uniform("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),
        ("<|eot_id|>",),
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        (*_BEYOND, "Cutting Knowledge Date", "functions"),
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    Family(
        "Llama 3.1",
        _LLAMA_3_1,
        ("<|eot_id|>", "<|eom_id|>"),
        ("<|start_header_id|>", "Cutting Knowledge Date: December 2023", '"26 Jul 2024"'),
        ("think", "strftime"),
    ),
    Family(
        "Gemma",
        _in_user(
            "$system",
            ("<start_of_turn>user\n", "<end_of_turn>\n"),
            ("<start_of_turn>model\n", "<end_of_turn>\n"),
            "<start_of_turn>model\n",
        ),
        ("<end_of_turn>",),
        ("<start_of_turn>", "<end_of_turn>", "model"),
        (*_BEYOND, "developer", "<start_function"),
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    Family(
        "Phi-4",
        _uniform("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        ("<|im_end|>",),
        ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        _BEYOND,
        ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ),
    Family(
        "Phi-4-mini",
        _uniform("<|", "|>", "<|end|>"),
        ("<|end|>",),
        ("'|>' + message['content'] + '<|end|>' }}", "<|assistant|>"),
        _BEYOND,
    ),
    Family(
        "Phi-3",
        _uniform("<|", "|>\n", "<|end|>\n"),
        ("<|end|>",),
        ("<|assistant|>", "<|end|>"),
        (*_BEYOND, "'|>' + message['content'] + '<|end|>' }}", "'<|end|>' + '", "tools"),
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        ("<|return|>", "<|im_start|>", "<|tool|>"),
    ),
    Family(
        "Mixtral v0.1",
        _in_user("$system", ("[INST] ", " [/INST]"), ("", "</s>"), ""),
        ("</s>",),
        ("'[INST] ' + message['content'] + ' [/INST]'", "message['content'] + eos_token}}"),
    ),
    Family(
        "Mistral 7B v0.1",
        _in_user("$system", ("[INST] ", " [/INST]"), ("", "</s> "), ""),
        ("</s>",),
        ("'[INST] ' + message['content'] + ' [/INST]'", "message['content'] + eos_token + ' ' }}"),
    ),
    Family(
        "Mistral v1",
        _in_user("$system", (" [INST] ", " [/INST]"), (" ", "</s>"), ""),
        ("</s>",),
        ("' [INST] ' + system_message", "' [/INST]'", "' ' + message['content'] + eos_token"),
    ),
    Family(
        "Mistral v3 Tekken",
        _in_user("and $last $system", ("[INST]", "[/INST]"), ("", "</s>"), ""),
        ("</s>",),
        ('"[INST]" + system_message + "\\n\\n"', '"[/INST]"', "loop.last and system_message"),
    ),
    Family(
        "Mistral v7",
        _by_role(
            ("[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]"), ("[INST] ", "[/INST]"), (" ", "</s>"), ""
        ),
        ("</s>",),
        ("'[SYSTEM_PROMPT] ' +", "'[INST] ' +", "'[/INST]'", "' ' + message['content']"),
        _BEYOND,
    ),
    Family(
        "Command-R",
        _by_role(_cohere("SYSTEM"), _cohere("USER"), _cohere("CHATBOT")),
        ("<|END_OF_TURN_TOKEN|>",),
        ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "elif false == true"),
        ("think", "<|START_RESPONSE|>"),
        ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        ("<|START_RESPONSE|>", "<|START_THINKING|>"),
    ),
    Family(
        "DeepSeek V2",
        _by_role(("", "\n\n"), ("User: ", "\n\n"), ("Assistant: ", _EOS), "Assistant:"),
        (_EOS,),
        ("'User: ' + message['content']", "'Assistant: ' + message['content'] + eos_token"),
        _BEYOND,
    ),
    Family(
        "DeepSeek V3",
        _by_role(("", ""), (_USER, ""), (_ASSISTANT, _EOS)),
        (_EOS,),
        (f"'{_USER}' + message['content']", _ASSISTANT),
        ("think", f"'{_USER}' + message['content'] + '<"),
        (_USER, _ASSISTANT, _EOS),
        ("<think>",),
    ),
    Family(
        "GLM-4",
        "[gMASK]<sop>"
        + _by_role(("<|system|>\n", ""), ("<|user|>\n", ""), ("<|assistant|>\n", "")),
        ("<|user|>", "<|observation|>"),
        ("[gMASK]<sop>", "<|assistant|>"),
        _BEYOND,
        ("[gMASK]", "<sop>", "<|assistant|>", "<|observation|>"),
        ("<think>",),
    ),
    Family(
        "OLMoE",
        _by_role(
            ("<|system|>\n", "\n"), ("<|user|>\n", "\n"), ("<|assistant|>\n", "<|endoftext|>\n")
        ),
        ("<|endoftext|>",),
        ("'<|user|>\\n' + message['content'] + '\\n'", "eos_token + '\\n'"),
        (*_BEYOND, "<|end|>", "[gMASK]"),
    ),
)


def family_of(jinja: str, vocabulary: Collection[str] = ()) -> Family | None:
    """Find the family of a model by its chat template, or by its vocabulary if that is empty."""
    for family in FAMILIES:
        signs, barred = family.tokens, family.without_tokens
        if jinja:
            signs, barred = family.jinja, family.without
        where = jinja or vocabulary
        if signs and all(s in where for s in signs) and not any(s in where for s in barred):
            return family
    return None
