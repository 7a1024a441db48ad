"""What the bytes of a pruned file would buy otherwise; light, and nothing is run."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

from ggprune.gguf_file import GgufModel, stem_of
from ggprune.util import human_size

ANSWERS = "answers.jsonl"
#: Bits a weight below which llama.cpp has no type.
_FEWEST_BITS = 2.2
_NEAR = 0.01


def work_folder(model: Path) -> Path:
    """Where what is measured of a model lies, if no other folder is named."""
    return Path(f"{stem_of(model)}.fit")


def remember(work: Path, answer: dict[str, object]) -> None:
    """Keep the answer for one size."""
    with open(work / ANSWERS, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(answer) + "\n")


def otherwise(model: Path, size: int, *, work: Path | None = None) -> str:
    """Say in one line what a file of so many bytes could be, and how to make it.

    Args:
        size: bytes of the pruned file.
        work: folder of an earlier `ggprune fit`; None for the usual one.
    """
    command = f"ggprune fit {shlex.quote(str(model))} --target-size {size}"
    for answer in reversed(answers(work or work_folder(model))):
        if abs(answer["size_bytes"] / size - 1) < _NEAR:
            return (
                f"The same {human_size(size)} also hold {answer['keep']} of {answer['experts']} "
                f"experts in better chosen types, KL divergence {answer['kld_mean']:.5f} "
                f"(measured): {command}"
            )
    with GgufModel(model) as gguf:
        bits = 8 * size / sum(math.prod(tensor.shape) for tensor in gguf.tensors)
    if bits < _FEWEST_BITS:
        return f"No type is low enough for all experts in {human_size(size)}; see {command}"
    return (
        f"The same {human_size(size)} also hold all experts at {bits:.1f} bits a weight, which "
        f"most often costs less than missing ones (predicted, not measured): {command}"
    )


def answers(work: Path) -> list[dict[str, float]]:
    """Return what earlier runs found for their sizes."""
    try:
        lines = (work / ANSWERS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []
