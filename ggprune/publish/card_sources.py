"""What a card is told by the files beside a model: drop metadata, evaluations, names, licence."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ggprune.errors import InputError
from ggprune.gguf_file import GgufModel, stem_of
from ggprune.quantization.names import result_stem
from ggprune.rewrite import PROVENANCE, drop_metadata
from ggprune.util import check_shape, read_json

_EVALUATION = ".evaluation.json"
_MEASURED = {"ppl?": float, "ppl_se?": float}
_EVALUATED = {
    "tokens": int,
    "base": _MEASURED,
    "candidate": _MEASURED,
    "ppl_ratio": float,
    "kld_mean": float,
    "top1_agreement?": float,
    "domains?": {str: {"tokens?": int}},
}
_HUB_PAGE = re.compile(r"https?://huggingface\.co/([\w.-]+/[\w.-]+)/?")
_PLAIN_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
#: Keys that name the model itself on the Hub, the most certain first. ``base_model`` is last: in a
#: file converted from the original it names what *that* was trained from.
_REPO_KEYS = (
    "general.source.huggingface.repository",
    "general.source.repo_url",
    "general.repo_url",
    "general.source.url",
    "general.url",
    "general.base_model.0.repo_url",
)


def modelfile(path: Path) -> str | None:
    """Find the name of a model's Modelfile beside it; None if there is none."""
    stem = path.name.removesuffix(".gguf")
    quantization = stem.removeprefix(result_stem(stem)).lstrip("-.")
    for name in (f"Modelfile-{quantization}", f"{stem}.Modelfile", "Modelfile"):
        target = path.with_name(name)
        with contextlib.suppress(OSError):
            if target.is_file() and (
                name != "Modelfile" or path.name in target.read_text("utf-8", "replace")
            ):
                return name
    return None


def metadata(given: Path | None, models: Sequence[Path]) -> dict[str, Any] | None:
    """Read the drop metadata: as given, of one of the models, or the only one beside them."""
    if given is None:
        candidates = [drop_metadata.metadata_path(path) for path in models]
        beside = sorted(models[0].parent.glob(f"*{drop_metadata.SUFFIX}"))
        found = [path for path in candidates if path.is_file()] or beside
        if not found or (len(found) > 1 and found is beside):
            return None
        given = found[0]
    data: dict[str, Any] = read_json(given, "drop metadata")
    check_shape(data, {}, str(given))
    if data.get("format") != drop_metadata.FORMAT:
        raise InputError(
            f'{given}: is not drop metadata: it lacks "format": "{drop_metadata.FORMAT}"',
            remedy="Give the NAME.expert_drop_metadata.json that `ggprune prune` wrote.",
        )
    return data


def recorded(gguf: GgufModel) -> dict[str, Any] | None:
    """Return what a pruned file itself says, in the drop metadata's form: all but the layers."""
    experts, keep = gguf.get(PROVENANCE + "source_experts"), gguf.get(PROVENANCE + "keep")
    if not isinstance(experts, int) or not isinstance(keep, int):
        return None
    same = ("method", "plan_sha256", "source_experts_used")
    return {
        "tool_version": gguf.get(PROVENANCE + "version"),
        "source": {"name": gguf.get(PROVENANCE + "source")},
        "experts": experts,
        "keep": keep,
        **{key: gguf.get(PROVENANCE + key) for key in same},
    }


def evaluations(given: Sequence[Path], models: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Read evaluations by model."""
    if not given:
        beside = {path: path.with_name(f"{stem_of(path)}{_EVALUATION}") for path in models}
        return {model: _evaluation(path) for model, path in beside.items() if path.is_file()}
    found: dict[Path, dict[str, Any]] = {}
    for path in given:
        of = [model for model in models if path.name.startswith(stem_of(model))]
        if not of and len(models) > 1:
            raise InputError(
                f"{path}: of which model is it?",
                remedy=f"Name it as the model, for instance {stem_of(models[0])}{_EVALUATION}.",
            )
        model = max(of, key=lambda model: len(stem_of(model)), default=models[0])
        found[model] = _evaluation(path)
    return found


def _evaluation(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = read_json(path, "what `ggprune evaluate` prints as JSON")
    check_shape(data, _EVALUATED, f"{path}: is not an evaluation")
    return data


def base_model(given: str | None, known: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Find owner/name of the unpruned model, and the key that says so."""
    if given:
        page = _HUB_PAGE.fullmatch(given)
        if page is None and not _PLAIN_ID.fullmatch(given):
            raise InputError(f"base_model={given}: is not OWNER/NAME on the Hub")
        return (page[1] if page else given), None
    for key in _REPO_KEYS:
        value = str(known.get(key, "")).strip()
        page = _HUB_PAGE.fullmatch(value)
        if page or (key == _REPO_KEYS[0] and _PLAIN_ID.fullmatch(value)):
            return (page[1] if page else value), key
    return None, None


def licence(
    given: str | None, known: Mapping[str, Any]
) -> tuple[str | None, str | None, str | None]:
    """Find the Hub's license, license_name and license_link."""
    name, long, link = given, None, None
    if not given:
        keys = ("general.license", "general.license.name", "general.license.link")
        name, long, link = (str(known.get(key, "")).strip() or None for key in keys)
    if not name:
        return ("other", long, link) if long else (None, None, None)
    if _LICENCE_ID.fullmatch(name) and name != "other":
        return name, None, link
    return "other", long or (name if name != "other" else None), link
