"""The Modelfile: what it says of a model, that Ollama reads it so, that its templates are right."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, NoReturn

import jinja2
import pytest

from ggprune.errors import InputError, OutputError
from ggprune.publish.ollama import Modelfile, create, create_commands, make_modelfile
from ggprune.publish.ollama.detect import (
    Detected,
    beyond_go,
    classes_of,
    detect,
    edit_distance,
)
from ggprune.publish.ollama.families import PARAMETERS, RENDERERS, SAMPLING
from ggprune.publish.ollama.metadata import DEFAULT_NUM_CTX
from ggprune.publish.ollama.templates import FAMILIES, family_of
from ggprune.publish.ollama.text import quote
from tests.support.go_template import render as render_go
from tests.support.modelfile_reader import ModelfileError, read

EOS = "<\uff5cend\u2581of\u2581sentence\uff5c>"
USER, ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"

# The conversation part of each family's published chat template.
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN_2_5 = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content']"
    " + '<|im_end|>\\n' }}{%- else %}{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba"
    " Cloud. You are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'user' or message.role == 'assistant' "
    "or (message.role == 'system' and not loop.first) %}{{- '<|im_start|>' + message.role + '\\n'"
    " + message.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 "
    "% 2 == 0) %}{{ raise_exception('Roles must alternate.') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + END}}{% else %}"
    "{{ raise_exception('Only user and assistant roles!') }}{% endif %}{% endfor %}"
)
ROLES = {
    "ChatML": CHATML,
    "Llama 3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
        "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | "
        "trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
        "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "Llama 3.1": (
        '{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024"'
        " %}{%- endif %}{%- if messages[0]['role'] == 'system' %}{%- set system_message = "
        "messages[0]['content']|trim %}{%- set messages = messages[1:] %}{%- else %}{%- set "
        'system_message = "" %}{%- endif %}{{- "<|start_header_id|>system<|end_header_id|>\\n\\n"'
        ' }}{{- "Cutting Knowledge Date: December 2023\\n" }}{{- "Today Date: " + date_string + '
        '"\\n\\n" }}{{- system_message }}{{- "<|eot_id|>" }}{%- for message in messages %}'
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ "
        "message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
    ),
    "Gemma": (
        "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first_user_prefix = "
        "messages[0]['content'] + '\n\n' -%}{%- set loop_messages = messages[1:] -%}{%- else -%}"
        '{%- set first_user_prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}'
        "{%- for message in loop_messages -%}{%- if (message['role'] == 'assistant') -%}"
        "{%- set role = \"model\" -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}"
        "{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else \"\") }}"
        "{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}"
    ),
    "Phi-4": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '<|im_sep|>' + "
        "message['content'] + '<|im_end|>'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    ),
    "Phi-4-mini": (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + "
        "'<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
    "Phi-3": (
        "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
        "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
        "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
        "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + "
        "'<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "Mixtral v0.1": _MISTRAL.replace("END", "eos_token"),
    "Mistral 7B v0.1": _MISTRAL.replace("END", "eos_token + ' ' "),
    "Mistral v1": (
        "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']"
        " %}{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}"
        "{%- endif %}{{- bos_token }}{%- for message in loop_messages %}"
        "{%- if message['role'] == 'user' %}{%- if loop.first and system_message is defined %}"
        "{{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}"
        "{%- else %}{{- ' [INST] ' + message['content'] + ' [/INST]' }}{%- endif %}"
        "{%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] + eos_token}}"
        "{%- endif %}{%- endfor %}"
    ),
    "Mistral v3 Tekken": (
        '{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"]'
        " %}{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}"
        "{%- endif %}{{- bos_token }}{%- for message in loop_messages %}"
        '{%- if message["role"] == "user" %}{%- if loop.last and system_message is defined %}'
        '{{- "[INST]" + system_message + "\\n\\n" + message["content"] + "[/INST]" }}{%- else %}'
        '{{- "[INST]" + message["content"] + "[/INST]" }}{%- endif %}'
        '{%- elif message["role"] == "assistant" %}{{- message["content"] + eos_token}}'
        "{%- endif %}{%- endfor %}"
    ),
    "Mistral v7": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + '[/INST]' }}{% elif message['role'] == 'system' %}"
        "{{ '[SYSTEM_PROMPT] ' + message['content'] + '[/SYSTEM_PROMPT]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
        "{% endif %}{% endfor %}"
    ),
    "Command-R": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = "
        "messages[1:] %}{% set system_message = messages[0]['content'] %}"
        "{% elif false == true %}{% set loop_messages = messages %}{% set system_message = 'You "
        "are Command-R.' %}{% else %}{% set loop_messages = messages %}{% set system_message = "
        "false %}{% endif %}{% if system_message != false %}{{ '<|START_OF_TURN_TOKEN|>"
        "<|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}{% endif %}"
        "{% for message in loop_messages %}{% set content = message['content'] %}"
        "{% if message['role'] == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + "
        "content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% elif message['role'] == 'assistant' %}"
        "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'  + content.strip() + "
        "'<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
    ),
    "DeepSeek V2": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ 'User: ' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}"
        "{{ 'Assistant: ' + message['content'] + eos_token }}"
        "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "DeepSeek V3": (
        "{% set ns = namespace(system_prompt='') %}{%- for message in messages %}"
        "{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}"
        "{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}"
        f"{{%- if message['role'] == 'user' %}}{{{{'{USER}' + message['content']}}}}{{%- endif %}}"
        f"{{%- if message['role'] == 'assistant' %}}{{{{'{ASSISTANT}' + message['content'] + "
        f"'{EOS}'}}}}{{%- endif %}}{{%- endfor -%}}"
        f"{{% if add_generation_prompt %}}{{{{'{ASSISTANT}'}}}}{{% endif %}}"
    ),
    "GLM-4": (
        "[gMASK]<sop>{% for item in messages %}{% if item['content'] %}<|{{ item['role'] }}|>"
        "{{ item['metadata'] }}\n{{ item['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "OLMoE": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ '<|system|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'user' %}"
        "{{ '<|user|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'assistant' %}"
        "{{ '<|assistant|>\\n'  + message['content'] + eos_token + '\\n' }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
        "{% endfor %}"
    ),
}
EOS_OF = {"DeepSeek V2": EOS, "DeepSeek V3": EOS, "OLMoE": "<|endoftext|>"}
CONVERSATIONS = {
    "user": [("user", "Hi")],
    "system": [("system", "Be brief."), ("user", "Grüß dich, 世界 🙂!\n\nSecond paragraph.")],
    "turns": [("user", "a {{ b }}"), ("assistant", 'c """ d'), ("user", "e")],
    "all": [
        ("system", "Line one.\nLine two."),
        ("user", "1"),
        ("assistant", "2"),
        ("user", "3"),
        ("assistant", "4"),
        ("user", "5"),
    ],
}
CASES = [(family.name, case) for family in FAMILIES for case in CONVERSATIONS]


