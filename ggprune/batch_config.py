"""What a batch is to make, as a TOML file says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggprune.errors import InputError
from ggprune.quantization.quantize_names import file_type

_STAGES = ("calibrate", "plan", "apply", "imatrix", "quantize", "evaluate", "modelfile", "card")
_SWITCHES = ("evaluate", "modelfile", "card", "checksums")


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
    try:
        import tomllib
    except ImportError:  # Python 3.10
        try:
            import tomli as tomllib  # type: ignore[import-not-found, no-redef, unused-ignore]
        except ImportError as error:
            raise InputError(
                "Python 3.10 cannot read TOML by itself", remedy="pip install tomli"
            ) from error
    try:
        with open(path, "rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is not TOML: {error}") from error


def _config(data: dict[str, Any], path: Path) -> BatchConfig:
    known = set(BatchConfig.__dataclass_fields__)
    for key in data:
        if key not in known:
            raise InputError(f"{path}: unknown key {key!r}", remedy=f"Known: {sorted(known)}")
    reader = _Reader(data, path)
    imatrix: Path | bool = False
    if isinstance(data.get("imatrix", False), bool):
        imatrix = bool(data.get("imatrix", False))
    else:
        imatrix = reader.path("imatrix")
    return BatchConfig(
        model=reader.path("model"),
        keep=tuple(reader.items("keep", int)),
        types=tuple(dict.fromkeys(file_type(name) for name in reader.items("types", str, ()))),
        source=reader.path("source") if "source" in data else None,
        output=reader.path("output") if "output" in data else path.parent / "release",
        imatrix=imatrix,
        repo=reader.value("repo", str, ""),
        options=reader.options(),
        **{name: reader.value(name, bool, True) for name in _SWITCHES},
    )


class _Reader:
    """Takes values of the expected types out of a table."""

    def __init__(self, data: Mapping[str, Any], path: Path) -> None:
        self._data, self._path = data, path

    def value(self, key: str, kind: type, default: Any = None) -> Any:
        found = self._data.get(key, default)
        if type(found) is not kind:
            raise self._wrong(key, kind.__name__, found)
        return found

    def path(self, key: str) -> Path:
        return self._path.parent / Path(str(self.value(key, str))).expanduser()

    def items(self, key: str, kind: type, default: Any = None) -> Sequence[Any]:
        found = self._data.get(key, default)
        if default is not None and found == default:
            return ()
        if not isinstance(found, list) or not found or any(type(x) is not kind for x in found):
            raise self._wrong(key, f"a list of {kind.__name__}", found)
        return found

    def options(self) -> dict[str, tuple[str, ...]]:
        table = self.value("options", dict, {})
        for stage, words in table.items():
            strings = isinstance(words, list) and all(isinstance(word, str) for word in words)
            if stage not in _STAGES or not strings:
                raise self._wrong(
                    f"options.{stage}", f"a list of words for one of {_STAGES}", words
                )
        return {stage: tuple(words) for stage, words in table.items()}

    def _wrong(self, key: str, expected: str, found: object) -> InputError:
        what = "is missing" if found is None else f"is {found!r}"
        return InputError(f"{self._path}: {key} {what}, expected {expected}")
