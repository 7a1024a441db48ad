"""``ggprune doctor``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ggprune.cli import options
from ggprune.cli.terminal import print_json
from ggprune.cli.values import MODEL


@click.command("doctor")
@click.argument("model", type=MODEL, required=False)
@options.json
def command(model: Path | None, as_json: bool) -> None:
    """Say what is installed, which devices llama.cpp uses, and what would make ggprune faster.

    With MODEL: whether it fits, where its layers would go, and how long calibration takes, by
    trying. Exits with 1 if something has to be mended before ggprune can work.
    """
    from dataclasses import asdict

    from ggprune.doctor import diagnose

    findings = diagnose(model)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            click.echo(f"{finding.subject:<{width}}  {finding.text}")
            if finding.remedy:
                click.echo(f"{'':<{width}}  -> {finding.remedy}")
    sys.exit(1 if any(finding.is_broken for finding in findings) else 0)
