"""All files that can be made of a model: counts of experts, a type for each group; exact sizes."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggprune.errors import InputError
from ggprune.fitting import kinds
from ggprune.fitting.groups import Group, exactly, groups_of
from ggprune.gguf_file import (
    TYPE_NUMBERS,
    GgufModel,
    OutputFile,
    Tensor,
    bytes_in,
    padded,
    tensor_type_name,
)
from ggprune.llama.options import QuantizeOptions
from ggprune.model import MoeModel
from ggprune.quantization.quantize import Quantizer
from ggprune.rewrite import result_files

#: The option that leaves a group as it is in the source.
AS_IS = "source"
#: What llama.cpp's quantizer pads to.
_ALIGNMENT = 32
_SPLIT = "split."
#: Keys that the quantizer sets, each a number of 4 bytes.
_SET = ("general.quantization_version", "general.file_type")
_NUMBER, _TEXT = 8 + 4 + 4, 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class Option:
    """A group in one type.

    Attributes:
        kind: the type that is asked for, or AS_IS.
        types: of its tensors, in the group's order: rows that blocks do not divide get another.
    """

    kind: str
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mix:
    """One possible file.

    Attributes:
        keep: experts a layer.
        options: one a group.
    """

    keep: int
    options: tuple[Option, ...]

    @property
    def key(self) -> str:
        """What tells it from others of the same space."""
        return f"{self.keep}:" + ",".join("/".join(dict.fromkeys(o.types)) for o in self.options)


class Space:
    """The choices for one model.

    Args:
        folder: for headers of files that are not written.
        wanted: tensor types to choose from; None for all.
        covered: tensors that the importance matrix knows.
        imatrix: the importance matrix; llama-quantize's mixtures depend on whether there is one.
        notes: metadata that the quantizer adds.
        method: of the plans, which a pruned file records.

    Attributes:
        groups: of tensors.
        options: of each group, from many bytes to few; the first is what the others are
            measured against.
    """

    def __init__(
        self,
        model: MoeModel,
        folder: Path,
        *,
        groups: int = 20,
        wanted: Sequence[str] | None = None,
        covered: Iterable[str] = (),
        imatrix: Path | None = None,
        notes: Mapping[str, str | int] | None = None,
        method: str = "",
    ) -> None:
        self.model = model
        self._folder, self._method, self._notes = folder, method, dict(notes or {})
        self._imatrix = imatrix
        names = quantizable(model.gguf, folder)
        self.groups = groups_of(model, names, groups)
        self.fixed = tuple(t for t in model.gguf.tensors if t.name not in names)
        self._covered = frozenset(covered)
        self.options = tuple(_options(g, wanted, self._covered) for g in self.groups)

    @property
    def base(self) -> Mix:
        """All experts, every group in its first option."""
        return Mix(self.model.experts, tuple(each[0] for each in self.options))

    def smallest(self, keep: int) -> Mix:
        """Return the fewest bytes with so many experts."""
        return Mix(keep, tuple(each[-1] for each in self.options))

    def is_possible(self, mix: Mix) -> bool:
        """Whether the importance matrix covers all that needs it."""
        return all(
            kind not in kinds.NEEDS_IMATRIX or tensor.name in self._covered
            for group, option in zip(self.groups, mix.options, strict=True)
            for tensor, kind in zip(group.tensors, option.types, strict=True)
        )

    def group_bytes(self, index: int, option: Option, keep: int) -> int:
        """Bytes of a group's data, padding included."""
        tensors = self.groups[index].tensors
        return sum(
            padded(bytes_in(kind, *self._shape(tensor, keep)), _ALIGNMENT)
            for tensor, kind in zip(tensors, option.types, strict=True)
        )

    def fixed_bytes(self, keep: int) -> int:
        """Bytes of all that no group holds: header, routers, norms."""
        total = self._header(keep)
        for tensor in self.fixed:
            size = tensor.nbytes
            if tensor.name in self.model.expert_tensors:
                size = size // self.model.experts * keep
            total += padded(size, _ALIGNMENT)
        return total

    def size(self, mix: Mix) -> int:
        """Bytes of the file."""
        groups = enumerate(mix.options)
        return self.fixed_bytes(mix.keep) + sum(self.group_bytes(i, o, mix.keep) for i, o in groups)

    def patterns(self, mix: Mix) -> tuple[tuple[str, str], ...]:
        """Return what to give llama-quantize as ``--tensor-type``."""
        found: list[tuple[str, str]] = []
        for group, option in zip(self.groups, mix.options, strict=True):
            if option.kind in TYPE_NUMBERS:
                found.append((group.pattern, option.kind))
                continue
            # As in the source, or a mixture of llama-quantize: by the types that come out.
            for kind in dict.fromkeys(option.types):
                chosen = zip(group.tensors, option.types, strict=True)
                part = tuple(tensor for tensor, own in chosen if own == kind)
                whole = len(part) == len(group.tensors)
                found.append((group.pattern if whole else exactly(part), kind))
        return tuple(found)

    def of_file_type(self, type_name: str, keep: int) -> Mix:
        """Return what llama-quantize makes of so many experts for a type of its own."""
        # With exactly 8 experts llama.cpp takes other types: it treats the model as Mixtral.
        types = self._forecast(type_name, 8 if keep == 8 else self.model.experts)
        name = f"as {type_name}"  # Many file types are called like a tensor type.
        of_group = (tuple(types[tensor.name] for tensor in g.tensors) for g in self.groups)
        return Mix(keep, tuple(Option(name, each) for each in of_group))

    @contextlib.contextmanager
    def skeleton(self, keep: int) -> Iterator[GgufModel]:
        """Lend a sparse file with the header of the pruned model and no data; it takes no room."""
        method = self._method if keep < self.model.experts else ""
        path = self._folder / f"header-{keep}.gguf"
        file = result_files(self.model, keep, path, method=method)[0]
        path.write_bytes(_first_bytes(self.model.gguf, file))
        os.truncate(path, file.size)
        try:
            with GgufModel(path) as model:
                yield model
        finally:
            path.unlink()

    def _shape(self, tensor: Tensor, keep: int) -> tuple[int, ...]:
        if tensor.name not in self.model.expert_tensors:
            return tensor.shape
        return (*tensor.shape[:-1], keep)

    @functools.cache  # noqa: B019
    def _header(self, keep: int) -> int:
        """Bytes before the data in what the quantizer writes: it copies keys, and sets a few."""
        with self.skeleton(keep) as model:
            length = 24 + sum(
                pair.end - pair.start
                for key, pair in model.keys.items()
                if key not in _SET and key not in self._notes and not key.startswith(_SPLIT)
            )
            length += sum(len(key) + _NUMBER for key in _SET)
            for key, value in self._notes.items():
                length += len(key.encode()) + (
                    _NUMBER if isinstance(value, int) else _TEXT + len(value.encode())
                )
            for tensor in model.tensors:
                dimensions = len(tensor.shape)
                while dimensions > 1 and tensor.shape[dimensions - 1] == 1:
                    dimensions -= 1
                length += 8 + len(tensor.name.encode()) + 4 + 8 * dimensions + 4 + 8
        return padded(length, _ALIGNMENT)

    @functools.cache  # noqa: B019
    def _forecast(self, type_name: str, keep: int) -> Mapping[str, str]:
        matrix = self._imatrix if keep == self.model.experts else None
        options = QuantizeOptions(imatrix=matrix, allow_requantize=True)
        with self.skeleton(keep) as model:
            return Quantizer(model, options, self._folder).forecast(type_name).types