def messages(case: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in CONVERSATIONS[case]]


def go_data(turns: list[dict[str, str]]) -> dict[str, Any]:
    """What Ollama hands a template that walks .Messages."""
    return {
        "System": "\n\n".join(m["content"] for m in turns if m["role"] == "system"),
        "Messages": [{"Role": m["role"], "Content": m["content"]} for m in turns],
        "Response": "",
    }


def render_jinja(source: str, turns: list[dict[str, str]], eos: str = "</s>") -> str:
    """What the original writes; one that refuses system messages gets them from the user."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(source, {"raise_exception": _refuse})
    more = {"add_generation_prompt": True, "bos_token": "", "eos_token": eos}
    try:
        return template.render(messages=turns, **more)
    except jinja2.TemplateError:
        first = {"role": "user", "content": "\n\n".join(turn["content"] for turn in turns[:2])}
        return template.render(messages=[first, *turns[2:]], **more)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def model(**more: Any) -> dict[str, object]:
    tokens = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "a"]
    values: dict[str, object] = {
        "general.architecture": "qwen3moe",
        "qwen3moe.context_length": 40960,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.eos_token_id": 4,
        "tokenizer.chat_template": CHATML,
    }
    return values | {key.replace("__", "."): value for key, value in more.items()}


def made(metadata: dict[str, object], **more: Any) -> Modelfile:
    options = {"model_paths": [Path("m/model.gguf")], "modelfile_path": Path("m/Modelfile")} | more
    return make_modelfile(metadata, **options)


def parsed(modelfile: Modelfile) -> list[tuple[str, str]]:
    return read(modelfile.render().encode("utf-8"))


def values(modelfile: Modelfile, keyword: str) -> list[str]:
    return [value for name, value in parsed(modelfile) if name == keyword]


# --- Go templates


@pytest.mark.parametrize(("name", "case"), CASES)
def test_go_template_writes_what_the_jinja_original_writes(name: str, case: str) -> None:
    family = family_of(ROLES[name])
    assert family is not None
    assert family.name == name
    turns = messages(case)
    expected = render_jinja(ROLES[name], turns, EOS_OF.get(name, "</s>"))
    written = made({"tokenizer.chat_template": ROLES[name]}, template="go")
    (template,) = values(written, "TEMPLATE")
    assert render_go(template, go_data(turns)) == expected


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_go_template_leaves_an_unfinished_answer_open(family: Any) -> None:
    turns = [*messages("user"), {"role": "assistant", "content": "Half a sent"}]
    assert render_go(family.template, go_data(turns)).endswith("Half a sent")


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")
def test_the_go_renderer_of_these_tests_agrees_with_go(tmp_path: Path) -> None:
    program = tmp_path / "main.go"
    program.write_text(
        'package main\nimport ("encoding/json"; "os"; "strings"; "text/template")\n'
        "type M struct { Role, Content string }\n"
        "type C struct { Template, System string; Messages []*M }\n"
        "func main() {\n var cs []C; json.NewDecoder(os.Stdin).Decode(&cs); var out []string\n"
        ' for _, c := range cs { var b strings.Builder; template.Must(template.New("").'
        'Option("missingkey=zero").Parse(c.Template)).Execute(&b, map[string]any{"System": '
        'c.System, "Messages": c.Messages, "Response": ""}); out = append(out, b.String()) }\n'
        " json.NewEncoder(os.Stdout).Encode(out)\n}\n",
        encoding="utf-8",
    )
    templates = {family.name: family.template for family in FAMILIES}
    cases = [{"Template": templates[name]} | go_data(messages(case)) for name, case in CASES]
    done = subprocess.run(
        ["go", "run", str(program)],
        input=json.dumps(cases).encode(),
        capture_output=True,
        check=True,
    )
    ours = [render_go(case["Template"], case) for case in cases]
    assert json.loads(done.stdout) == ours


def test_templates_that_think_or_know_the_date_are_not_taken_for_plain_ones() -> None:
    assert family_of(CHATML + "{{ content.split('</think>')[-1] }}") is None
    assert family_of(ROLES["Llama 3.1"] + "{{ strftime_now('%d %b %Y') }}") is None
    assert family_of("") is None
    assert family_of("{{ messages }}") is None


# --- template, renderer, system


def test_a_model_with_its_own_chat_template_gets_no_template() -> None:
    modelfile = made(model(tokenizer__chat_template=ROLES["Mistral v1"]))
    assert values(modelfile, "TEMPLATE") == []
    said = "# No TEMPLATE: Ollama (from 0.30 on) uses the chat template inside the GGUF."
    assert said in modelfile.render() and modelfile.warnings == ()


# What real Ollama takes these for.
TAKEN_FOR = {"OLMoE": "zephyr", "DeepSeek V2": "chatqa", "Phi-4": "chatml", "ChatML": "chatml"}


@pytest.mark.parametrize("name", TAKEN_FOR)
def test_a_chat_template_that_ollama_takes_for_another_is_written_in_go(name: str) -> None:
    modelfile = made(model(tokenizer__chat_template=ROLES[name]))
    assert modelfile.template == next(f.template for f in FAMILIES if f.name == name)
    assert f"Ollama would take its own template {TAKEN_FOR[name]}, which" in modelfile.render()
    assert modelfile.warnings == ()


def test_a_template_of_no_known_family_that_ollama_takes_for_its_own_is_a_warning() -> None:
    jinja = CHATML.replace("<|im_", "<|ii_")
    modelfile = made(model(tokenizer__chat_template=jinja))
    assert modelfile.template is None
    (warning,) = modelfile.warnings
    assert "Ollama uses its own template chatml instead" in warning
    assert "OLLAMA_GO_TEMPLATE=0" in warning and f"# {warning}" in modelfile.render()
    assert made(model(), template="none").warnings


def test_ollama_prefers_a_chat_template_that_has_tools() -> None:
    modelfile = made(model(tokenizer__chat_template=CHATML + "{{ tools }}"))
    assert modelfile.template is not None
    assert "Ollama from 0.30 on prefers the chat template inside the GGUF" in modelfile.render()
    assert beyond_go(CHATML) == "" and beyond_go("<think></think>") == "thinking"
    assert beyond_go("content.split('</think>')") == "thinking"
    assert beyond_go("content.split('</think>') reasoning_content") == ""


def test_the_nearest_of_ollamas_templates() -> None:
    for name, near in TAKEN_FOR.items():
        found = detect(ROLES[name])
        assert found is not None and found.name == near and found.distance < 100
    for name in ("Llama 3.1", "Mistral v7", "Command-R", "DeepSeek V3"):
        assert detect(ROLES[name]) is None
    assert detect("") is None
    assert detect(ROLES["Llama 3"]) == Detected("llama3-instruct", 0)


def test_the_edit_distance_is_that_of_the_textbook() -> None:
    def by_rows(one: str, two: str) -> int:
        row = list(range(len(two) + 1))
        for i, a in enumerate(one, start=1):
            last, row[0] = row[0], i
            for j, b in enumerate(two, start=1):
                last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
        return row[-1]

    draw = random.Random(3)
    for _ in range(400):
        one, two = ("".join(draw.choices("abc", k=draw.randrange(80))) for _ in range(2))
        assert edit_distance(one, two) == by_rows(one, two)
    assert edit_distance("kitten", "sitting") == 3
    # A classes_of never says more than the texts do.
    assert edit_distance(classes_of("kitten"), classes_of("sitting")) <= 3


def test_a_model_without_chat_template_gets_its_vocabularys() -> None:
    modelfile = made(model(tokenizer__chat_template=None))
    assert modelfile.template == next(f.template for f in FAMILIES if f.name == "ChatML")
    assert "vocabulary is that of ChatML" in modelfile.render()
    assert values(modelfile, "PARAMETER stop") == ["<|im_end|>"]
    assert made(model(tokenizer__chat_template=None), template="none").template is None


def test_a_model_of_unknown_family_gets_no_template() -> None:
    modelfile = made({"general.architecture": "llama"})
    assert modelfile.template is None
    assert "family is not known" in modelfile.render()


def test_go_for_an_unknown_template_is_refused() -> None:
    with pytest.raises(InputError, match="no Go template is known") as caught:
        made(model(tokenizer__chat_template="{{ messages }}"), template="go")
    assert "Leave TEMPLATE out" in caught.value.remedy


THOUGHT = "{{ '<|channel>thought\\n<channel|>' }}"


@pytest.mark.parametrize(
    ("more", "renderer"),
    [
        ({"gemma4.expert_count": 109}, "gemma4-large"),  # only the 26B has experts
        ({"general.name": "Gemma 4 31B It"}, "gemma4-large"),
        ({"general.basename": "gemma-4", "general.size_label": "12B"}, "gemma4-large"),
        ({"tokenizer.chat_template": THOUGHT}, "gemma4-large"),
        ({"general.name": "gemma-4-E4B-it", "tokenizer.chat_template": THOUGHT}, "gemma4-small"),
        ({"general.name": "mine"}, "gemma4"),
    ],
)
def test_gemma_4s_renderer_is_that_of_its_size(more: dict[str, object], renderer: str) -> None:
    modelfile = made({"general.architecture": "gemma4", **more})
    assert (modelfile.renderer, modelfile.parser) == (renderer, "gemma4")
    known_to_all = renderer == "gemma4"
    assert ("before 0.21 does not know" in modelfile.render()) is not known_to_all


def test_a_model_that_ollama_cannot_load() -> None:
    (warning,) = made(model(tokenizer__chat_template=""), mtp=True).warnings
    assert "cannot load a model with an MTP block" in warning and "--mtp drop" in warning


def test_gemma_4_has_ollamas_renderer_and_stop() -> None:
    tokens = ["<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|tool_response>"]
    modelfile = made(
        {
            "general.architecture": "gemma4",
            "tokenizer.ggml.tokens": [token.encode() for token in tokens],
            "tokenizer.ggml.eos_token_id": 4,
            "tokenizer.chat_template": "{{ '<|turn>user' }}{{ '<turn|>' }}{{ '<|tool_response>' }}",
        }
    )
    assert values(modelfile, "RENDERER") == ["gemma4"]
    assert values(modelfile, "PARSER") == ["gemma4"]
    assert values(modelfile, "PARAMETER stop") == ["<turn|>"]
    assert values(modelfile, "TEMPLATE") == []


@pytest.mark.parametrize(
    ("metadata", "renderer"),
    [
        ({"general.architecture": "laguna"}, "laguna"),
        ({"general.architecture": "nemotron_h_moe"}, "nemotron-3-nano"),
        ({"general.architecture": "qwen3moe"}, None),
        (
            {"general.architecture": "qwen3moe", "tokenizer.chat_template": "<function=x>"},
            "qwen3-coder",
        ),
        (
            {"general.architecture": "nemotron_h", "tokenizer.chat_template": "<SPECIAL_10>"},
            None,
        ),
        (
            {"general.architecture": "qwen3vlmoe", "tokenizer.chat_template": "<think>"},
            "qwen3-vl-thinking",
        ),
        ({"general.architecture": "qwen3vlmoe"}, "qwen3-vl-instruct"),
        ({"general.architecture": "qwen35moe", "general.name": "Qwen3.5 35B A3B"}, "qwen3.5"),
        ({"general.architecture": "qwen35moe", "general.name": "Qwen3.8 35B"}, None),
        ({"general.architecture": "deepseek2", "general.basename": "GLM-4.7-Flash"}, "glm-4.7"),
        ({"general.architecture": "deepseek2", "general.name": "DeepSeek V3.1"}, "deepseek3.1"),
        ({"general.architecture": "deepseek2", "general.name": "DeepSeek V3"}, None),
    ],
)
def test_renderers_go_to_the_models_they_are_for(
    metadata: dict[str, object], renderer: str | None
) -> None:
    assert made(metadata).renderer == renderer
    assert (made(metadata).parser is None) == (renderer is None)


def test_every_renderer_and_parser_is_one_that_ollama_has() -> None:
    renderers = """
        qwen3-coder qwen3-vl-instruct qwen3-vl-thinking qwen3.5 qwen3.8 cogito deepseek3.1 olmo3
        olmo3.1 olmo3-think olmo3-32b-think nemotron-3-nano nemotron-3.5-nano gemma4 gemma4-small
        gemma4-large functiongemma glm-4.7 glm-ocr lfm2 lfm2-thinking laguna cohere glimmer"""
    parsers = """
        qwen3 qwen3-thinking qwen3.5 qwen3-coder qwen3-vl-instruct qwen3-vl-thinking ministral
        passthrough harmony cogito deepseek3 olmo3 olmo3-think nemotron-3-nano nemotron-3.5-nano
        functiongemma glm-4.7 gemma4 gemma4-no-thinking glm-ocr lfm2 lfm2-thinking laguna cohere
        glimmer"""
    assert {rule.renderer for rule in RENDERERS} <= set(renderers.split())
    assert {rule.parser for rule in RENDERERS} <= set(parsers.split())


def test_the_chat_templates_default_system_message_is_written_out() -> None:
    metadata = model(tokenizer__chat_template=QWEN_2_5)
    (system,) = values(made(metadata), "SYSTEM")
    assert system == "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    turns = [{"role": "system", "content": system}, *messages("turns")]
    expected = render_jinja(QWEN_2_5, messages("turns"))
    assert render_jinja(QWEN_2_5, turns) == expected
    (template,) = values(made(metadata, template="go"), "TEMPLATE")
    assert render_go(template, go_data(turns)) == expected
    assert values(made(metadata, system="Own."), "SYSTEM") == ["Own."]
    assert values(made(metadata, system=""), "SYSTEM") == []
    assert values(made(model()), "SYSTEM") == []


def test_a_default_system_message_is_found_wherever_it_stands() -> None:
    apart = (
        "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
        "{% set messages = messages[1:] %}{% else %}{% set s = 'You are \\'M\\'.' %}{% endif %}"
        "[S]{{ s }}[/S]{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    assert values(made(model(tokenizer__chat_template=apart)), "SYSTEM") == ["You are 'M'."]
    for changes in ("{{ strftime_now('%d') }}", "{{ raise_exception('no') }}"):
        assert values(made(model(tokenizer__chat_template=apart + changes)), "SYSTEM") == []
    for plain in ROLES.values():
        assert values(made(model(tokenizer__chat_template=plain)), "SYSTEM") == []


# --- stops


def test_stops_are_the_ids_and_what_the_template_writes_and_the_vocabulary_has() -> None:
    metadata = model(
        tokenizer__chat_template=CHATML + "<|eot_id|>",
        **{"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 5},
    )
    assert values(made(metadata), "PARAMETER stop") == ["<|endoftext|>", "</s>", "<|im_end|>"]
    asked = made(metadata, parameters={"stop": 'say "when"\n'})
    assert values(asked, "PARAMETER stop")[-1] == 'say "when"\n'


def test_ids_outside_the_vocabulary_give_no_stop() -> None:
    ids = {"tokenizer.ggml.eos_token_id": 99, "tokenizer.ggml.eom_token_id": -1}
    assert values(made(model(**ids)), "PARAMETER stop") == ["<|im_end|>"]


def test_the_end_of_a_channel_is_not_the_end_of_a_turn() -> None:
    tokens = ["<|start|>", "<|end|>", "<|return|>", "<|call|>"]
    metadata: dict[str, object] = {
        "general.architecture": "gpt-oss",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "<|start|>assistant<|end|><|return|><|call|>",
    }
    assert values(made(metadata), "PARAMETER stop") == ["<|return|>", "<|call|>"]


# --- parameters


def test_sampling_settings_come_from_the_metadata_and_from_the_caller() -> None:
    metadata = model(
        general__sampling__temp=0.699999988079071,
        general__sampling__top_k=20,
        general__sampling__top_p=0.949999988079071,
        general__sampling__min_p=0.0,
        general__sampling__penalty_last_n=64,
        general__sampling__penalty_repeat=1.0499999523162842,
        general__sampling__mirostat=2,
    )
    modelfile = made(metadata, parameters={"temperature": "1", "seed": 7, "use_mmap": "false"})
    found = {k.split()[1]: v for k, v in parsed(modelfile) if k.startswith("PARAMETER")}
    assert found == {
        "stop": "<|im_end|>",
        "num_ctx": str(DEFAULT_NUM_CTX),
        "temperature": "1",
        "top_k": "20",
        "top_p": "0.95",
        "min_p": "0",
        "repeat_last_n": "64",
        "repeat_penalty": "1.05",
        "seed": "7",
        "use_mmap": "false",
    }
    assert "# general.sampling.mirostat has no counterpart in Ollama" in modelfile.render()
    assert set(SAMPLING.values()) <= set(PARAMETERS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temprature", 1),
        ("typical_p", 0.5),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("temperature", 1e60),
        ("top_k", 1.5),
        ("use_mmap", "perhaps"),
        ("num_ctx", -1),
    ],
)
def test_parameters_that_ollama_would_refuse_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name) as caught:
        made(model(), parameters={name: value})
    assert caught.value.remedy


def test_context_length() -> None:
    def written(**more: Any) -> list[str]:
        return values(made(model(**more.pop("meta", {})), **more), "PARAMETER num_ctx")

    assert written() == [str(DEFAULT_NUM_CTX)]
    assert written(meta={"qwen3moe.context_length": 2048}) == ["2048"]
    assert written(num_ctx=4096) == ["4096"]
    assert written(parameters={"num_ctx": 1024}) == ["1024"]
    assert written(num_ctx=0) == []
    assert written(meta={"qwen3moe.context_length": None}) == []
    assert "more than the 40960" in made(model(), num_ctx=50000).render()
    assert "made for 40960" in made(model()).render()
    assert "num_ctx:" not in made(model(), num_ctx=4096).render()


# --- licence


def test_licence_comes_from_the_metadata() -> None:
    assert values(made(model(general__license="apache-2.0")), "LICENSE") == ["apache-2.0"]
    full = model(
        general__license="gemma",
        **{
            "general.license.name": "Gemma “Terms” of Use",
            "general.license.link": "https://example.org/terms",
        },
    )
    assert values(made(full), "LICENSE") == [
        "Gemma “Terms” of Use (gemma)\nhttps://example.org/terms"
    ]
    assert values(made(model()), "LICENSE") == []


# --- files


@pytest.mark.parametrize(
    ("model_path", "modelfile", "expected"),
    [
        ("m/model.gguf", "m/Modelfile", "./model.gguf"),
        ("m/model.gguf", "out/deep/Modelfile", "../../m/model.gguf"),
        ("m/sub/model.gguf", "m/Modelfile", "./sub/model.gguf"),
        ("~x.gguf", "Modelfile", "./~x.gguf"),
        ('a "b" #c.gguf', "Modelfile", './a "b" #c.gguf'),
        ("Modell ü 世.gguf ", "Modelfile", "./Modell ü 世.gguf "),
        ('"""', "Modelfile", './"""'),
    ],
)
def test_from_is_relative_to_the_modelfile(
    tmp_path: Path, model_path: str, modelfile: str, expected: str
) -> None:
    written = made(
        model(), model_paths=[tmp_path / model_path], modelfile_path=tmp_path / modelfile
    )
    (path,) = values(written, "FROM")
    assert path == expected
    assert not PurePosixPath(path).is_absolute()
    assert (tmp_path / modelfile).parent.joinpath(path).resolve() == tmp_path / model_path


def test_a_file_name_that_ollama_cannot_read_is_refused() -> None:
    with pytest.raises(InputError, match=r"U\+200B"):
        made(model(), model_paths=[Path("a\u200bb.gguf")]).render()


def test_shards_projector_and_adapter() -> None:
    shards = [Path(f"m/big-{n:05}-of-00003.gguf") for n in (1, 2, 3)]
    written = made(
        model(), model_paths=shards, mmproj=[Path("m/mmproj.gguf")], adapters=[Path("lora.gguf")]
    )
    assert values(written, "FROM") == [
        "./big-00001-of-00003.gguf",
        "./big-00002-of-00003.gguf",
        "./big-00003-of-00003.gguf",
        "./mmproj.gguf",
    ]
    assert values(written, "ADAPTER") == ["../lora.gguf"]
    assert "llama-gguf-split --merge m/big-00001-of-00003.gguf m/big.gguf" in written.render()
    assert "Newer Ollama refuses ADAPTER" in written.render()


@pytest.mark.parametrize(
    "names",
    [
        ["big-00001-of-00003.gguf"],
        ["big-00002-of-00002.gguf", "big-00001-of-00002.gguf"],
        ["big-00001-of-00002.gguf", "other-00002-of-00002.gguf"],
        ["a.gguf", "b.gguf"],
    ],
)
def test_incomplete_shards_are_refused(names: list[str]) -> None:
    with pytest.raises(InputError, match="every shard") as caught:
        made(model(), model_paths=[Path(name) for name in names])
    assert "llama-gguf-split --merge" in caught.value.remedy


def test_what_ollama_has_once_cannot_be_given_twice() -> None:
    with pytest.raises(InputError, match="2 projectors"):
        made(model(), mmproj=[Path("a"), Path("b")])
    with pytest.raises(InputError, match="2 adapters"):
        made(model(), adapters=[Path("a"), Path("b")])
    with pytest.raises(InputError, match="no model file"):
        made(model(), model_paths=[])


# --- quoting

TEXTS = [
    "plain",
    "two\nlines\n",
    "\n\n  indented, then blank  \n\n",
    'He said "yes".',
    '"quoted"',
    '"',
    '""',
    '"""',
    'Use """ for doc strings\nand " for the rest.',
    '"""starts with three\nand goes on',
    'goes on\nand ends with three"""',
    'a line ends in one"\nand goes on',
    "Grüße, 世界, עברית, 🙂, \u2581",
    "# not a comment\nFROM nowhere\nPARAMETER stop x",
    "tab\there",
    "carriage\r\nreturn",
    'back\\slash \\n \\"',
    "{{ .System }} {% if x %}",
    " ",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("keyword", ["SYSTEM", "LICENSE", "TEMPLATE", "PARAMETER stop"])
