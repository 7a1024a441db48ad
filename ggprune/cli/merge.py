"""``ggprune merge``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from ggprune.cli.common import FILE, force_option, note, output_option


@click.command("merge")
@click.argument("parts", type=FILE, nargs=-1, required=True, metavar="PART…")
@output_option("Name of the merged statistics file.", required=True)
@force_option
@click.option("-q", "--quiet", is_flag=True, help="No notes.")
def command(parts: tuple[Path, ...], output: Path, force: bool, quiet: bool) -> None:
    """Put statistics gathered apart together, in any order.

    Parts are the shards of one run (`calibrate --shard 3/16`), or runs of one model over different
    texts.
    """
    from ggprune.calibration.merge import merge, missing_shards
    from ggprune.calibration.statistics import Statistics
    from ggprune.gguf_file import check_targets

    say = partial(note, quiet=quiet)
    check_targets([output], 0, force=force)
    merged = merge((str(part), Statistics.load(part)) for part in parts)
    merged.save(output)
    tokens = sum(domain.tokens for domain in merged.domains)
    say(f"{output}: {tokens:,} tokens in {len(merged.domains)} domains from {len(parts)} files")
    if missing := missing_shards(merged):
        say(f"  still missing: shards {', '.join(map(str, missing))}")