def quantizable(gguf: GgufModel, folder: Path) -> frozenset[str]:
    """Names of the tensors that llama-quantize gives a type: it is asked, with two types."""
    options = QuantizeOptions(allow_requantize=True, pure=True)
    quantizer = Quantizer(gguf, options, folder)
    own = {tensor.name: tensor_type_name(tensor.type) for tensor in gguf.tensors}
    forecasts = [quantizer.forecast(kind).types for kind in ("Q5_0", "Q5_1")]
    return frozenset(n for n, kind in own.items() if any(f[n] != kind for f in forecasts))


def _options(
    group: Group, wanted: Sequence[str] | None, covered: frozenset[str]
) -> tuple[Option, ...]:
    """Return the types a group can have, each smaller than the one before."""
    own = tuple(tensor_type_name(tensor.type) for tensor in group.tensors)
    has_narrow = any(tensor.shape[0] % 256 for tensor in group.tensors)
    known = dict.fromkeys((*kinds.WIDE, *(kinds.NARROW if has_narrow else ())))
    ladder = [kind for kind in known if wanted is None or kind in wanted]
    if not all(tensor.name in covered for tensor in group.tensors):
        ladder = [kind for kind in ladder if kind not in kinds.NEEDS_IMATRIX]
    found = [] if any(map(kinds.is_unquantized, group.tensors)) else [Option(AS_IS, own)]
    for kind in ladder:
        found.append(Option(kind, tuple(kinds.resolved(t.shape[0], kind) for t in group.tensors)))

    def size(option: Option) -> int:
        pairs = zip(group.tensors, option.types, strict=True)
        return sum(bytes_in(kind, *tensor.shape) for tensor, kind in pairs)

    if not found:
        raise InputError(f"types={','.join(wanted or ())}: none fits {group.name}")
    largest = size(found[0])
    by_types = {option.types: option for option in reversed(found) if size(option) <= largest}
    return tuple(
        sorted(by_types.values(), key=lambda option: (-size(option), option.kind != AS_IS))
    )


def _first_bytes(source: GgufModel, file: OutputFile) -> bytes:
    head = bytearray()
    for segment in file.segments:
        left = file.data_offset - len(head)
        if left <= 0:
            break
        if isinstance(segment, bytes):
            head += segment[:left]
        else:
            head += source.files[segment.shard].read(segment.offset, min(segment.length, left))
    return bytes(head)
