"""From one model file to quantized ones, through llama.cpp's quantizer."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggprune.errors import InputError, UnsupportedModelError, VerificationError
from ggprune.gguf_file import (
    GgufModel,
    check_targets,
    padded,
    replacing,
    shard_name,
    stem_of,
    tensor_type_name,
)
from ggprune.gguf_file.parts import PartFile
from ggprune.llama import quantizer as llama_quantizer
from ggprune.llama.options import QuantizeOptions
from ggprune.quantization.imatrix import Imatrix
from ggprune.quantization.names import (
    file_type,
    quantized_share,
    result_stem,
    tensor_bytes,
)

#: What llama.cpp's writer pads tensors to, whatever the source says.
_ALIGNMENT = 32
_OTHER_FILES = frozenset({"imatrix", "adapter", "ggprune-stats"})
#: A line of the quantizer's log: which tensor it has come to, and (dry runs) what it becomes.
_TENSOR_LINE = re.compile(r"\[ *\d+/ *\d+\] (?P<name>\S+) +- \[")
_NEW_TYPE = re.compile(r"MiB -> +[\d.]+ MiB \((?P<type>\w+)\)$")
_FALLBACKS = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback")

Log = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What quantizing would give.

    Attributes:
        type: asked for.
        paths: the files.
        size: bytes of all, to within the metadata.
        tensor_types: bytes by tensor type, largest first.
        fallbacks: tensors that get another type, since their rows do not divide into blocks.
        needs_imatrix: whether it cannot be done without an importance matrix.
        types: of every tensor, by its name.
    """

    type: str
    paths: tuple[Path, ...]
    size: int
    tensor_types: dict[str, int]
    fallbacks: int
    needs_imatrix: bool
    types: Mapping[str, str]

    @property
    def cautions(self) -> list[str]:
        """What a user should know of it."""
        found = []
        if self.needs_imatrix:
            found.append(f"{self.type} needs an importance matrix (imatrix=FILE).")
        if self.fallbacks:
            found.append(
                f"{self.type}: {self.fallbacks} tensors have rows that its blocks do not divide; "
                "llama.cpp gives them a larger type."
            )
        return found


