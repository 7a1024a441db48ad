"""MODEL on the command line: a path, or a model's name on the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ggprune.cli.values import reader


@reader
def model(value: str) -> Path:
    """Find a GGUF file, ``hf://owner/repo/file.gguf[@revision]`` or ``owner/repo:Q4_K_M``.

    Only a value that does not exist as a path and looks like a name on the Hub loads the Hub's
    library and downloads.
    """
    context = click.get_current_context(silent=True)
    local = ":" not in value or os.path.lexists(value)
    if local or (context is not None and context.resilient_parsing):
        return Path(value)
    from ggprune.hub.download import resolve_model

    return resolve_model(value)


#: For ``click.argument("model", type=MODEL)``.
MODEL = model
