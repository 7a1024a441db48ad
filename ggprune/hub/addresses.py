"""Names of models and texts on the Hub, as people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ggprune.errors import HubError
from ggprune.hub.files import Repo

_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = rf"{_PART}/{_PART}"
#: hf://[datasets/]owner/repo[@revision]/file[@revision]; the revision may have slashes only when
#: it stands last.
_ADDRESS = re.compile(
    rf"hf://(?P<kind>datasets/|models/)?(?P<name>{_NAME})(?:@(?P<early>[^/@]+))?"
    r"/(?P<file>[^@]+)(?:@(?P<late>.+))?"
)
_SHORTHAND = re.compile(rf"(?:hf://)?(?P<name>{_NAME}):(?P<tag>[\w.-]+)(?:@(?P<revision>.+))?")


@dataclass(frozen=True, slots=True)
class Reference:
    """A model or text on the Hub: a ``file`` of a repository, or a quantization's ``tag``."""

    repo: Repo
    file: str | None = None
    tag: str | None = None


def parse(reference: str) -> Reference | None:
    """Read ``hf://owner/repo/file[@revision]`` or ``owner/repo:TAG``; None for anything else."""
    match = _SHORTHAND.fullmatch(reference)
    if match:
        return Reference(Repo(match["name"], revision=match["revision"]), tag=match["tag"])
    match = _ADDRESS.fullmatch(reference)
    if match:
        kind = "dataset" if match["kind"] == "datasets/" else "model"
        repo = Repo(match["name"], kind, match["late"] or match["early"])
        return Reference(repo, file=match["file"])
    if reference.startswith("hf://"):
        raise HubError(
            f"{reference}: is not an address on the Hub",
            remedy="Write hf://OWNER/REPO/FILE.gguf[@REVISION], or OWNER/REPO:Q4_K_M.",
        )
    return None
