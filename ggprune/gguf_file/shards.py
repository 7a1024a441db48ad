"""A model as its files: one GGUF, or the shards that ``llama-gguf-split`` makes of one."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from ggprune.errors import FormatError
from ggprune.gguf_file.header import GgufFile, KeyValue, Tensor
from ggprune.gguf_file.types import SCALARS
from ggprune.util import Closing

SPLIT_NO = "split.no"
SPLIT_COUNT = "split.count"
SPLIT_TENSORS = "split.tensors.count"
_SHARD_NAME = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)


class ShardName(NamedTuple):
    """What a file name says of a shard: the model's name, its number from 0, of how many."""

    prefix: str
    number: int
    total: int

    @property
    def all(self) -> list[str]:
        """The names of all shards of the model, in order."""
        return [shard_name(self.prefix, number, self.total) for number in range(self.total)]


def split_shard_name(name: str) -> ShardName | None:
    """Read the file name of a shard; None for any other name."""
    match = _SHARD_NAME.fullmatch(name)
    return ShardName(match[1], int(match[2]) - 1, int(match[3])) if match else None


def shard_name(prefix: str, number: int, count: int) -> str:
    """Return the file name llama.cpp expects of shard ``number`` (from 0) of ``count``."""
    return f"{prefix}-{number + 1:05d}-of-{count:05d}.gguf"


def stem_of(path: Path) -> str:
    """Find the model's name in a file name: without ``.gguf`` and without a shard's numbers."""
    shard = split_shard_name(path.name)
    return shard.prefix if shard else path.name.removesuffix(".gguf")


class GgufModel(Closing):
    """A model's files, opened together; metadata comes from the first.

    Args:
        path: the file, or any one shard.

    Attributes:
        files: in shard order.
        tensors: of all files, in order.
        keys: metadata of the first file.

    Raises:
        InputError, FormatError: see GgufFile; a shard that is missing, doubled or of another
            model is named.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with ExitStack() as opened:
            first = opened.enter_context(GgufFile(path))
            self.files = self._open_shards(first, opened)
            self.tensors: tuple[Tensor, ...] = tuple(t for file in self.files for t in file.tensors)
            self._check_tensors()
            opened.pop_all()
        if first not in self.files:
            first.close()

    def close(self) -> None:
        """Close all files."""
        for file in self.files:
            file.close()

    @property
    def path(self) -> Path:
        """The first file: what llama.cpp is given."""
        return self.files[0].path

    @property
    def stem(self) -> str:
        """The model's name as its file name has it."""
        return stem_of(self.path)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def keys(self) -> dict[str, KeyValue]:
        """Metadata pairs of the first file."""
        return self.files[0].keys

    def get(self, key: str, default: Any = None) -> Any:
        """Decode the value of a metadata key."""
        return self.files[0].get(key, default)

    def length(self, pair: KeyValue) -> int:
        """Count the elements of a metadata array without reading them."""
        return int.from_bytes(self.files[0].read(pair.value + 4, 8), "little")

    def read(self, tensor: Tensor) -> bytes:
        """Read a tensor's bytes (of small ones: routers, biases)."""
        return self.files[tensor.shard].read(tensor.offset, tensor.nbytes)

    def _open_shards(self, given: GgufFile, opened: ExitStack) -> tuple[GgufFile, ...]:
        count = _number(given, SPLIT_COUNT) or 1
        if count <= 1:
            return (given,)
        shard = split_shard_name(given.path.name)
        if shard is None or shard.total != count:
            raise FormatError(
                f"{given.path}: is one of {count} shards, but is not named like one",
                remedy=f"Name the files {shard_name('NAME', 0, count)} and so on, as downloaded.",
            )
        return tuple(
            opened.enter_context(_open_shard(given.path.with_name(name), number, count))
            for number, name in enumerate(shard.all)
        )

    def _check_tensors(self) -> None:
        """No tensor twice, none missing: what tells that all shards are of one model."""
        if len(self.files) == 1:
            return
        owner: dict[str, int] = {}
        for tensor in self.tensors:
            if tensor.name in owner:
                paths = [self.files[i].path for i in (owner[tensor.name], tensor.shard)]
                raise FormatError(
                    f"{paths[1]}: tensor {tensor.name!r} is already in {paths[0].name}: "
                    "a doubled shard, or one of another model",
                    remedy="Download the shards again into an empty folder.",
                )
            owner[tensor.name] = tensor.shard
        expected = _number(self.files[0], SPLIT_TENSORS)
        if expected is not None and expected != len(self.tensors):
            raise FormatError(
                f"{self.path}: its {len(self.files)} shards hold {len(self.tensors)} tensors, "
                f"the first says {expected}: a shard belongs to another model",
                remedy="Download the shards again into an empty folder.",
            )


def _open_shard(path: Path, number: int, count: int) -> GgufFile:
    if not os.path.exists(path):
        raise FormatError(
            f"{path}: shard {number + 1} of {count} is missing",
            remedy="Put all shards into one folder.",
        )
    with ExitStack() as opened:
        file = opened.enter_context(GgufFile(path, shard=number))
        found = (_number(file, SPLIT_NO), _number(file, SPLIT_COUNT))
        if found != (number, count):
            raise FormatError(
                f"{path}: {_stated(*found)}, its name says shard {number + 1} of {count}",
                remedy="Download this shard again: it is a copy of another, or of another model.",
            )
        opened.pop_all()
    return file


def _number(file: GgufFile, key: str) -> int | None:
    """Read a ``split.*`` number; None if it is not there."""
    pair = file.keys.get(key)
    if pair is None:
        return None
    value = file.get(key) if pair.type in SCALARS else None
    if not isinstance(value, int):
        raise FormatError(
            f"{file.path}: {key} is not a whole number", remedy="Download or split the model again."
        )
    return value


def _stated(number: int | None, count: int | None) -> str:
    if number is None or count is None:
        return "does not say that it is a shard"
    return f"says it is shard {number + 1} of {count}"
