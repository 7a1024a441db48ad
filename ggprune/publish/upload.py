"""Publishing a folder on the Hub: what to send, what is there already, sending and checking it."""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggprune.errors import HubError, InputError
from ggprune.gguf_file import split_shard_name, write_text
from ggprune.hub.client import Hub
from ggprune.hub.files import LocalFile, RemoteFile, Repo
from ggprune.publish.kinds import STATISTICS, kind_of
from ggprune.types import Advance, Progress, no_progress
from ggprune.util import first_few, human_size

#: The Hub takes no larger file, and recommends smaller ones than the second number of bytes
#: (https://huggingface.co/docs/hub/storage-limits).
LARGEST_FILE = 500 * 1000**3
RECOMMENDED_FILE = 200 * 1000**3
CHECKSUMS = "SHA256SUMS"
CARD = "README.md"

#: A file from this size on is a commit of its own, so that a push that breaks keeps what it sent.
_OWN_COMMIT = 10 * 1000**2
_SUFFIXES = frozenset(
    {".gguf", ".md", ".json", ".jsonl", ".html", ".txt", ".dat", ".imatrix", ".png", ".toml"}
)
_NAMES = re.compile(r"(Modelfile|LICENSE|LICENCE|NOTICE|SHA256SUMS)([-.].*)?")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Push:
    """What a push does.

    Attributes:
        url: where a person sees the repository.
        creates: the repository (or its branch) is not there yet.
        upload: files to send.
        present: files that the Hub has with the same hash.
        left_out: files of the folder that are of no kind that belongs to a model, by name.
        checksums: the text of SHA256SUMS.
    """

    repo: Repo
    url: str
    creates: bool
    upload: tuple[LocalFile, ...]
    present: tuple[LocalFile, ...]
    left_out: tuple[str, ...]
    checksums: str

    @property
    def bytes_to_send(self) -> int:
        """Size of all files to send."""
        return sum(file.size for file in self.upload)


def repository(name: str, revision: str | None = None) -> Repo:
    """Check ``owner/name``; InputError if it is something else."""
    if not _REPO.fullmatch(name):
        raise InputError(
            f"{name}: is not a repository's name",
            remedy="Write OWNER/NAME, for instance me/my-model-GGUF.",
        )
    return Repo(name, revision=revision)


def contents(folder: Path) -> tuple[list[Path], list[str]]:
    """List the files of a folder that belong to a model, and the names of those that do not.

    Calibration statistics, hidden files and those of unknown kinds (which may hold anything) do
    not. The checksums are made anew.

    Raises:
        InputError: there is no such folder, no model in it, a shard is missing, or a file is too
            large for the Hub.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder", remedy="Give the folder with the models.")
    files, left_out = [], []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or str(name) == CHECKSUMS:
            continue
        hidden = any(part.startswith(".") for part in name.parts)
        known = path.suffix.lower() in _SUFFIXES or _NAMES.fullmatch(path.name)
        if known and not hidden and not (path.suffix == ".gguf" and kind_of(path) == STATISTICS):
            files.append(path)
        else:
            left_out.append(name.as_posix())
    if not any(path.suffix == ".gguf" for path in files):
        raise InputError(f"{folder}: has no .gguf file", remedy="Give the folder with the models.")
    for path in files:
        _check(path, files)
    return files, left_out


def push(
    folder: Path,
    name: str,
    *,
    revision: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> Push:
    """Publish a folder: large files first, each checked against what the Hub then has.

    Args:
        name: owner/name of the repository; made (``private``) if it is not there.
        revision: branch; made if it is not there. None for main.
        dry_run: compare only; nothing is sent.

    Raises:
        InputError: see contents; or ``name`` is something else.
        HubError: refused, broken off for good, or the Hub has other bytes than were sent.
    """
    repo, hub = repository(name, revision), Hub()
    found = contents(folder)
    if not dry_run:
        hub.require_token()
    with progress(sum(path.stat().st_size for path in found[0]), "hashing", "B") as advance:
        plan = _compare(folder, found, repo, hub, advance)
    _notes(plan, private=private)
    if not dry_run:
        _send(plan, folder, hub, private=private)
    return plan


def _compare(
    folder: Path, found: tuple[list[Path], list[str]], repo: Repo, hub: Hub, advance: Advance
) -> Push:
    paths, left_out = found
    there, creates = _present(repo, hub)
    files = [LocalFile.of(path, path.relative_to(folder).as_posix(), advance) for path in paths]
    sums = "".join(f"{file.sha256}  {file.name}\n" for file in files if file.name.endswith(".gguf"))
    files.append(_from_text(folder / CHECKSUMS, sums))
    same = [file for file in files if file.name in there and there[file.name].holds(file)]
    upload = tuple(file for file in files if file not in same)
    return Push(repo, hub.url(repo), creates, upload, tuple(same), tuple(left_out), sums)


def _notes(plan: Push, *, private: bool) -> None:
    files = (*plan.upload, *plan.present)
    for file in files:
        if file.size > RECOMMENDED_FILE:
            size, most = human_size(file.size), human_size(RECOMMENDED_FILE)
            split = _split_command(file.path)
            log.warning("%s: %s, the Hub recommends less than %s: %s", file.path, size, most, split)
    if CARD not in {file.name for file in files}:
        log.info("There is no README.md; `ggprune card MODEL` writes one.")
    if plan.left_out:
        log.info("Left out: %s", ", ".join(plan.left_out))
    if private and not plan.creates:
        log.info("The repository exists; private=True does not change it.")


def _send(plan: Push, folder: Path, hub: Hub, *, private: bool) -> None:
    if plan.creates:
        hub.create(plan.repo, private=private)
        log.info("created %s", plan.repo)
    if any(file.name == CHECKSUMS for file in plan.upload):
        write_text(folder / CHECKSUMS, plan.checksums)
    small = [file for file in plan.upload if file.size < _OWN_COMMIT]
    batches = [[file] for file in plan.upload if file.size >= _OWN_COMMIT] + [small]
    for batch in filter(None, batches):
        names = first_few([file.name for file in batch], 4)
        log.info("uploading %s", names)
        hub.commit(plan.repo, batch, f"Upload {names}")
        check(plan.repo, batch, hub)


def check(repo: Repo, files: Sequence[LocalFile], hub: Hub) -> None:
    """Compare the hashes that the Hub reports with our own; HubError if one differs."""
    stored = hub.stored(repo, [file.name for file in files])
    for file in files:
        found = stored.get(file.name)
        if found is None or not found.holds(file):
            what = _difference(file, found)
            raise HubError(
                f"{repo}: checksum mismatch after the upload of {file.name}: {what}",
                remedy="Delete the file on the Hub and push again; do not use what is there.",
            )


def _difference(file: LocalFile, found: RemoteFile | None) -> str:
    if found is None:
        return "the Hub does not have it"
    mine, theirs = (file.sha256, found.sha256) if found.sha256 else (file.blob, found.blob)
    sent = f"sent {str(mine)[:16]}… ({file.size:,})"
    return f"the Hub has {str(theirs)[:16]}… ({found.size:,} bytes), {sent}"


def _present(repo: Repo, hub: Hub) -> tuple[dict[str, RemoteFile], bool]:
    """List what the repository holds by path, and say whether it has to be made."""
    main = replace(repo, revision=None)
    if not hub.exists(main):
        return {}, True
    creates = bool(repo.revision) and not hub.exists(repo)
    # A new branch starts as a copy of main.
    return {file.path: file for file in hub.files(main if creates else repo)}, creates


def _check(path: Path, files: Sequence[Path]) -> None:
    """Refuse a file that is too large for the Hub, or a shard without the others."""
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise InputError(
            f"{path}: {size:,} bytes, the Hub takes files of up to {LARGEST_FILE:,}",
            remedy=f"Split it, and remove the whole file: {_split_command(path)}",
        )
    shard = split_shard_name(path.name)
    for number, name in enumerate(shard.all if shard else (), start=1):
        if shard and path.with_name(name) not in files:
            raise InputError(
                f"{path.with_name(name)}: shard {number} of {shard.total} is missing",
                remedy="Put all shards into the folder, or none.",
            )


def _split_command(path: Path) -> str:
    prefix = path.with_name(path.name.removesuffix(".gguf"))
    words = ("llama-gguf-split", "--split", "--split-max-size", "100G", str(path), str(prefix))
    return shlex.join(words)


def _from_text(path: Path, text: str) -> LocalFile:
    data = text.encode()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return LocalFile(path, path.name, len(data), hashlib.sha256(data).hexdigest(), blob)
