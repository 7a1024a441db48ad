"""Calibrate on a Ray cluster: one shard a task, merged where this script runs.

    pip install 'ray[default]'
    python ray_calibrate.py /shared/model.gguf /shared/stats.gguf --shards 16 \\
        --gpus 1 --text code=/shared/code.jsonl

Options that are not this script's go to ``ggprune calibrate``. Model, texts and parts are on a file
system that all nodes see. A task that dies with its node is started again by Ray and continues
from its checkpoint.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import ray

import ggprune


def calibrate(model: str, part: str, shard: str, options: list[str]) -> str:
    """Run one shard in a process of its own, so that a crash of llama.cpp is only its own."""
    if not Path(part).exists():
        command = [sys.executable, "-c", "from ggprune.cli.main import main; main()"]
        command += ["calibrate", model, "-o", part, "--shard", shard, "--quiet", *options]
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"shard {shard}: {result.stderr.strip()}")
    return part


def main() -> None:
    """Fan out, wait, merge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--gpus", type=float, default=1, help="of a task")
    parser.add_argument("--cpus", type=float, default=8, help="of a task")
    args, options = parser.parse_known_args()

    folder = args.output.with_name(args.output.name + ".parts")
    folder.mkdir(exist_ok=True)
    ray.init()
    remote = ray.remote(num_gpus=args.gpus, num_cpus=args.cpus, max_retries=5)(calibrate)
    tasks = [
        remote.remote(
            str(args.model.absolute()),
            str((folder / f"part-{number:04}.gguf").absolute()),
            f"{number}/{args.shards}",
            options,
        )
        for number in range(1, args.shards + 1)
    ]
    parts = ray.get(tasks)
    ggprune.merge(parts, args.output, force=True)
    print(args.output)


if __name__ == "__main__":
    main()
