"""What a file to be written will consist of: literal bytes and byte ranges of the source.

Everything is decided here, before a byte is written: names, sizes, shards. ``writing`` then only
copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ggprune.errors import InputError
from ggprune.gguf_file.header import MAGIC, GgufFile, Tensor, padded
from ggprune.gguf_file.shards import SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, GgufModel, shard_name
from ggprune.gguf_file.types import SCALARS, ValueType


@dataclass(frozen=True, slots=True)
class ByteRange:
    """``length`` bytes from ``offset`` of the source's file number ``shard``."""

    shard: int
    offset: int
    length: int


Segment = bytes | ByteRange
_SPLIT_KEYS = frozenset({SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS})
#: split.count is a UINT16.
_MAX_SHARDS = (1 << 16) - 1


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor to write: its data is the concatenation of source ranges and literal bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    ranges: tuple[Segment, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of data, without padding."""
        return sum(_length(part) for part in self.ranges)


@dataclass(frozen=True, slots=True)
class TypedValue:
    """A metadata value with the type to store it as."""

    type: ValueType
    value: int | float | str | Sequence[int | float]
    item: ValueType = ValueType.INT32

    def encode(self) -> bytes:
        """Type and value as they stand in a file after the key."""
        head = int(self.type).to_bytes(4, "little")
        if self.type == ValueType.STRING:
            return head + _string(str(self.value))
        if self.type == ValueType.ARRAY:
            assert isinstance(self.value, Sequence)
            scalar = SCALARS[self.item]
            items = b"".join(scalar.pack(item) for item in self.value)
            count = len(self.value).to_bytes(8, "little")
            return head + int(self.item).to_bytes(4, "little") + count + items
        return head + SCALARS[self.type].pack(self.value)


@dataclass(frozen=True, slots=True)
class KeyEdits:
    """Changes to metadata. Pairs not named here are copied byte for byte, in their order."""

    set: Mapping[str, TypedValue] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file to write: where, its contents in order, and where tensor data start in it."""

    path: Path
    segments: tuple[Segment, ...]
    data_offset: int = 0

    @property
    def size(self) -> int:
        """Bytes of the finished file."""
        return sum(_length(segment) for segment in self.segments)


def lay_out(
    target: Path,
    source: GgufModel,
    edits: KeyEdits,
    tensors: Sequence[OutputTensor],
    *,
    split_max_size: int | None = None,
) -> tuple[OutputFile, ...]:
    """Decide the files of the result.

    Args:
        target: path of the result; with several shards its stem names them.
        source: where ranges come from, and metadata that is not edited.
        edits: changes to metadata; ``split.*`` keys are taken care of here.
        split_max_size: bytes of a shard, at most; None writes one file.

    Raises:
        InputError: one tensor or the metadata alone is larger than ``split_max_size``, or the
            shards are too many.
    """
    if "general.alignment" in edits.set or "general.alignment" in edits.removed:
        raise InputError("general.alignment cannot be edited: the layout follows the source's")
    kept = {key: value for key, value in edits.set.items() if key not in _SPLIT_KEYS}
    first = _key_segments(source, KeyEdits(kept, edits.removed | _SPLIT_KEYS))
    groups = _split(source, first, tensors, split_max_size)
    if len(groups) == 1:
        keys = _key_segments(source, edits) if len(source.files) == 1 else first
        return (_file(target, source, keys, groups[0]),)
    prefix = target.name.removesuffix(".gguf")
    files = []
    for number, group in enumerate(groups):
        keys = first if number == 0 else _alignment(source)
        keys = keys + _split_pairs(number, len(groups), len(tensors))
        path = target.with_name(shard_name(prefix, number, len(groups)))
        files.append(_file(path, source, keys, group))
    return tuple(files)


def shard_head(
    source: GgufModel, number: int, count: int, tensors: Sequence[OutputTensor], total: int
) -> tuple[Segment, ...]:
    """Return what a shard starts with; its tensors' data follow, each padded to the alignment.

    Args:
        source: for metadata, which the first shard holds, and the alignment.
        number: of the shard, from 0.
        tensors: of this shard; their ranges only need the right lengths.
        total: tensors of all shards.
    """
    first = number == 0
    keys = _key_segments(source, KeyEdits(removed=_SPLIT_KEYS)) if first else _alignment(source)
    return tuple(_head(source, [*keys, *_split_pairs(number, count, total)], tensors))


def whole(tensor: Tensor) -> OutputTensor:
    """Copy a tensor as it is."""
    part = ByteRange(tensor.shard, tensor.offset, tensor.nbytes)
    return OutputTensor(tensor.name, tensor.shape, tensor.type, (part,))


def joined(ranges: Iterable[ByteRange]) -> tuple[ByteRange, ...]:
    """Join neighbours: the same bytes in as few ranges as possible."""
    merged: list[ByteRange] = []
    for part in ranges:
        last = merged[-1] if merged else None
        if last and last.shard == part.shard and last.offset + last.length == part.offset:
            merged[-1] = ByteRange(last.shard, last.offset, last.length + part.length)
        else:
            merged.append(part)
    return tuple(merged)


def _split(
    source: GgufModel,
    keys: Sequence[Segment],
    tensors: Sequence[OutputTensor],
    limit: int | None,
) -> list[list[OutputTensor]]:
    """Fill shards in order, each with as many tensors as fit beside its header."""
    alignment = source.files[0].alignment
    if limit is None or _size(keys, tensors, alignment) <= limit:
        return [list(tensors)]
    pairs = _split_pairs(0, 1, len(tensors))
    groups: list[list[OutputTensor]] = [[]]
    keys = [*keys, *pairs]
    if (size := _size(keys, (), alignment)) > limit:
        raise InputError(
            f"split_max_size={limit}: the metadata alone has {size} bytes",
            remedy="Give a larger size.",
        )
    head, data = _head_size(keys), 0
    for tensor in tensors:
        info, size = len(_tensor_info(tensor, 0)), padded(tensor.nbytes, alignment)
        if padded(head + info, alignment) + data + size > limit:
            groups.append([])
            keys = [*_alignment(source), *pairs]
            head, data = _head_size(keys), 0
            if (alone := padded(head + info, alignment) + size) > limit:
                raise InputError(
                    f"split_max_size={limit}: a shard of tensor {tensor.name!r} alone has "
                    f"{alone} bytes",
                    remedy="Give a larger size.",
                )
        groups[-1].append(tensor)
        head, data = head + info, data + size
    if len(groups) > _MAX_SHARDS:
        raise InputError(
            f"split_max_size={limit}: makes {len(groups)} shards, {_MAX_SHARDS} at most can be",
            remedy="Give a larger size.",
        )
    return groups


def _size(keys: Sequence[Segment], tensors: Sequence[OutputTensor], alignment: int) -> int:
    """Bytes of a file of these."""
    infos = sum(len(_tensor_info(tensor, 0)) for tensor in tensors)
    data = sum(padded(tensor.nbytes, alignment) for tensor in tensors)
    return padded(_head_size(keys) + infos, alignment) + data


def _head_size(keys: Sequence[Segment]) -> int:
    """Bytes of a header without tensors, before its padding: magic, version, two counts, pairs."""
    return len(MAGIC) + 4 + 8 + 8 + sum(map(_length, keys))


def _split_pairs(number: int, count: int, n_tensors: int) -> list[Segment]:
    # In the order that llama-gguf-split leaves them in.
    pairs = {
        SPLIT_NO: TypedValue(ValueType.UINT16, number),
        SPLIT_TENSORS: TypedValue(ValueType.INT32, n_tensors),
        SPLIT_COUNT: TypedValue(ValueType.UINT16, count),
    }
    return [_pair(key, value) for key, value in pairs.items()]


def _alignment(source: GgufModel) -> list[Segment]:
    """Return the pair that every shard needs where the alignment is not the usual one."""
    pair = source.keys.get("general.alignment")
    return [ByteRange(0, pair.start, pair.end - pair.start)] if pair else []


def _file(
    path: Path, source: GgufModel, keys: list[Segment], tensors: Sequence[OutputTensor]
) -> OutputFile:
    head = _head(source, keys, tensors)
    segments = tuple(_merged([*head, *_data(source, tensors)]))
    return OutputFile(path, segments, sum(map(_length, head)))


def _head(source: GgufModel, keys: list[Segment], tensors: Sequence[OutputTensor]) -> list[Segment]:
    first = source.files[0]
    infos, offset = [], 0
    for tensor in tensors:
        infos.append(_tensor_info(tensor, offset))
        offset += padded(tensor.nbytes, first.alignment)
    preamble = MAGIC + first.version.to_bytes(4, "little")
    preamble += len(tensors).to_bytes(8, "little") + len(keys).to_bytes(8, "little")
    head: list[Segment] = [preamble, *keys, b"".join(infos)]
    head.append(_head_padding(first, sum(map(_length, head)), bool(tensors)))
    return head


def _head_padding(first: GgufFile, length: int, has_tensors: bool) -> Segment:
    """Pad a header of ``length`` bytes, with the source's own padding where that is as long.

    A file without tensors (a vocabulary) may end unpadded.
    """
    if length != first.header_end or has_tensors != bool(first.tensors):
        return bytes(padded(length, first.alignment) - length)
    end = first.data_offset if has_tensors else first.size
    return ByteRange(0, length, end - length)


def _data(source: GgufModel, tensors: Sequence[OutputTensor]) -> Iterator[Segment]:
    """Tensor data with padding."""
    originals = {tensor.name: tensor for tensor in source.tensors}
    for index, tensor in enumerate(tensors):
        yield from tensor.ranges
        original = originals.get(tensor.name)
        wanted = padded(tensor.nbytes, source.files[0].alignment) - tensor.nbytes
        if original is None or original.nbytes != tensor.nbytes:
            yield bytes(wanted)
        else:
            yield from _own_padding(source, original, wanted, last=index + 1 == len(tensors))


def _own_padding(
    source: GgufModel, original: Tensor, wanted: int, *, last: bool
) -> Iterator[Segment]:
    """Keep the source's padding after a tensor copied whole, so that neighbours are one range.

    The last tensor of a file ends as it did: some writers pad the end of a file, some do not.
    """
    file = source.files[original.shard]
    end = original.offset + original.nbytes
    tail = file.size - end
    if last and file.tensors[-1] is original:
        yield ByteRange(original.shard, end, tail)
        return
    have = min(wanted, padded(original.nbytes, file.alignment) - original.nbytes, tail)
    yield ByteRange(original.shard, end, have)
    yield bytes(wanted - have)


def _key_segments(source: GgufModel, edits: KeyEdits) -> list[Segment]:
    """One segment a pair, so that their number is the number of pairs."""
    segments: list[Segment] = []
    for key, pair in source.keys.items():
        if key in edits.set:
            segments.append(_pair(key, edits.set[key]))
        elif key not in edits.removed:
            segments.append(ByteRange(0, pair.start, pair.end - pair.start))
    segments += [_pair(key, value) for key, value in edits.set.items() if key not in source.keys]
    return segments


def _merged(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Join neighbouring literals, and neighbouring ranges."""
    previous: Segment = b""
    for segment in segments:
        if _length(segment) == 0:
            continue
        if isinstance(previous, bytes) and isinstance(segment, bytes):
            previous += segment
            continue
        if isinstance(previous, ByteRange) and isinstance(segment, ByteRange):
            both = joined((previous, segment))
            if len(both) == 1:
                previous = both[0]
                continue
        if _length(previous):
            yield previous
        previous = segment
    if _length(previous):
        yield previous


def _length(segment: Segment) -> int:
    return len(segment) if isinstance(segment, bytes) else segment.length


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return len(data).to_bytes(8, "little") + data


def _pair(key: str, value: TypedValue) -> bytes:
    return _string(key) + value.encode()


def _tensor_info(tensor: OutputTensor, offset: int) -> bytes:
    dimensions = b"".join(dimension.to_bytes(8, "little") for dimension in tensor.shape)
    return (
        _string(tensor.name)
        + len(tensor.shape).to_bytes(4, "little")
        + dimensions
        + tensor.type.to_bytes(4, "little")
        + offset.to_bytes(8, "little")
    )
