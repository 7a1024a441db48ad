"""What a batch is to make, as a TOML file or options say it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggprune.errors import InputError
from ggprune.types import option

_STAGES = ("calibrate", "plan", "apply", "imatrix", "quantize", "evaluate", "modelfile", "card")
_SWITCHES = ("evaluate", "modelfile", "card", "checksums")
_SHAPE = {
    "model": str,
    "keep?": [int],
    "types?": [str],
    "source?": str,
    "output?": str,
    "imatrix?": bool | str,
    "mtp?": str,
    "repo?": str,
    "options?": {str: [str]},
    **{f"{name}?": bool for name in _SWITCHES},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """What a batch is to make: prunings, quantizations of each, or (without ``keep``) of the model.

    ``options`` are more options by command, as on the command line.

    Raises:
        InputError: neither ``keep`` nor ``types`` is given, or there is no such type or command.
    """

    model: Path = option(None, "What is calibrated, and measured against.")
    keep: tuple[int, ...] = option((), "Numbers of experts.", metavar="N,N,…")
    types: tuple[str, ...] = option((), "Quantizations of each.", metavar="TYPE,…")
    source: Path | None = option(
        None, "What is pruned and quantized; default: the model. Its BF16 file is better."
    )
    output: Path = option(Path("release"), "Folder for everything.")
    imatrix: Path | bool = option(
        False, "Importance matrix of the whole model; yes gathers one.", metavar="FILE|yes"
    )
    mtp: str = option(
        "prune", "MTP layers: prune by a stated rule, or drop.", choices=("prune", "drop")
    )
    evaluate: bool = option(True, "Do not measure what a quantization cost.")
    modelfile: bool = option(True, "Write no Modelfiles.")
    card: bool = option(True, "Write no model cards.")
    checksums: bool = option(True, "Write no SHA256SUMS.")
    repo: str | None = option(
        None, "The name that the card gives the result on the Hub.", metavar="OWNER/NAME"
    )
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from ggprune.quantization.names import file_type

        if not self.keep and not self.types:
            raise InputError("keep is missing, expected numbers of experts")
        object.__setattr__(self, "types", tuple(dict.fromkeys(map(file_type, self.types))))
        if self.mtp not in ("prune", "drop"):
            raise InputError(f"mtp={self.mtp}: expected prune or drop")
        _check_known(self.options, _STAGES, "options.")
        words = {stage: tuple(words) for stage, words in self.options.items()}
        object.__setattr__(self, "options", words)

    @classmethod
    def load(cls, path: Path) -> BatchConfig:
        """Read a batch's TOML file; paths in it are relative to its folder.

        Raises:
            InputError: it is missing, not TOML, or says something else than it should.
        """
        from ggprune.util import check_shape

        data = _toml(path)
        try:
            _check_known(data, [name.removesuffix("?") for name in _SHAPE])
            data = {"output": "release", **data}
            check_shape(data, _SHAPE, str(path))
            if data.get("keep") == []:
                raise InputError("keep is [], expected at least one number")
            for key in ("model", "source", "output", "imatrix"):
                if isinstance(data.get(key), str):
                    data[key] = path.parent / Path(data[key]).expanduser()
            lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
            return cls(**{**data, **lists})
        except InputError as error:
            if not error.message.startswith(f"{path}"):
                error = InputError(f"{path}: {error.message}", remedy=error.remedy)
            raise error from None


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


def _check_known(given: Iterable[str], known: Sequence[str], prefix: str = "") -> None:
    for name in given:
        if name not in known:
            raise InputError(
                f"unknown key {prefix + name!r}", remedy=f"Known: {', '.join(sorted(known))}"
            )