def test_texts_survive(text: str, keyword: str) -> None:
    written = {
        "SYSTEM": Modelfile(("./m.gguf",), system=text, license=("after",)),
        "LICENSE": Modelfile(("./m.gguf",), license=(text, "after")),
        "TEMPLATE": Modelfile(("./m.gguf",), template=text, license=("after",)),
        "PARAMETER stop": Modelfile(("./m.gguf",), (("stop", text),), license=("after",)),
    }[keyword]
    assert parsed(written) == [("FROM", "./m.gguf"), (keyword, text), ("LICENSE", "after")]


def test_a_line_ending_with_three_quotes_cannot_be_written() -> None:
    with pytest.raises(InputError, match="SYSTEM has a line that ends with three quotes") as caught:
        made(model(), system='Write """  \nand more').render()
    assert 'after the """' in caught.value.remedy
    assert quote('Only one line with """', "SYSTEM")


def test_characters_that_ollama_drops_are_named_and_spaces_stay_spaces() -> None:
    written = made(model(), system="一\u3000二\u00a0x 👩\u200d🚀")
    assert values(written, "SYSTEM") == ["一 二 x 👩🚀"]
    assert "# SYSTEM without U+3000, U+00A0, U+200D: Ollama drops them" in written.render()
    assert "# SYSTEM without" not in made(model(), system="é").render()


