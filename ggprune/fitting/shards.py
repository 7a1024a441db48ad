"""Groups of tensors in files of their own, and candidates put together from them by links.

A split GGUF is a folder of shards, so a candidate is a folder of links: one to the shard of each
group in the type that it has there. Nothing is copied, and llama.cpp computes what it would with
the merged file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ggprune.errors import OutputError
from ggprune.fitting.requantize import Requantizer
from ggprune.fitting.space import Option, Space
from ggprune.gguf_file import (
    TYPE_NUMBERS,
    ByteRange,
    OutputTensor,
    Tensor,
    bytes_in,
    padded,
    replacing,
    shard_head,
    shard_name,
    tensor_type_name,
)
from ggprune.types import Advance
from ggprune.util import human_size

_SPARE = 64 << 20


class Shards:
    """Makes candidates that llama.cpp can load; every group in every type is quantized once.

    Args:
        folder: where shards lie; those of an earlier run are used again.
        room: bytes that shards may take; None for what the disk has. Where there is too little,
            shards that the candidate at hand does not need make room and are made anew later.
    """

    def __init__(
        self, space: Space, requantizer: Requantizer, folder: Path, room: int | None = None
    ) -> None:
        self._space, self._requantizer = space, requantizer
        self._folder, self._room = folder, room
        self._shards = folder / "shards"

    def candidate(self, options: Sequence[Option], progress: Advance = lambda _: None) -> Path:
        """Make a file of all experts with these types.

        Args:
            options: one a group.

        Returns:
            Its first shard, which is valid until the next call.

        Raises:
            OutputError: there is no room even for this one.
        """
        self._shards.mkdir(parents=True, exist_ok=True)
        wanted = [self._shards / "rest.gguf"]
        for index, option in enumerate(options):
            types = "+".join(dict.fromkeys(option.types))
            wanted.append(self._shards / f"{index}-{types}-{option.kind}.gguf")
        for number, path in enumerate(wanted):
            if not path.exists():
                self._write(path, number, self._contents(number, options), wanted, progress)
        folder = self._folder / "candidate"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for number, path in enumerate(wanted):
            link = folder / shard_name("candidate", number, len(wanted))
            try:
                os.link(path, link)
            except OSError:  # No hard links there, or too many.
                link.symlink_to(path.resolve())
        return folder / shard_name("candidate", 0, len(wanted))

    def clear(self) -> None:
        """Remove all shards."""
        for folder in (self._folder / "candidate", self._shards):
            shutil.rmtree(folder, ignore_errors=True)

    def _contents(self, number: int, options: Sequence[Option]) -> list[tuple[Tensor, str]]:
        if number == 0:
            return [(tensor, tensor_type_name(tensor.type)) for tensor in self._space.fixed]
        group, option = self._space.groups[number - 1], options[number - 1]
        return list(zip(group.tensors, option.types, strict=True))

    def _write(
        self,
        path: Path,
        index: int,
        contents: Sequence[tuple[Tensor, str]],
        wanted: Sequence[Path],
        progress: Advance,
    ) -> None:
        source = self._space.model.gguf
        alignment = source.files[0].alignment
        tensors = []
        for tensor, kind in contents:
            same = kind == tensor_type_name(tensor.type)
            size = tensor.nbytes if same else bytes_in(kind, *tensor.shape)
            number = tensor.type if same else TYPE_NUMBERS[kind]
            data = (ByteRange(tensor.shard, 0, size),)
            tensors.append(OutputTensor(tensor.name, tensor.shape, number, data))
        head = shard_head(source, index, len(wanted), tensors, len(source.tensors))
        self._make_room(sum(padded(t.nbytes, alignment) for t in tensors), wanted)
        with replacing(path) as part, open(part, "wb") as stream:

            def write(data: bytes | memoryview) -> None:
                stream.write(data)
                progress(len(data))

            for segment in head:
                if isinstance(segment, ByteRange):
                    segment = source.files[segment.shard].read(segment.offset, segment.length)
                write(segment)
            for (tensor, kind), made in zip(contents, tensors, strict=True):
                self._requantizer.convert(tensor, kind, write)
                write(bytes(padded(made.nbytes, alignment) - made.nbytes))

    def _make_room(self, size: int, wanted: Sequence[Path]) -> None:
        shutil.rmtree(self._folder / "candidate", ignore_errors=True)
        others = [path for path in self._shards.glob("*.gguf") if path not in wanted]
        others.sort(key=lambda path: path.stat().st_mtime)
        while self._free() < size:
            if not others:
                raise OutputError(
                    f"{self._folder}: no room for {human_size(size)} more: a candidate needs as "
                    "much as the model",
                    remedy="Name a folder on another disk: work=FOLDER.",
                )
            others.pop(0).unlink()

    def _free(self) -> int:
        if self._room is None:
            return shutil.disk_usage(self._folder).free - _SPARE
        return self._room - sum(path.stat().st_size for path in self._shards.glob("*.gguf"))
