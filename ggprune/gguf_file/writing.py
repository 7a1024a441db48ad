"""Writing files so that nothing is ever half-written under its final name.

Each file is written beside its target as ``NAME.part``, flushed to the disk, then renamed. The
source is only read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ggprune.errors import GgpruneError, OutputError
from ggprune.gguf_file.copying import Progress, RangeCopier
from ggprune.gguf_file.layout import OutputFile, Segment
from ggprune.gguf_file.shards import GgufModel

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; two writers of one file are the user's business.
    fcntl = None  # type: ignore[assignment]

#: Ranges below this are gathered in memory: one read costs less than one call into the kernel's
#: copying for each row of a router.
_SMALL = 256 << 10
_GATHER = 4 << 20


def part_path(path: Path) -> Path:
    """The temporary name beside ``path``."""
    return path.with_name(path.name + ".part")


def check_targets(
    paths: Sequence[Path], needed: int, *, source: GgufModel | None = None, force: bool = False
) -> None:
    """Find out before long work whether the results can be written.

    Args:
        paths: final names.
        needed: bytes of all of them.
        source: files that must not be replaced.
        force: allow replacing existing files.

    Raises:
        OutputError: a target is a source, a folder or exists; the folder is missing, cannot be
            written to or has not enough room.
    """
    for path in paths:
        _check_target(path, source, force)
    folder = paths[0].parent
    stale = sum(_size(part_path(path)) for path in paths)
    free = shutil.disk_usage(folder).free + stale
    if needed > free:
        raise OutputError(
            f"{folder.absolute()}: {needed:,} bytes are needed, {free:,} are free",
            remedy="Free some space, or write elsewhere with -o.",
        )
    try:
        with _part_file(part_path(paths[0])):
            pass
    except OSError as error:
        raise _output_error(paths[0], error) from error
    _unlink(part_path(paths[0]))


def write_files(
    files: Sequence[OutputFile],
    source: GgufModel,
    *,
    progress: Progress = lambda _: None,
    force: bool = False,
) -> None:
    """Write the files that ``lay_out`` decided on; all appear under their names, or none.

    Args:
        progress: called with the number of bytes just written.

    Raises:
        OutputError: see check_targets; also when the disk fills while writing.
        FormatError: the source became shorter.
    """
    check_targets([f.path for f in files], sum(f.size for f in files), source=source, force=force)
    parts: list[Path] = []
    try:
        for file in files:
            _write_part(file, source, progress)
            parts.append(part_path(file.path))
        # The first shard is renamed last: where it stands, the others do too.
        for file in reversed(files):
            os.replace(part_path(file.path), file.path)
        _sync_folder(files[0].path.parent)
    except OSError as error:
        raise _output_error(files[0].path, error) from error
    finally:
        for part in parts:
            _unlink(part)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends well, and vanishes otherwise.

    Raises:
        OutputError: it cannot be written.
    """
    part = part_path(path)
    try:
        yield part
        with open(part, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(part, path)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        _unlink(part)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _write_part(file: OutputFile, source: GgufModel, progress: Progress) -> None:
    part = part_path(file.path)
    with _part_file(part) as descriptor:
        try:
            _copy_segments(file.segments, source, RangeCopier(descriptor, progress))
            os.fsync(descriptor)
        except BaseException:
            _unlink(part)
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


@contextlib.contextmanager
def _part_file(part: Path) -> Iterator[int]:
    """Open the temporary file, alone: a stale one of a killed run is emptied and used again."""
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(part, flags, 0o666)
    try:
        if fcntl is not None:
            _lock(descriptor, part)
        os.ftruncate(descriptor, 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, part: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"{part}: another ggprune is writing this file",
            remedy="Wait for it, or choose another name with -o.",
        ) from error
    except OSError:
        # Some network file systems have no locks.
        return


def _check_target(path: Path, source: GgufModel | None, force: bool) -> None:
    if not path.parent.is_dir():
        raise OutputError(
            f"{path}: the folder {path.parent} does not exist", remedy=f"mkdir -p {path.parent}"
        )
    if path.is_dir():
        raise OutputError(f"{path}: is a folder", remedy="Give the name of a file with -o.")
    if not os.path.lexists(path):
        return
    with contextlib.suppress(OSError):
        status = os.stat(path)
        if source and any((status.st_dev, status.st_ino) == f.file_id for f in source.files):
            raise OutputError(
                f"{path}: is the source itself", remedy="Choose another name with -o."
            )
        if not path.is_file():
            raise OutputError(f"{path}: is not a regular file", remedy="Choose another name.")
    if not force:
        raise OutputError(
            f"{path}: exists", remedy="Use --force to replace it, or -o for another name."
        )


def _output_error(path: Path, error: OSError) -> GgpruneError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "the disk is full"
    elif error.errno == errno.EFBIG:
        what = "the file would be larger than the system (or ulimit -f) allows"
    else:
        what = error.strerror or str(error)
    return OutputError(
        f"{path}: cannot be written: {what}; nothing was left behind",
        remedy="Write to another folder with -o.",
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