class Quantizer:
    """A source file and options, checked; then one call a type.

    Args:
        model: the source, open.
        options: how.
        folder: where results go.
        stem: their name; None takes the source's without its quantization.
        imatrix_name: what the importance matrix is called in the results' metadata.
        log: receives the quantizer's own log, line by line.

    Raises:
        InputError, UnsupportedModelError, MismatchError: the source, a type's name or the
            importance matrix cannot be used.
    """

    def __init__(
        self,
        model: GgufModel,
        options: QuantizeOptions,
        folder: Path,
        *,
        stem: str | None = None,
        imatrix_name: str | None = None,
        log: Log = lambda _: None,
    ) -> None:
        self._model, self._options, self._folder, self._log = model, options, folder, log
        self._stem = stem or result_stem(model.stem)
        self._split = options.keep_split and len(model.files) > 1
        _check_source(model, options.allow_requantize)
        _check_types(options)
        #: Matrices that the importance matrix says nothing about.
        self.uncovered: tuple[str, ...] = ()
        self._imatrix = Imatrix.load(options.imatrix) if options.imatrix else None
        self._notes = self._check_imatrix(imatrix_name)

    @property
    def source_bytes(self) -> int:
        """Bytes of the source's tensors: the end of what progress counts."""
        return sum(tensor.nbytes for tensor in self._model.tensors)

    @property
    def cautions(self) -> list[str]:
        """What a user should know before it starts."""
        share, mostly = quantized_share(self._model)
        found = []
        if share:
            found.append(
                f"{share:.0%} of the source is quantized already, mostly {mostly}. What that "
                "rounded away stays lost; the same type made from BF16 is closer to the original."
            )
        if self.uncovered:
            found.append(
                f"the importance matrix lacks {len(self.uncovered)} of the layers' matrices, for "
                f"instance {self.uncovered[0]}; they are quantized without."
            )
        return found

    @property
    def notes(self) -> Mapping[str, str | int]:
        """Metadata that results have and the source has not."""
        return self._notes

    def paths(self, type_name: str) -> tuple[Path, ...]:
        """Name the files that quantizing to this type writes."""
        prefix = f"{self._stem}-{file_type(type_name)}"
        if not self._split:
            return (self._folder / f"{prefix}.gguf",)
        count = len(self._model.files)
        return tuple(self._folder / shard_name(prefix, n, count) for n in range(count))

    def forecast(self, type_name: str) -> Forecast:
        """Ask llama.cpp what it would do.

        Raises:
            LlamaError: it refused.
        """
        types = {tensor.name: tensor_type_name(tensor.type) for tensor in self._model.tensors}
        name, fallbacks, needs_imatrix = "", 0, False

        def read(line: str) -> None:
            nonlocal name, fallbacks, needs_imatrix
            self._log(line)
            if found := _TENSOR_LINE.match(line):
                name = found["name"]
            if (found := _NEW_TYPE.search(line)) and name in types:
                types[name] = found["type"].upper()
            if found := _FALLBACKS.search(line):
                fallbacks = int(found[1])
            needs_imatrix = needs_imatrix or "will require an imatrix" in line

        self._quantize(type_name, self._folder / "none", read, dry_run=True)
        sizes: dict[str, int] = {}
        for tensor in self._model.tensors:
            kind = types[tensor.name]
            nbytes = tensor_bytes(tensor.shape, kind) or tensor.nbytes
            sizes[kind] = sizes.get(kind, 0) + padded(nbytes, _ALIGNMENT)
        return Forecast(
            file_type(type_name),
            self.paths(type_name),
            sum(sizes.values()) + self._model.files[0].data_offset,
            dict(sorted(sizes.items(), key=lambda item: -item[1])),
            fallbacks,
            needs_imatrix,
            types,
        )

    def run(
        self,
        type_name: str,
        *,
        force: bool = False,
        progress: Callable[[int], object] = lambda _: None,
    ) -> Forecast:
        """Quantize; the files appear under their names when they are complete.

        Args:
            type_name: a name in FILE_TYPES.
            force: replace existing files.
            progress: called with the number of the source's bytes just done.

        Returns:
            The forecast, with the size as it came out.

        Raises:
            OutputError: the result exists, is the source, or there is no room.
            LlamaError: llama.cpp refused or crashed.
            VerificationError: what it wrote is not whole.
        """
        paths = self.paths(type_name)
        with contextlib.suppress(OSError):  # check_targets has the words for what is wrong.
            self._folder.mkdir(parents=True, exist_ok=True)
        check_targets(paths, 0, source=self._model, force=force)
        expected = self.forecast(type_name)
        check_targets(paths, expected.size, source=self._model, force=force)
        if self._split:
            self._write_split(type_name, paths, progress)
        else:
            with replacing(paths[0]) as part:
                self._quantize(type_name, part, self._reader(progress))
                self._check_written(part)
        return replace(expected, size=sum(path.stat().st_size for path in paths))

    def _write_split(
        self, type_name: str, paths: Sequence[Path], progress: Callable[[int], object]
    ) -> None:
        """llama.cpp names shards itself, so it writes into a folder beside them."""
        with PartFile(paths[0]) as lock:
            folder = lock.path.with_name(lock.path.name + "s")
            shutil.rmtree(folder, ignore_errors=True)  # Of a run that was killed.
            folder.mkdir()
            try:
                prefix = folder / stem_of(paths[0])
                self._quantize(type_name, prefix, self._reader(progress))
                self._check_written(folder / paths[0].name)
                # The first last: where it stands, the others do too.
                paths[0].unlink(missing_ok=True)
                for path in reversed(paths):
                    os.replace(folder / path.name, path)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _reader(self, progress: Callable[[int], object]) -> Log:
        sizes = {tensor.name: tensor.nbytes for tensor in self._model.tensors}

        def read(line: str) -> None:
            self._log(line)
            if found := _TENSOR_LINE.match(line):
                progress(sizes.get(found["name"], 0))

        return read

    def _check_written(self, path: Path) -> None:
        with GgufModel(path) as result:
            names = {tensor.name for tensor in result.tensors}
        if names != {tensor.name for tensor in self._model.tensors}:
            raise VerificationError(f"{path}: llama.cpp did not write all tensors")

    def _quantize(
        self, type_name: str, target: Path, on_line: Log, *, dry_run: bool = False
    ) -> None:
        imatrix = self._imatrix
        llama_quantizer.quantize(
            self._model.path,
            target,
            file_type(type_name),
            replace(self._options, keep_split=self._split),
            on_line,
            imatrix={name: entry.means() for name, entry in imatrix.entries.items()}
            if imatrix
            else None,
            notes=self._notes,
            dry_run=dry_run,
        )

    def _check_imatrix(self, name: str | None) -> dict[str, str | int]:
        """Metadata to add: llama-quantize's keys that tell which importance matrix was used."""
        imatrix, notes = self._imatrix, dict[str, str | int]()
        if self._model.files[0].alignment != _ALIGNMENT:
            notes["general.alignment"] = _ALIGNMENT
        if imatrix is None or self._options.imatrix is None:
            return notes
        name = name or self._options.imatrix.name
        self.uncovered = imatrix.check(self._model.tensors, name, str(self._model.path))
        notes["quantize.imatrix.file"] = name
        if imatrix.datasets:
            notes["quantize.imatrix.dataset"] = imatrix.datasets[0]
        notes["quantize.imatrix.entries_count"] = len(imatrix.entries)
        if imatrix.chunks:
            notes["quantize.imatrix.chunks_count"] = imatrix.chunks
        return notes


def _check_source(model: GgufModel, allow_requantize: bool) -> None:
    kind = str(model.get("general.type", "model"))
    if kind in _OTHER_FILES or not model.get("general.architecture"):
        raise UnsupportedModelError(f"{model.path}: is not a model (general.type is {kind!r})")
    share, mostly = quantized_share(model)
    if share and not allow_requantize:
        raise InputError(
            f"{model.path}: {share:.0%} of it is quantized already, mostly {mostly}: what that "
            "rounded away stays lost, and quantizing again rounds the rounded values",
            remedy="Quantize from F16, BF16 or F32, or pass allow_requantize=True.",
        )


def _check_types(options: QuantizeOptions) -> None:
    """Find out at once what no quantizer would understand."""
    for pattern, kind in options.tensor_types:
        llama_quantizer.tensor_type(kind)
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(
                f"tensor_types={pattern}: {error}: not a regular expression"
            ) from error
    for name in (options.output_type, options.token_embedding_type):
        if name is not None:
            llama_quantizer.tensor_type(name)
