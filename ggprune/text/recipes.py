"""Published calibration mixes by name: ``@reap-agentic``.

A recipe says of each part which data set, subset, split and fields it takes and how many rows;
the rows come from the Hub. Which rows the authors took is not published, so these are drawn with
a fixed seed: the same recipe gives the same text everywhere.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ggprune.errors import InputError
from ggprune.hub.client import Hub
from ggprune.hub.errors import Failure
from ggprune.hub.files import Repo
from ggprune.text import parquet
from ggprune.text.documents import Document, Message, Source
from ggprune.text.layouts import Row
from ggprune.text.recipe_table import RECIPES, Part, Recipe

log = logging.getLogger(__name__)

#: The Hub keeps every public data set as Parquet here: SUBSET/SPLIT/0000.parquet.
CONVERTED = "refs/convert/parquet"
_SEED = 42
_NAME = re.compile(r"@(?P<name>[\w-]+)(?::(?P<count>\d+))?")


def load_recipe(name: str) -> tuple[Source, ...]:
    """Load the text of a recipe, by domain.

    ``@reap-agentic:600`` takes about 600 rows of ``@reap-agentic`` in the same proportions.

    Raises:
        InputError: no such recipe, pyarrow is needed and missing, or a data set has changed.
        HubError: a data set cannot be downloaded.
    """
    recipe, parts = _chosen(name)
    hub = Hub()
    log.info("%s: %s. %s", name, recipe.title, recipe.note)
    domains: dict[str, list[Document]] = {}
    for part in parts:
        domains.setdefault(part.domain, []).extend(_documents(part, hub))
    return tuple(Source(domain, tuple(documents)) for domain, documents in domains.items())


def _chosen(name: str) -> tuple[Recipe, list[Part]]:
    """Look up the recipe and its parts, scaled to the number asked for."""
    match = _NAME.fullmatch(name)
    recipe = RECIPES.get(match["name"]) if match else None
    if match is None or recipe is None:
        raise InputError(
            f"{name}: is not a recipe",
            remedy=f"Known: {', '.join(f'@{known}' for known in RECIPES)}; @NAME:600 takes about "
            "600 rows. A file of this name is ./" + name,
        )
    share = min(int(match["count"] or recipe.count) / recipe.count, 1.0)
    return recipe, [
        replace(part, count=max(round(part.count * share), 1), skip=round(part.skip * share))
        for part in recipe.parts
    ]


def _documents(part: Part, hub: Hub) -> Iterator[Document]:
    """Read the part's rows as conversations."""
    wanted, total = part.skip + part.count, 0
    paths: list[Path] = []
    for repo, file in _files(part, hub):
        paths.append(hub.download(repo, file))
        total += _count(paths[-1])
        if total >= wanted:
            break
    order = list(range(total))
    random.Random(_SEED).shuffle(order)
    taken = set(order[part.skip : wanted])
    if len(taken) < part.count:
        log.info("%s: has %d of the %d rows", part, len(taken), part.count)
    empty = 0
    for number, row in enumerate(row for path in paths for row in _rows(path, part)):
        turns = _turns(part, row, number) if number in taken else ()
        empty += number in taken and not turns
        if turns:
            yield Document(messages=turns, where=f"{part} row {number}")
    if empty:
        log.info("%s: %d empty rows skipped", part, empty)


def _turns(part: Part, row: Row, number: int) -> tuple[Message, ...]:
    try:
        return tuple(turn for turn in part.form(row) if turn.content.strip())
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"{part} row {number}: is not as expected: {type(error).__name__}: {error}",
            remedy="The data set may have changed; give its file as text=NAME=hf://datasets/…",
        ) from error


def _files(part: Part, hub: Hub) -> list[tuple[Repo, str]]:
    """List the part's files: JSON lines as uploaded, else Parquet as the Hub converts every set."""
    plain = Repo(part.dataset, "dataset")
    names = [file.path for file in hub.files(plain)]
    if found := [(plain, name) for name in names if _is_of(name, part, ".jsonl")]:
        return found
    converted = Repo(part.dataset, "dataset", CONVERTED)
    try:
        found = [(converted, name) for name in _converted(hub, converted, part)]
    except Failure as failure:
        if not failure.missing:
            raise
    found = found or [(plain, name) for name in names if _is_of(name, part, ".parquet")]
    if not found:
        raise InputError(
            f"{part}: no file of this split was found",
            remedy="The data set may have changed; give a file as text=NAME=hf://datasets/…",
        )
    return found


def _converted(hub: Hub, repo: Repo, part: Part) -> list[str]:
    """SUBSET/SPLIT/*.parquet; the first rows only (``partial-SPLIT``) of a very large set."""
    subset = re.escape(part.subset) if part.subset else "[^/]*"
    wanted = re.compile(rf"{subset}/(?:partial-)?{re.escape(part.split)}/.*\.parquet")
    return [file.path for file in hub.files(repo) if wanted.fullmatch(file.path)]


def _is_of(name: str, part: Part, suffix: str) -> bool:
    """Whether a file as uploaded is of the part's subset and split, by its name."""
    subset = not part.subset or part.subset in re.split(r"[/.-]", name)
    return name.endswith(suffix) and part.split in re.split(r"[/_.-]", name) and subset


def _count(path: Path) -> int:
    if path.suffix == ".parquet":
        return parquet.count(path)
    with path.open(encoding="utf-8-sig") as stream:
        return sum(bool(line.strip()) for line in stream)


def _rows(path: Path, part: Part) -> Iterator[Row]:
    if path.suffix == ".parquet":
        yield from parquet.rows(path, part.fields)
        return
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream):
            try:
                if line.strip():
                    yield json.loads(line)
            except ValueError as error:
                raise InputError(f"{part} line {number + 1}: invalid JSON: {error}") from error
