"""From one model file to quantized ones, through llama.cpp's quantizer."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ggprune.errors import InputError, UnsupportedModelError, VerificationError
from ggprune.gguf_file import (
    TYPE_NUMBERS,
    ByteRange,
    GgufModel,
    KeyEdits,
    OutputTensor,
    Tensor,
    TypedValue,
    ValueType,
    bytes_in,
    check_targets,
    lay_out,
    padded,
    replacing,
    shard_name,
    stem_of,
    whole,
    write_files,
)
from ggprune.gguf_file.parts import PartFile
from ggprune.llama import quantizer as llama_quantizer
from ggprune.llama.options import QuantizeOptions
from ggprune.quantization.forecast import Forecast, Log, Reading
from ggprune.quantization.imatrix import Imatrix
from ggprune.quantization.names import file_type, quantized_share, result_stem
from ggprune.rewrite import PROVENANCE

log = logging.getLogger(__name__)

#: What llama.cpp's writer pads tensors to, whatever the source says.
_ALIGNMENT = 32
_OTHER_FILES = frozenset({"imatrix", "adapter", "ggprune-stats"})


class Quantizer:
    """A source file and options, checked; then one call a type.

    Args:
        stem: their name; None takes the source's without its quantization.
        imatrix_name: what the importance matrix is called in the results' metadata.

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
        if options.keep_split and options.split_max_size:
            raise InputError("keep_split and split_max_size: one or the other")
        _check_source(model, options.allow_requantize)
        _check_types(options)
        #: Matrices that the importance matrix says nothing about.
        self.uncovered: tuple[str, ...] = ()
        self._imatrix = Imatrix.load(options.imatrix) if options.imatrix else None
        self._notes = self._check_imatrix(imatrix_name)
        self._kept: dict[str, tuple[tuple[str, str], ...]] = {}

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

    def paths(self, type_name: str, types: Mapping[str, str] | None = None) -> tuple[Path, ...]:
        """Name the files that quantizing to this type writes.

        Args:
            type_name: a name in FILE_TYPES.
            types: of every tensor, on which the number of shards depends; None before they are
                known: then the name of a single file.
        """
        prefix = f"{self._stem}-{file_type(type_name)}"
        target = self._folder / f"{prefix}.gguf"
        if self._split:
            count = len(self._model.files)
            return tuple(self._folder / shard_name(prefix, n, count) for n in range(count))
        if types is None or self._options.split_max_size is None:
            return (target,)
        tensors = [_as_type(tensor, types[tensor.name]) for tensor in self._model.tensors]
        notes = {name: _typed(value) for name, value in self._notes.items()}
        edits = KeyEdits({k: v for k, v in notes.items() if k != "general.alignment"})
        limit = self._options.split_max_size
        files = lay_out(target, self._model, edits, tensors, split_max_size=limit)
        return tuple(file.path for file in files)

    def forecast(self, type_name: str) -> Forecast:
        """Ask llama.cpp what it would do.

        Raises:
            LlamaError: it refused.
        """
        found = self._dry_run(type_name, self._unpruned_types(type_name))
        sizes: dict[str, int] = {}
        for tensor in self._model.tensors:
            kind = found.types[tensor.name]
            sizes[kind] = sizes.get(kind, 0) + padded(_bytes_as(tensor, kind), _ALIGNMENT)
        return Forecast(
            file_type(type_name),
            self.paths(type_name, found.types),
            sum(sizes.values()) + self._model.files[0].data_offset,
            dict(sorted(sizes.items(), key=lambda item: -item[1])),
            found.fallbacks,
            found.needs_imatrix,
            found.types,
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
            progress: called with the number of the source's bytes just done.

        Returns:
            The forecast, with files and size as they came out.

        Raises:
            OutputError: the result exists, is the source, or there is no room.
            LlamaError: llama.cpp refused or crashed.
            VerificationError: what it wrote is not whole.
        """
        with contextlib.suppress(OSError):  # check_targets has the words for what is wrong.
            self._folder.mkdir(parents=True, exist_ok=True)
        check_targets(self.paths(type_name), 0, source=self._model, force=force)
        expected = self.forecast(type_name)
        paths = expected.paths
        # Shards of a size are cut out of a whole file, which then goes.
        needed = expected.size * (2 if len(paths) > 1 and not self._split else 1)
        check_targets(paths, needed, source=self._model, force=force)
        if self._split:
            self._write_split(type_name, paths, progress)
        elif self._options.split_max_size is not None:
            paths = self._write_shards(type_name, force, progress)
        else:
            with replacing(paths[0]) as part:
                self._quantize(type_name, part, self._reader(progress))
                self._check_written(part)
        return replace(expected, paths=paths, size=sum(path.stat().st_size for path in paths))

    def _write_shards(
        self, type_name: str, force: bool, progress: Callable[[int], object]
    ) -> tuple[Path, ...]:
        """Write one file beside the target, and cut it into shards."""
        target = self.paths(type_name)[0]
        with PartFile(target) as whole_file:
            self._quantize(type_name, whole_file.path, self._reader(progress))
            self._check_written(whole_file.path)
            with GgufModel(whole_file.path) as model:
                files = lay_out(
                    target,
                    model,
                    KeyEdits(),
                    [*map(whole, model.tensors)],
                    split_max_size=self._options.split_max_size,
                )
                if len(files) == 1:
                    whole_file.place()
                else:
                    write_files(files, model, force=force)
        return tuple(file.path for file in files)

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
        return Reading(self._model.tensors, self._log, lambda name: progress(sizes.get(name, 0)))

    def _check_written(self, path: Path) -> None:
        with GgufModel(path) as result:
            names = {tensor.name for tensor in result.tensors}
        if names != {tensor.name for tensor in self._model.tensors}:
            raise VerificationError(f"{path}: llama.cpp did not write all tensors")

    def _dry_run(
        self,
        type_name: str,
        kept: Sequence[tuple[str, str]] = (),
        notes: Mapping[str, str | int] | None = None,
    ) -> Reading:
        """Do a dry run, and read what it says."""
        reading = Reading(self._model.tensors, self._log)
        self._call(type_name, self._folder / "none", reading, kept, notes, dry_run=True)
        return reading

    def _unpruned_types(self, type_name: str) -> tuple[tuple[str, str], ...]:
        """Types to ask for, where a pruned model would get others than the whole one.

        llama.cpp's mixtures treat models of exactly 8 experts, and of 4 or more, in a way of
        their own (``llama_tensor_get_type_impl`` in src/llama-quant.cpp), so what quantization
        does would look like what pruning did.
        """
        key = f"{self._model.get('general.architecture')}.expert_count"
        before, now = self._model.get(PROVENANCE + "source_experts"), self._model.get(key)
        alike = before is None or ((before == 8) == (now == 8) and (before >= 4) == (now >= 4))
        if alike or self._options.pure:
            return ()
        if type_name not in self._kept:
            wanted = self._dry_run(type_name, notes={key: before}).types
            own = self._dry_run(type_name).types
            found: list[tuple[str, str]] = []
            if wanted != own:
                log.info(
                    "%s: the types of the unpruned model with %s experts are kept, of which "
                    "llama.cpp would change %s",
                    type_name,
                    before,
                    sum(wanted[name] != own[name] for name in own),
                )
                # All of them: llama.cpp counts tensors on its way, but not those it is told.
                found = [(f"^{re.escape(name)}$", kind) for name, kind in wanted.items()]
            self._kept[type_name] = tuple(found)
        return self._kept[type_name]

    def _quantize(self, type_name: str, target: Path, on_line: Log) -> None:
        self._call(type_name, target, on_line, self._unpruned_types(type_name))

    def _call(
        self,
        type_name: str,
        target: Path,
        on_line: Log,
        kept: Sequence[tuple[str, str]] = (),
        notes: Mapping[str, str | int] | None = None,
        *,
        dry_run: bool = False,
    ) -> None:
        entries = self._imatrix.entries if self._imatrix else {}
        llama_quantizer.quantize(
            self._model.path,
            target,
            file_type(type_name),
            replace(
                self._options,
                keep_split=self._split,
                tensor_types=(*self._options.tensor_types, *kept),
            ),
            on_line,
            imatrix={name: entry.means() for name, entry in entries.items()},
            notes={**self._notes, **(notes or {})},
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


def _bytes_as(tensor: Tensor, kind: str) -> int:
    return bytes_in(kind, *tensor.shape) if kind in TYPE_NUMBERS else tensor.nbytes


def _as_type(tensor: Tensor, kind: str) -> OutputTensor:
    """Return a tensor as large as it will be, without its bytes."""
    room = ByteRange(tensor.shard, tensor.offset, _bytes_as(tensor, kind))
    return OutputTensor(tensor.name, tensor.shape, tensor.type, (room,))


def _typed(value: str | int) -> TypedValue:
    return TypedValue(ValueType.STRING if isinstance(value, str) else ValueType.UINT32, value)
