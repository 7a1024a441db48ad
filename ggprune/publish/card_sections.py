"""The sections of a model card as Markdown; each says what is not recorded."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ggprune.choosing.methods.sums import COVER, METHODS
from ggprune.publish.card_facts import Card, ModelFile
from ggprune.publish.markdown import clean, table
from ggprune.util import human_size

_COLUMNS = 3
_LONGEST_SETTING = 120


def introduction(card: Card) -> str:
    """Title, what it is, and both sides in numbers."""
    before, now = card.experts_before, card.experts
    name = clean(_source(card).get("name"))
    of = "a larger model"
    if card.base_model:
        of = f"[{card.base_model}](https://huggingface.co/{card.base_model})"
    elif name:
        of = f"`{name}`"
    count = f"{now} of {before}" if before else f"{now}"
    text = (
        f"# {clean(card.title)}\n\n"
        f"Expert-pruned version of {of}: {count} experts are left in each mixture-of-experts "
        "layer. GGUF for llama.cpp and Ollama.\n"
    )
    if card.metadata:
        text += (
            "\nThe experts that stay, the router's rows for them and all other tensors are the "
            "original's, apart from quantization; nothing was merged, repaired or trained.\n"
        )
        if card.experts_used != card.experts_used_before:
            before_used = card.experts_used_before
            text += f"A token uses {card.experts_used} of them, where it used {before_used}.\n"
    rows = [["Experts a layer", str(before or "not recorded"), f"{now}{_less(now, before)}"]]
    used = [str(card.experts_used_before), str(card.experts_used)]
    rows.append(["Experts used for a token", *used])
    if card.parameters_before:
        share = _less(card.parameters, card.parameters_before)
        counts = [_count(card.parameters_before), f"{_count(card.parameters)}{share}"]
        rows.append(["Parameters", *counts])
    return f"{text}\n{table(['', 'Original', 'This model'], rows + _sizes(card))}"


def files(card: Card) -> str:
    """Sizes by quantization."""
    rows = []
    for file in card.files:
        shards = f" ({file.shards} shards)" if file.shards > 1 else ""
        rows.append([f"`{file.name}`{shards}", file.quantization, human_size(file.size)])
    return f"## Files\n\n{table(['File', 'Quantization', 'Size'], rows)}"


def pruning(card: Card) -> str:
    """What was pruned and how."""
    metadata = card.metadata
    if metadata is None:
        return "## How it was pruned\n\nNot recorded.\n"
    dropped = card.experts_before - card.experts
    lines = [
        "## How it was pruned\n",
        f"{_chosen(str(metadata.get('method', '')))} In every layer {dropped} of "
        f"{card.experts_before} experts were dropped, different ones in each; the drop map is in "
        "`*.expert_drop_metadata.json`. Written by ggprune "
        f"{clean(metadata.get('tool_version'))}.\n",
        _calibration(metadata.get("calibration")),
    ]
    settings = _settings(metadata.get("settings"))
    if settings:
        lines.append(f"Settings: {settings}.\n")
    return "\n".join(lines)


def _chosen(name: str) -> str:
    """How the experts were chosen, as far as the method's name tells."""
    if name == COVER:
        return (
            "The original ran in llama.cpp over calibration text, and the experts to keep were "
            "chosen token by token, so that no token loses most of what its experts do "
            "(method `cover`)."
        )
    method = METHODS.get(name)
    if method is None:
        return f"The experts to keep were chosen by `{clean(name)}`."
    if name == "random":
        return "The experts to keep were drawn at random: a control, not a good model."
    return (
        "The original ran in llama.cpp over calibration text, and each expert of each layer got a "
        f"score by the method `{name}`: {method.formula} ({method.source})."
    )


