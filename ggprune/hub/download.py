"""Models and texts by their name on the Hub, as local paths in huggingface_hub's cache."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ggprune.errors import HubError
from ggprune.gguf_file import split_shard_name
from ggprune.hub.addresses import Reference, parse
from ggprune.hub.client import Hub
from ggprune.hub.errors import Failure
from ggprune.hub.files import RemoteFile
from ggprune.util import first_few

log = logging.getLogger(__name__)

#: llama.cpp's rule (common/download.cpp): files with these in their name are not models.
_SIDECARS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")


def resolve_model(reference: str) -> Path:
    """Find the local path of a model; download it if it is named by its place on the Hub.

    A reference is ``hf://owner/repo/file.gguf[@revision]``, ``owner/repo:Q4_K_M`` (as llama.cpp
    has it), or a path. A path that exists always wins, and what looks like neither is returned as
    a path, so that opening it says what is missing. Of several shards, all are there, and the
    path is that of the first.

    Raises:
        HubError: it is not there, may not be read, or the connection keeps breaking.
    """
    found = None if os.path.lexists(reference) else parse(reference)
    if found is None:
        return Path(reference)
    hub = Hub()
    files = [file.path for file in _listing(hub, found, reference)]
    shards = shards_of(_named(files, found, reference), files, reference)
    more = f" and {len(shards) - 1} more shards" if len(shards) > 1 else ""
    log.info("%s is %s/%s%s", reference, found.repo.name, shards[0], more)
    if projectors := [file for file in files if "mmproj" in PurePosixPath(file).name]:
        log.info(
            "%s has %s too, for images: a projector works with the pruned model as well",
            found.repo.name,
            first_few(projectors, 4),
        )
    paths = [hub.download(found.repo, shard) for shard in shards]
    return paths[0]


def resolve_text(reference: str) -> Path:
    """Find the local path of a text file: ``hf://datasets/owner/repo/file.jsonl``, or a path."""
    found = None if os.path.lexists(reference) else parse(reference)
    if found is None or found.file is None:
        return Path(reference)
    return Hub().download(found.repo, found.file)


def shards_of(file: str, files: Sequence[str], reference: str) -> list[str]:
    """List all shards of the model that ``file`` is (one of), in order.

    Raises:
        HubError: a shard is missing from the repository.
    """
    shard = split_shard_name(file)
    if shard is None:
        return [file]
    missing = sorted(set(shard.all) - set(files))
    if missing:
        raise HubError(
            f"{reference}: the repository has no {missing[0]} ({len(missing)} of {shard.total} "
            "shards are missing)",
            remedy="Its upload may not be finished; choose another quantization.",
        )
    return shard.all


def with_tag(files: Sequence[str], tag: str) -> str | None:
    """Find the model file that llama.cpp's ``owner/repo:TAG`` means, if any.

    As in llama.cpp: the tag, in any case, followed by ``.`` or ``-`` in the path; not a sidecar;
    the first shard. Of several, one whose name ends with the tag is preferred, so that Q4_K_M is
    not IQ4_K_M.
    """
    models = [file for file in sorted(files) if _is_model(file)]
    for before in (r"(?:^|[-._/])", ""):
        pattern = re.compile(before + re.escape(tag) + "[.-]", re.IGNORECASE)
        if found := next(filter(pattern.search, models), None):
            return found
    return None


def _is_model(file: str) -> bool:
    name = PurePosixPath(file).name
    shard = split_shard_name(file)
    return (
        name.endswith(".gguf")
        and not any(sidecar in name for sidecar in _SIDECARS)
        and (shard is None or shard.number == 0)
    )


def _listing(hub: Hub, found: Reference, reference: str) -> list[RemoteFile]:
    try:
        return hub.files(found.repo)
    except Failure as failure:
        # Without a connection what is in the cache is still good, if it is named by file.
        if failure.status or not found.file:
            raise
        shard = split_shard_name(found.file)
        return [RemoteFile(name, 0, None, "") for name in (shard.all if shard else [found.file])]


def _named(files: Sequence[str], found: Reference, reference: str) -> str:
    """Choose the file that is meant, among those of the repository."""
    file = found.file if found.file in files else None
    if found.tag:
        file = with_tag(files, found.tag)
    if file is not None:
        return file
    models = [name for name in files if _is_model(name)]
    wanted = f"quantization {found.tag}" if found.tag else f"file {found.file}"
    raise HubError(
        f"{reference}: {found.repo} has no {wanted}",
        remedy=f"It has: {first_few(models, 12)}." if models else "It has no GGUF model at all.",
    )
