"""``ggprune merge``."""

from __future__ import annotations

from pathlib import Path

import click

from ggprune.cli import options
from ggprune.cli.terminal import note
from ggprune.cli.values import FILE
from ggprune.util import counted


@click.command("merge")
@click.argument("parts", type=FILE, nargs=-1, required=True, metavar="PART…")
@options.output("Name of the merged statistics file.", required=True)
@options.force
@options.quiet
def command(parts: tuple[Path, ...], output: Path, force: bool) -> None:
    """Put statistics gathered apart together, in any order.

    Parts are the shards of one run (`calibrate --shard 3/16`), or runs of one model over different
    texts.
    """
    from ggprune.api import stages
    from ggprune.calibration.merge import missing_shards

    merged = stages.merge(parts, output, force=force)
    tokens = sum(domain.tokens for domain in merged.domains)
    domains, files = counted(len(merged.domains), "domain"), counted(len(parts), "file")
    note(f"{output}: {counted(tokens, 'token')} in {domains} from {files}")
    if missing := missing_shards(merged):
        note(f"  still missing: shards {', '.join(map(str, missing))}")
