"""Tables behind the Modelfile: what Ollama calls a setting, and what it renders itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

#: ``general.sampling.*`` keys of llama.cpp (src/llama-arch.cpp) and their Ollama names.
SAMPLING = {
    "general.sampling.temp": "temperature",
    **{f"general.sampling.{name}": name for name in ("top_k", "top_p", "min_p")},
    "general.sampling.penalty_last_n": "repeat_last_n",
    "general.sampling.penalty_repeat": "repeat_penalty",
}

#: Every parameter that ``ollama create`` accepts and keeps, with its type. Names that Ollama only
#: warns about (mirostat, low_vram, ...) or refuses (typical_p) are left out on purpose.
PARAMETERS: dict[str, type] = {
    name: kind
    for kind, names in {
        float: "temperature top_p min_p repeat_penalty presence_penalty frequency_penalty",
        int: "top_k repeat_last_n seed num_ctx num_predict num_keep num_batch num_gpu num_thread "
        "main_gpu draft_num_predict",
        bool: "use_mmap",
        str: "stop",
    }.items()
    for name in names.split()
}

#: Tokens that end an assistant's turn, after llama.cpp's list (src/llama-vocab.cpp). Two of its
#: entries are missing here: ``<|tool_response>`` ends no turn, and ``</s>`` as text also occurs
#: in HTML, so it counts only where the GGUF names it by id.
END_OF_TURN = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|return|>",
    "<|call|>", "<|calls|>", "<|flush|>", "<|END_OF_TURN_TOKEN|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|endoftext|>", "<|end_of_text|>",
    "<end_of_utterance>", "<|role_end|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[e~[",
)  # fmt: skip

#: Where both tokens of a pair exist, ``<|end|>`` ends a channel and the turn goes on (gpt-oss,
#: solar-open); llama.cpp makes the same exception.
CHANNEL_PAIRS = (("<|return|>", "<|call|>"), ("<|calls|>", "<|flush|>"))


@dataclass(frozen=True, slots=True)
class Renderer:
    """A renderer and parser built into Ollama, and the models they are right for.

    ``name`` is a pattern that the model's name in the metadata must hold; ``jinja`` are strings
    that its chat template must hold, ``without`` strings that it must not hold; ``experts`` says
    whether it must be a mixture of experts.
    """

    renderer: str
    parser: str
    architectures: tuple[str, ...]
    name: str = ""
    jinja: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    stop: str | None = None
    experts: bool | None = None
    note: str | None = None


_NEW = "Ollama before 0.21 does not know gemma4-{}: write RENDERER gemma4 for it."
#: Of Gemma 4 the large models (12B, 26B-A4B, 31B) are shown an empty thought before an answer
#: without thinking, the small ones (E2B, E4B) are not. Ollama takes ``gemma4`` for one of the two
#: by the name it is given, else by the number of parameters, which pruning changes.
_LARGE = Renderer("gemma4-large", "gemma4", ("gemma4",), stop="<turn|>", note=_NEW.format("large"))
_QWEN_VL = ("qwen3vl", "qwen3vlmoe")

#: Gemma 4, Laguna and Nemotron are what ``ollama create`` sets by itself; they are written out so
#: that the file says what will happen. The rest follow the models of Ollama's own library.
RENDERERS = (
    replace(_LARGE, renderer="gemma4-small", name=r"\be[24]b\b", note=_NEW.format("small")),
    replace(_LARGE, experts=True),
    replace(_LARGE, name=r"(?:12|26|31)b"),
    replace(_LARGE, jinja=(r"<|channel>thought\n<channel|>",)),
    Renderer("gemma4", "gemma4", ("gemma4",), stop="<turn|>"),
    Renderer("laguna", "laguna", ("laguna",)),
    Renderer(
        "nemotron-3-nano",
        "nemotron-3-nano",
        ("nemotron_h", "nemotron_h_moe"),
        without=("<SPECIAL_1",),  # Nemotron Nano 2: same architecture, another conversation format
    ),
    Renderer("qwen3-coder", "qwen3-coder", ("qwen3moe", "qwen3next"), jinja=("<function=",)),
    Renderer("qwen3-vl-thinking", "qwen3-vl-thinking", _QWEN_VL, jinja=("<think>",)),
    Renderer("qwen3-vl-instruct", "qwen3-vl-instruct", _QWEN_VL, without=("<think>",)),
    Renderer("qwen3.5", "qwen3.5", ("qwen35", "qwen35moe"), name=r"qwen[ _-]?3\.5"),
    Renderer("glm-4.7", "glm-4.7", ("glm4moe", "deepseek2"), name=r"glm[ _-]?4\.7"),
    Renderer("deepseek3.1", "deepseek3", ("deepseek2",), name=r"deepseek[ _-]?v3\.1"),
)


def renderer_for(architecture: str, name: str, jinja: str, *, experts: bool) -> Renderer | None:
    """Return the built-in renderer for a model; None where its chat template is the better guide.

    ``name`` is what the metadata calls the model (name, base name), in one text.
    """
    fitting = (
        rule
        for rule in RENDERERS
        if architecture in rule.architectures
        and rule.experts in (None, experts)
        and re.search(rule.name, name, re.IGNORECASE)
        and all(sign in jinja for sign in rule.jinja)
        and not any(sign in jinja for sign in rule.without)
    )
    return next(fitting, None)