def retained(card: Card) -> str:
    """Share of each layer's weighted output that the kept experts had."""
    layers = (card.metadata or {}).get("layers") or {}
    shares = {int(n): part.get("retained") for n, part in layers.items()}
    known = {n: share for n, share in shares.items() if isinstance(share, int | float)}
    if not known:
        return "## Retained output by layer\n\nNot measured.\n"
    cells = [[f"L{n}", f"{share:.2%}"] for n, share in sorted(known.items())]
    height = -(-len(cells) // _COLUMNS)
    columns = [cells[i : i + height] for i in range(0, len(cells), height)]
    rows = []
    for i in range(height):
        rows.append([c for column in columns for c in (column[i] if i < len(column) else ["", ""])])
    worst = min(known, key=known.__getitem__)
    mean = sum(known.values()) / len(known)
    text = (
        "## Retained output by layer\n\n"
        "Share of the layer's Σ g‖f‖ over the calibration tokens that the kept experts had in the "
        "original model (g: gate weight, f: the expert's output). It says how much was there, not "
        "how well the rest does without it.\n\n"
        f"{table(['Layer', 'Retained'] * len(columns), rows)}\n"
        f"Worst: layer {worst} at {known[worst]:.2%}; mean {mean:.2%}.\n"
    )
    return text + _unobserved(layers)


def running(card: Card) -> str:
    """Commands for llama.cpp and Ollama."""
    file = _recommended(card.files)
    if card.repo:
        server = f"llama-server -hf {card.repo}:{file.quantization} -c 8192"
        ollama = f"ollama run hf.co/{card.repo}:{file.quantization}"
    else:
        server, ollama = f"llama-server -m {_quoted(file.name)} -c 8192", ""
    name = card.title.lower()
    if file.modelfile:
        made = f"ollama create {_quoted(name)} -f {_quoted(file.modelfile)}"
        ollama = "\n".join(
            filter(None, [f"{made}\nollama run {_quoted(name)}", ollama and f"# or\n{ollama}"])
        )
    text = (
        "## How to run\n\nWith [llama.cpp](https://github.com/ggml-org/llama.cpp) "
        "(it uses the chat template in the file):\n\n"
        f"```sh\n{server}\n```\n"
    )
    if ollama:
        text += f"\nWith [Ollama](https://ollama.com):\n\n```sh\n{ollama}\n```\n"
    else:
        text += (
            "\nWith [Ollama](https://ollama.com): `ggprune modelfile` writes a Modelfile with "
            "this model's stops and settings.\n"
        )
    if file.shards > 1:
        text += "\nAll shards must be in one folder; name the first.\n"
    return text


def provenance(card: Card) -> str:
    """Where it comes from, exactly enough to do it again; and the licence."""
    source, metadata = _source(card), card.metadata or {}
    facts = [
        ("Pruned from", f"`{clean(source.get('name'))}`{_bytes(source)}")
        if source
        else ("Pruned from", "not recorded"),
        (
            "Fingerprint of it",
            f"`{clean(source.get('fingerprint'))}` (SHA-256 of header and routers)",
        )
        if source.get("fingerprint")
        else None,
        ("Plan", f"SHA-256 `{clean(metadata.get('plan_sha256'))}`")
        if metadata.get("plan_sha256")
        else None,
        (
            "Architecture",
            f"{card.architecture}, {card.layers} layers, {card.moe_layers} with experts"
            + (f", trained for {card.context:,} tokens" if card.context else ""),
        ),
    ]
    lines = [f"- {name}: {text}" for name, text in filter(None, facts)]
    return "## Provenance\n\n" + "\n".join(lines) + f"\n\n## License\n\n{_licence(card)}\n"


def _licence(card: Card) -> str:
    name = clean(card.licence_name or card.licence)
    if not name:
        return "The GGUF does not state one. That of the original model applies."
    text = f"[{name}]({card.licence_link})" if card.licence_link.startswith("http") else name
    return f"{text}, inherited from the original model."


def _calibration(found: Any) -> str:
    domains = (found or {}).get("domains") or {}
    if not domains:
        return "The calibration text is not recorded.\n"
    rows = [[clean(name), f"{part.get('tokens', 0):,}"] for name, part in domains.items()]
    text = table(["Calibration text", "Tokens"], rows)
    settings = _settings((found or {}).get("settings"))
    return text + (f"\nCalibrated with {settings}.\n" if settings else "")


def _settings(found: Any) -> str:
    """Settings in a line; long ones are left to the drop metadata."""
    parts = []
    for name, value in (found or {}).items():
        text = json.dumps(value, ensure_ascii=False)
        if value not in (None, "", {}, []) and len(text) <= _LONGEST_SETTING:
            parts.append(f"`{clean(name)}` {clean(text)}")
    return ", ".join(parts)


def _unobserved(layers: Mapping[str, Any]) -> str:
    """Layers that calibration does not reach, and how they were pruned."""
    rules = {n: part.get("rule") for n, part in layers.items() if part.get("rule")}
    return "".join(f"\nLayer {n}: {clean(rule)}.\n" for n, rule in rules.items())


def _sizes(card: Card) -> list[list[str]]:
    """The pruned file beside what it was pruned from: one quantization."""
    source, result = _source(card), (card.metadata or {}).get("result") or {}
    if not source.get("size_bytes") or not result.get("size_bytes"):
        return []
    before, now = source["size_bytes"], result["size_bytes"]
    name = f"Size as pruned (`{clean(source.get('name'))}`)"
    return [[name, human_size(before), f"{human_size(now)}{_less(now, before)}"]]


def _bytes(source: Mapping[str, Any]) -> str:
    size = source.get("size_bytes")
    return f", {size:,} bytes" if isinstance(size, int) else ""


def _source(card: Card) -> Mapping[str, Any]:
    found = (card.metadata or {}).get("source")
    return found if isinstance(found, Mapping) else {}


def _recommended(candidates: Sequence[ModelFile]) -> ModelFile:
    """What the example runs: Q4_K_M as llama.cpp's own default, else the smallest."""
    named = [file for file in candidates if file.quantization == "Q4_K_M"]
    return named[0] if named else min(candidates, key=lambda file: file.size)


def _quoted(name: str) -> str:
    return shlex.quote(name)


def _count(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _less(now: int, before: int) -> str:
    return f" (-{1 - now / before:.1%})" if before else ""
