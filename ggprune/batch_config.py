"""What a batch is to make, as a TOML file says it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggprune.errors import InputError
from ggprune.quantization.quantize_names import file_type
from ggprune.util import check_shape

_STAGES = ("calibrate", "plan", "apply", "imatrix", "quantize", "evaluate", "modelfile", "card")
_SWITCHES = ("evaluate", "modelfile", "card", "checksums")
_SHAPE = {
    "model": str,
    "keep": [int],
    "types?": [str],
    "source?": str,
    "output?": str,
    "imatrix?": bool | str,
    "repo?": str,
    "options?": {str: [str]},
    **{f"{name}?": bool for name in _SWITCHES},
}


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """What a batch is to make.

    Attributes:
        model: what is calibrated, and measured against.
        keep: numbers of experts.
        types: quantizations of each.
        source: what is pruned and quantized: the model itself, or the same in BF16.
        output: folder for everything.
        imatrix: an importance matrix of the full model; True gathers one; False uses none.
        evaluate, modelfile, card, checksums: whether to make these.
        repo: the name that the card gives the result on the Hub.
        options: more options by command, as on the command line.
    """

    model: Path
    keep: tuple[int, ...]
    types: tuple[str, ...] = ()
    source: Path | None = None
    output: Path = Path("release")
    imatrix: Path | bool = False
    evaluate: bool = True
    modelfile: bool = True
    card: bool = True
    checksums: bool = True
    repo: str = ""
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> BatchConfig:
        """Read a batch's TOML file; paths in it are relative to its folder.

        Raises:
            InputError: it is missing, not TOML, or says something else than it should.
        """
        return _config(_toml(path), path)


def _toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(path, "rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is not TOML: {error}") from error


def _config(data: dict[str, Any], path: Path) -> BatchConfig:
    _check_known(data, [name.removesuffix("?") for name in _SHAPE], path)
    check_shape(data, _SHAPE, str(path))
    stages = (f"options.{stage}" for stage in data.get("options", {}))
    _check_known(stages, [f"options.{stage}" for stage in _STAGES], path)
    if not data["keep"]:
        raise InputError(f"{path}: keep is [], expected at least one number")

    def local(key: str) -> Path:
        return path.parent / Path(data[key]).expanduser()

    imatrix = data.get("imatrix", False)
    return BatchConfig(
        model=local("model"),
        keep=tuple(data["keep"]),
        types=tuple(dict.fromkeys(map(file_type, data.get("types", [])))),
        source=local("source") if "source" in data else None,
        output=local("output") if "output" in data else path.parent / "release",
        imatrix=imatrix if isinstance(imatrix, bool) else local("imatrix"),
        repo=data.get("repo", ""),
        options={stage: tuple(words) for stage, words in data.get("options", {}).items()},
        **{name: data.get(name, True) for name in _SWITCHES},
    )


def _check_known(given: Iterable[str], known: Sequence[str], path: Path) -> None:
    for name in given:
        if name not in known:
            raise InputError(f"{path}: unknown key {name!r}", remedy=f"Known: {sorted(known)}")
