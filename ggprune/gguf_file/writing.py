"""Writing files so that nothing is ever half-written under its final name.

Each file is written beside its target as ``NAME.part``, flushed to the disk, then renamed. The
source is only read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ggprune.errors import OutputError
from ggprune.gguf_file.copying import RangeCopier
from ggprune.gguf_file.layout import OutputFile, Segment
from ggprune.gguf_file.parts import FileId, PartFile, part_path
from ggprune.gguf_file.shards import GgufModel
from ggprune.system import sync_folder
from ggprune.types import Advance

#: Ranges below this are gathered in memory: one read costs less than one call into the kernel's
#: copying for each row of a router.
_SMALL = 256 << 10
_GATHER = 4 << 20


def check_targets(
    paths: Sequence[Path], needed: int, *, source: GgufModel | None = None, force: bool = False
) -> None:
    """Find out before long work whether the results can be written.

    Args:
        needed: bytes of all of them.
        source: files that must not be replaced.

    Raises:
        OutputError: a target is a source, a folder or exists; the folder is missing, cannot be
            written to or has not enough room.
    """
    for path in paths:
        _check_target(path, source, force)
    try:
        _check_room(paths, needed)
        with PartFile(paths[0], _ids(source)):
            pass
    except OSError as error:
        raise _output_error(paths[0], error) from error


def write_files(
    files: Sequence[OutputFile],
    source: GgufModel,
    *,
    progress: Advance = lambda _: None,
    force: bool = False,
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write the files that ``lay_out`` decided on; all appear under their names, or none.

    Args:
        check: called with the path under which the complete result (its first shard) can be
            opened before it has its final name, which it never gets if this raises.

    Raises:
        OutputError: see check_targets; also when the disk fills while writing.
        FormatError: the source became shorter.
        InputError: the source cannot be read.
    """
    paths = [file.path for file in files]
    check_targets(paths, sum(file.size for file in files), source=source, force=force)
    try:
        with contextlib.ExitStack() as stack:
            parts = [stack.enter_context(PartFile(path, _ids(source))) for path in paths]
            for part, file in zip(parts, files, strict=True):
                _copy_segments(file.segments, source, RangeCopier(part.descriptor, progress))
                os.fsync(part.descriptor)
            if check:
                with _as_named(parts) as first:
                    check(first)
            for path in paths:  # Writing took a while: one may have appeared.
                _check_target(path, source, force)
            _place(parts)
        sync_folder(paths[0].parent)
    except OSError as error:
        raise _output_error(paths[0], error) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path that becomes ``path`` when the block ends well, else vanishes.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with PartFile(path) as part:
            yield part.path
            with open(part.path, "rb+") as stream:
                os.fsync(stream.fileno())
            part.place()
        sync_folder(path.parent)
    except OSError as error:
        raise _output_error(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _as_named(parts: Sequence[PartFile]) -> Iterator[Path]:
    """Let several parts be opened together: shards find each other by their final names."""
    if len(parts) == 1:
        yield parts[0].path
        return
    folder = parts[0].path.with_name(parts[0].path.name + "s")
    shutil.rmtree(folder, ignore_errors=True)  # Of a run that was killed.
    folder.mkdir()
    try:
        for part in parts:
            link = folder / part.target.name
            try:
                os.link(part.path, link)
            except OSError:
                link.symlink_to(part.path.absolute())
        yield folder / parts[0].target.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(parts: Sequence[PartFile]) -> None:
    """Rename all, or none. The first shard last: where it stands, the others do too."""
    placed: list[Path] = []
    try:
        if len(parts) > 1:
            # With force an older first shard stands here, and must not be seen with new ones.
            parts[0].target.unlink(missing_ok=True)
        for part in reversed(parts):
            part.place()
            placed.append(part.target)
    except BaseException:
        for path in placed:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _copy_segments(segments: Sequence[Segment], source: GgufModel, copier: RangeCopier) -> None:
    gathered = bytearray()
    for segment in segments:
        if isinstance(segment, bytes):
            gathered += segment
        elif segment.length < _SMALL:
            gathered += source.files[segment.shard].read(segment.offset, segment.length)
        else:
            copier.write(gathered)
            gathered.clear()
            file = source.files[segment.shard]
            copier.copy(file.fileno(), segment.offset, segment.length, file.path)
        if len(gathered) >= _GATHER:
            copier.write(gathered)
            gathered.clear()
    copier.write(gathered)


def _ids(source: GgufModel | None) -> frozenset[FileId]:
    return frozenset(file.file_id for file in source.files) if source else frozenset()


def _check_room(paths: Sequence[Path], needed: int) -> None:
    folder = paths[0].parent
    stale = sum(_used(part_path(path)) for path in paths)
    free = shutil.disk_usage(folder).free + stale
    if needed > free:
        raise OutputError(
            f"{folder.absolute()}: {needed:,} bytes are needed, {free:,} are free",
            remedy="Free some space, or choose another output.",
        )


def _check_target(path: Path, source: GgufModel | None, force: bool) -> None:
    if not os.path.isdir(path.parent):
        raise OutputError(
            f"{path}: the folder {path.parent} does not exist", remedy=f"mkdir -p {path.parent}"
        )
    if os.path.isdir(path):
        raise OutputError(f"{path}: is a folder", remedy="Give the name of a file.")
    if not os.path.lexists(path):
        return
    with contextlib.suppress(OSError):
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in _ids(source):
            raise OutputError(f"{path}: is the source itself", remedy="Choose another output.")
        if not stat.S_ISREG(status.st_mode):
            raise OutputError(f"{path}: is not a regular file", remedy="Choose another name.")
    if not force:
        raise OutputError(
            f"{path}: exists", remedy="Pass force=True to replace it, or choose another output."
        )


def _output_error(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "the disk is full"
    elif error.errno == errno.EFBIG:
        what = "the file would be larger than the system (or ulimit -f) allows"
    else:
        what = error.strerror or str(error)
    return OutputError(
        f"{path}: cannot be written: {what}; nothing was left behind",
        remedy="Choose an output in another folder.",
    )


def _used(path: Path) -> int:
    """Bytes of disk that a stale part gives back (not its size: it may be sparse)."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return 0
    return int(getattr(status, "st_blocks", 0)) * 512
