"""``ggprune push``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.cli import options
from ggprune.cli.terminal import print_json, progress_bar, table
from ggprune.cli.values import FILE
from ggprune.util import human_size

if TYPE_CHECKING:
    from ggprune.publish.upload import Push


@click.command("push")
@click.argument("folder", type=FILE)
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--revision", help="Branch to push to; made if it is not there.  [default: main]")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@options.json
@options.quiet
def command(folder: Path, repo: str, dry_run: bool, as_json: bool, **where: Any) -> None:
    """Publish FOLDER as a model repository on the Hugging Face Hub.

    Sends models, card, drop metadata, reports, Modelfiles and SHA256SUMS, each large file as a
    commit of its own, and checks the hashes that the Hub then reports. Files that are there with
    the same hash are not sent: after a broken connection, run it again.

    The token is the one of `hf auth login`, or HF_TOKEN.
    """
    from ggprune.publish.upload import push

    made = push(folder, repo, dry_run=dry_run, progress=progress_bar, **where)
    _show(made, dry_run=dry_run, as_json=as_json)


def _show(push: Push, *, dry_run: bool, as_json: bool) -> None:
    done = "would upload" if dry_run else "uploaded"
    if as_json:
        result: dict[str, Any] = {
            "repo": push.repo.name,
            "revision": push.repo.revision or "main",
            "url": push.url,
            "dry_run": dry_run,
            "creates": push.creates,
            "upload": [_described(file) for file in push.upload],
            "present": [_described(file) for file in push.present],
            "left_out": list(push.left_out),
        }
        print_json(result)
        return
    rows = [[done, human_size(file.size), file.name] for file in push.upload]
    rows += [["present", human_size(file.size), file.name] for file in push.present]
    click.echo(table(rows))
    click.echo(f"{push.url}: {human_size(push.bytes_to_send)} {done}")


def _described(file: Any) -> dict[str, Any]:
    return {"name": file.name, "size_bytes": file.size, "sha256": file.sha256}
