"""The Hugging Face Hub: list, download, commit. The only module that imports huggingface_hub.

Every call goes through ``_attempt``: it tries again what may work later (429 after the time the
Hub asks for, server errors, dropped connections) and turns the rest into HubError with a remedy.
No token ever reaches a message or a log: see ``redacted``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ggprune.errors import GgpruneError, HubError
from ggprune.hub.errors import LOGIN, Failure, redacted
from ggprune.hub.files import LocalFile, RemoteFile, Repo

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

Result = TypeVar("Result")

ENDPOINT = "https://huggingface.co"
#: Seconds before the second, third, ... attempt, where the Hub names no time itself. The library
#: tries single requests again too; this is for those it does not (commits, first connections).
_WAITS = (1.0, 4.0, 15.0)
#: A longer Retry-After than this is reported instead of waited for.
_LONGEST_WAIT = 600.0


class Hub:
    """A connection to the Hub that HF_ENDPOINT names, with the token huggingface_hub finds.

    Raises HubError where something is not there or refused, or the connection keeps breaking.
    """

    def __init__(self) -> None:
        self.endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or ENDPOINT
        self._api: HfApi | None = None

    def url(self, repo: Repo) -> str:
        """Where a person sees the repository."""
        prefix = "" if repo.kind == "model" else f"{repo.kind}s/"
        tail = f"/tree/{repo.revision}" if repo.revision else ""
        return f"{self.endpoint}/{prefix}{repo.name}{tail}"

    def require_token(self) -> None:
        """Raise HubError unless there is a token: writing needs one."""
        if not has_token():
            raise HubError("the Hub takes files only from someone it knows", remedy=LOGIN)

    def files(self, repo: Repo) -> list[RemoteFile]:
        """All files of a repository at its revision, by path."""
        found = self._attempt(
            f"listing {repo}",
            lambda api: list(api.list_repo_tree(**_place(repo), recursive=True)),
            reading=True,
        )
        return sorted(_remote_files(found), key=lambda file: file.path)

    def exists(self, repo: Repo) -> bool:
        """Whether the repository (and its revision) can be seen."""
        try:
            self._attempt(
                f"looking for {repo}", lambda api: api.repo_info(**_place(repo)), reading=True
            )
        except Failure as failure:
            if failure.missing:
                return False
            raise
        return True

    def download(self, repo: Repo, path: str) -> Path:
        """Download a file into huggingface_hub's cache, or find it there; resumes."""
        from huggingface_hub import hf_hub_download

        found = self._attempt(
            f"downloading {path} of {repo}",
            lambda _: hf_hub_download(
                **_place(repo),
                filename=path,
                endpoint=self.endpoint,
                cache_dir=os.environ.get("HF_HUB_CACHE") or None,
            ),
        )
        return Path(found)

    def create(self, repo: Repo, *, private: bool) -> None:
        """Make the repository and its branch unless they exist."""
        self._attempt(
            f"creating {repo.name}",
            lambda api: api.create_repo(
                repo.name, private=private, repo_type=repo.kind, exist_ok=True
            ),
        )
        branch = repo.revision
        if branch:
            self._attempt(
                f"creating the branch {branch} of {repo.name}",
                lambda api: api.create_branch(
                    repo.name, branch=branch, repo_type=repo.kind, exist_ok=True
                ),
            )

    def commit(self, repo: Repo, files: Sequence[LocalFile], message: str) -> None:
        """Upload files as one commit; what the Hub's storage has already is not sent again."""
        from huggingface_hub import CommitOperationAdd

        def send(api: HfApi) -> object:
            operations = []
            for file in files:
                operation = CommitOperationAdd(file.name, str(file.path))
                # Saves reading a large file a second time.
                operation.upload_info.sha256 = bytes.fromhex(file.sha256)
                operations.append(operation)
            return api.create_commit(**_place(repo), operations=operations, commit_message=message)

        names = files[0].name if len(files) == 1 else f"{len(files)} files"
        self._attempt(f"uploading {names} to {repo}", send)

    def stored(self, repo: Repo, names: Sequence[str]) -> dict[str, RemoteFile]:
        """Ask what the Hub has under these paths."""
        found = self._attempt(
            f"checking {repo}",
            lambda api: api.get_paths_info(**_place(repo), paths=list(names)),
            reading=True,
        )
        return {file.path: file for file in _remote_files(found)}

    def _attempt(
        self, action: str, call: Callable[[HfApi], Result], *, reading: bool = False
    ) -> Result:
        """Call the library, again where that may help, with errors made readable.

        Where it is ``reading``, the library itself connects again and again: doing so several
        times over would keep someone without a network waiting for minutes.
        """
        for wait in (*_WAITS, None):
            try:
                with _bars():
                    return call(self._connect())
            except GgpruneError:
                raise
            except Exception as error:
                failure = Failure.of(error, action, token=has_token())
                if failure is None:
                    raise
                pause = failure.retry_after if failure.retry_after is not None else wait
                final = not failure.transient or (reading and not failure.status)
                if final or wait is None or pause is None or pause > _LONGEST_WAIT:
                    # Not chained: what the library raised may hold a signed address.
                    raise failure from None
                log.info("%s; trying again in %.0f s", failure.message, pause)
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _connect(self) -> HfApi:
        if self._api is None:
            from huggingface_hub import HfApi

            from ggprune.version import VERSION

            _guard_logs()
            self._api = HfApi(
                endpoint=self.endpoint, library_name="ggprune", library_version=VERSION
            )
        return self._api


@contextlib.contextmanager
def _bars() -> Iterator[None]:
    """Show the library's progress bars where ggprune's notes are shown, on a terminal."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    handlers = logging.getLogger("ggprune").handlers
    shown = sys.stderr.isatty() and any(handler.level <= logging.INFO for handler in handlers)
    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def metadata_block(fields: Mapping[str, Any]) -> str:
    """Write a model card's metadata as YAML between ``---`` lines, made by huggingface_hub.

    ``fields`` have the Hub's names (base_model, license, tags, ...); None is left out.
    """
    from huggingface_hub import ModelCardData

    return f"---\n{ModelCardData(**fields).to_yaml()}\n---\n"


def output_folder(model: Path) -> Path:
    """Return where results go by default: beside the model, but never into the Hub's cache."""
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE).expanduser()
    # Not resolved: in the cache, a model's path is a link to a blob, which is in the cache too.
    folder = Path(os.path.abspath(model)).parent
    return Path.cwd() if Path(os.path.abspath(cache)) in folder.parents else folder


def _place(repo: Repo) -> dict[str, Any]:
    return {"repo_id": repo.name, "repo_type": repo.kind, "revision": repo.revision}


def _remote_files(entries: Iterable[Any]) -> list[RemoteFile]:
    """Take the files among the entries of a listing, which holds folders too."""
    return [
        RemoteFile(each.path, each.size, each.lfs.sha256 if each.lfs else None, each.blob_id)
        for each in entries
        if hasattr(each, "blob_id")
    ]


def has_token() -> bool:
    """Whether huggingface_hub finds a token; its value stays there."""
    from huggingface_hub import get_token

    return bool(get_token())


class _Redact(logging.Filter):
    """Takes tokens and signed addresses out of the library's own messages."""

    def filter(self, record: logging.LogRecord) -> bool:
        from huggingface_hub import get_token

        record.msg = redacted(record.getMessage(), get_token())
        record.args = ()
        return True


def _guard_logs() -> None:
    from huggingface_hub.utils import logging as library

    library.get_logger("huggingface_hub")  # Gives the library's root logger its handler.
    for handler in logging.getLogger("huggingface_hub").handlers:
        if not any(isinstance(present, _Redact) for present in handler.filters):
            handler.addFilter(_Redact())
