"""``ggprune rpc-server``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ggprune.cli.terminal import note
from ggprune.cli.values import FILE


@click.command("rpc-server")
@click.option(
    "--listen",
    default="127.0.0.1:50052",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to listen; 0.0.0.0 is every network.",
)
@click.option("-t", "--threads", type=click.IntRange(1), help="For a CPU; default: one a core.")
@click.option(
    "--cache", type=FILE, help="Folder that keeps large tensors, so that they are sent only once."
)
def command(listen: str, threads: int | None, cache: Path | None) -> None:
    """Lend this machine's devices to `ggprune … --rpc HOST:PORT` elsewhere, until Ctrl-C.

    Serves one client at a time. There is no authentication and no encryption: listen only in a
    network in which you trust every machine.
    """
    from ggprune.llama.devices import Kind, devices, offload_devices
    from ggprune.llama.rpc import is_loopback, parse_endpoint, serve

    host, _ = parse_endpoint(listen)
    if not is_loopback(host):
        note(
            f"Warning: everyone who can reach {listen} can use this machine's memory: "
            "llama.cpp's RPC has no authentication and no encryption."
        )
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    lent = offload_devices() or [each for each in devices() if each.kind is Kind.CPU]
    # What llama.cpp prints there is not a result.
    os.dup2(2, 1)
    serve(
        listen,
        [device.handle for device in lent],
        threads=threads or os.cpu_count() or 1,
        cache=str(cache) if cache else None,
    )
