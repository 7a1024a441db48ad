"""MODEL on the command line: a path, or a model's name on the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ggprune.cli.notes import show_notes


class Model(click.ParamType):  # type: ignore[type-arg]
    """A GGUF file, ``hf://owner/repo/file.gguf[@revision]`` or ``owner/repo:Q4_K_M``.

    Gives a path. Only a value that does not exist as a path and looks like a name on the Hub
    loads the Hub's library and downloads.
    """

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Find or download it."""
        if isinstance(value, Path):
            return value
        text = os.fspath(value)
        local = ":" not in text or os.path.lexists(text)
        if local or (ctx is not None and ctx.resilient_parsing):
            return Path(text)
        from ggprune.hub.download import resolve_model

        show_notes(quiet=bool(ctx and ctx.params.get("quiet")))
        return resolve_model(text)


MODEL = Model()


def output_folder(model: Path) -> Path:
    """Where results go by default: beside the model, but never into the Hub's cache."""
    from ggprune.hub.client import cache_folder

    # Not resolved: in the cache, a model's path is a link to a blob, which is in the cache too.
    folder = Path(os.path.abspath(model)).parent
    cache = Path(os.path.abspath(cache_folder()))
    return Path.cwd() if cache in folder.parents else folder