def test_characters_newer_than_pythons_tables_stay() -> None:
    shaking, none = "\U0001fae8", "\ufdd0"  # Of Unicode 15, which Python 3.11 lacks; and of none.
    assert made(model(), system=f"a{shaking}{none}b").system == f"a{shaking}b"
    unknown = "\U0002fff0"  # Unassigned so far.
    text = made(model(), system=unknown).render()
    assert unknown in text
    assert "# SYSTEM with U+2FFF0: an Ollama too old to know them drops them." in text


def test_the_seed_cards_hand_written_file_reads_as_it_is() -> None:
    text = 'from ./m.gguf\n# a comment "\nTEMPLATE """<bos>\n{{ .Prompt }}\n"""\nPARAMETER stop x\n'
    assert read(b"\xef\xbb\xbf" + text.encode()) == [
        ("FROM", "./m.gguf"),
        ("TEMPLATE", "<bos>\n{{ .Prompt }}\n"),
        ("PARAMETER stop", "x"),
    ]
    for wrong in ("SYSTEM x\n", "FROM\n", "FORM x\n", 'FROM x\nSYSTEM """open\n'):
        with pytest.raises(ModelfileError):
            read(wrong.encode())


def test_a_rendered_file_ends_in_one_newline_and_comments_stay_on_their_line() -> None:
    text = Modelfile(from_paths=("./m.gguf",), comments=("a\nFROM b",)).render()
    assert text == "# a FROM b\nFROM ./m.gguf\n"


# --- ollama create


def test_the_two_commands() -> None:
    assert create_commands("me/moe:21b", Path("my models/Modelfile")) == [
        "ollama create me/moe:21b -f 'my models/Modelfile'",
        "ollama run me/moe:21b",
    ]


@pytest.mark.parametrize("name", ["", "-f", "a b", "a;rm", "a/b/c/d", "x:", "ü"])
def test_names_that_ollama_refuses(name: str) -> None:
    with pytest.raises(InputError, match="not a name"):
        create_commands(name, Path("Modelfile"))


def test_create_runs_ollama_if_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def runner(command: list[str], **_: Any) -> Any:
        calls.append(command)
        return SimpleNamespace(returncode=len(calls) - 1)

    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert create("moe", Path("Modelfile"), runner=runner) is False
    assert calls == []
    monkeypatch.setattr(shutil, "which", lambda name: f"/opt/{name}")
    assert create("moe", Path("Modelfile"), runner=runner) is True
    assert calls == [["/opt/ollama", "create", "moe", "-f", "Modelfile"]]
    with pytest.raises(OutputError, match="ended with code 1") as caught:
        create("moe", Path("Modelfile"), runner=runner)
    assert "ollama create moe -f Modelfile" in caught.value.remedy

    def broken(command: list[str], **_: Any) -> Any:
        raise PermissionError("not allowed")

    with pytest.raises(OutputError, match="not allowed"):
        create("moe", Path("Modelfile"), runner=broken)
