"""The frontier of the fixture: a grid of counts and types, and what ``ggprune fit`` makes instead.

Writes docs/frontier.md, .json and .svg. What is measured is kept in --work, so that a run that is
cut short goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

from ggprune.calibration.settings import Settings
from ggprune.cli.terminal import progress_bar
from ggprune.fitting import chart
from ggprune.fitting.fit import Fit, best_file
from ggprune.fitting.frontier import Point, frontier, marked
from ggprune.fitting.job import Job
from ggprune.fitting.opening import open_study
from ggprune.fitting.study import Study
from ggprune.gguf_file import write_text

ROOT = Path(__file__).parent.parent
DOMAINS = ("dictionary", "english", "french", "german", "python", "scripture")
#: The middle first: its second types lie between those of all others.
SIZES = (
    *(12_300_000, 17_000_000, 14_900_000, 11_000_000, 10_000_000, 20_300_000),
    *(9_000_000, 8_000_000),
)
KEEPS = (64, 60, 56, 48)
TYPES = ("Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "frontier")
    parser.add_argument("--model", type=Path, default=ROOT / "fixtures/gemma4-moe-tiny-Q8_0.gguf")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    job = Job(
        model=arguments.model,
        work=arguments.work,
        text=texts("calibration"),
        search_text=texts("search"),
        eval_text=texts("heldout"),
        settings=Settings(ctx=512, max_tokens=4096),
        progress=progress_bar,
    )
    began, cpu = time.monotonic(), time.process_time()
    with open_study(job) as study:
        fits = []
        for size in SIZES:
            before = study.passes
            answer = best_file(study, size)
            fits.append((answer, study.passes - before))
        grid = frontier(study, KEEPS, TYPES)
        cost = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
        record = record_of(study, grid, fits, cost)
    write_text(arguments.out / "frontier.json", json.dumps(record, indent=1) + "\n")
    points = marked([*grid, *(point_of(answer) for answer, _ in fits)])
    title = f"{arguments.model.name}: divergence by size, held-out text"
    write_text(
        arguments.out / "frontier.svg", chart.svg([point.as_json() for point in points], title)
    )
    write_text(arguments.out / "frontier.md", page(record))


def texts(kind: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(ROOT / "fixtures" / kind / f"{name}.txt")) for name in DOMAINS)


def point_of(answer: Fit) -> Point:
    best = answer.best
    assert best.judged is not None
    return Point(best.mix.keep, "fit", best.size, best.judged, best.predicted)


def record_of(
    study: Study,
    grid: tuple[Point, ...],
    fits: list[tuple[Fit, int]],
    cost: dict[str, float],
) -> dict[str, Any]:
    return {
        "model": study.source.gguf.path.name,
        "experts": study.source.experts,
        "groups": [group.name for group in study.space.groups],
        "cost": cost,
        "grid": [point.as_json() for point in grid],
        "fits": [
            {
                **answer.as_json(study),
                "limit": answer.limit,
                "passes": passes,
                "name": answer.best.name.partition(", ")[2],
                "kld_search": answer.best.search.kld_mean if answer.best.search else None,
            }
            for answer, passes in fits
        ],
    }


def page(record: dict[str, Any]) -> str:
    """The page: what was found, beside the best of the grid."""
    grid, fits = record["grid"], record["fits"]
    rows = []
    for each in sorted(fits, key=lambda fit: -fit["limit"]):
        others = [p for p in grid if p["size_bytes"] <= each["limit"]]
        others += [p for p in each["alternatives"] if p["measured"] and p["text"] == "held-out"]
        rival = min(others, key=lambda p: p["kld_mean"])
        change = each["kld_mean"] / rival["kld_mean"] - 1
        rows.append(
            f"| {each['limit'] / 1e6:.1f} | {rival['kld_mean']:.5f} ({rival['keep']}, "
            f"{rival['types']}) | {each['size_bytes'] / 1e6:.2f} | {each['keep']} | "
            f"**{each['kld_mean']:.5f}** ± {each['kld_se']:.5f} | {change:+.0%} | "
            f"{each['kld_predicted']:.5f} / {each['kld_search']:.5f} | {each['passes']} |"
        )
    keeps = sorted({point["keep"] for point in grid}, reverse=True)
    types = list(dict.fromkeys(point["types"] for point in grid))
    cells = {(point["types"], point["keep"]): point for point in grid}
    table = []
    for name in types:
        speed = next((p["decode_tokens_per_second"] for p in grid if p["types"] == name), None)
        row = [f"| {name} |"]
        for keep in keeps:
            point = cells.get((name, keep))
            text = f"{point['kld_mean']:.5f} ({point['size_bytes'] / 1e6:.1f})" if point else "0"
            row.append(f" {text} |")
        table.append("".join(row) + (f" {speed:.0f} |" if speed else " |"))
    kinds = [
        f"- **{each['limit'] / 1e6:.1f} MB**, {each['keep']} experts: {each['name']}"
        for each in sorted(fits, key=lambda fit: -fit["limit"])
    ]
    return PAGE.format(
        model=record["model"],
        groups=len(record["groups"]),
        rows="\n".join(rows),
        head="".join(f" {keep} |" for keep in keeps),
        line="---|" * len(keeps),
        table="\n".join(table),
        kinds="\n".join(kinds),
        tokens=f"{fits[0]['tokens']:,}",
        least=fits[0]["experts"],
        cpu=record["cost"]["cpu_seconds"],
        pays=pays(fits),
    )


def pays(fits: list[dict[str, Any]]) -> str:
    """The size from which on experts go."""
    sizes = [each["limit"] for each in fits if each["keep"] == each["experts"]]
    return f"{min(sizes) / 1e6:.1f} MB" if sizes else "any size"


PAGE = """# The best file of a size

Made by `make frontier`; the numbers are in [frontier.json](frontier.json).

A user does not want a number of experts but the best model that fits. At one size there are many
files: all experts in few bits, three quarters of them in more. `ggprune fit MODEL --target-size
14G` (or `--fit-vram 24G --context 32k`) finds the best one on the user's own model and text, and
`ggprune frontier MODEL` draws all of them. Here both are measured on `{model}`
({least} experts). Everything is chosen on `fixtures/search` and judged on `fixtures/heldout`
({tokens} scored tokens); the divergence is KL from the source in nats a token.

![divergence by size](frontier.svg)

## Fitted files beside the best of the grid

The grid is the table below: counts of experts times llama-quantize's own types, with an importance
matrix; and further types of it where `fit` found one better. A fitted file also has the types
chosen for {groups} groups of tensors.

| MB at most | best of the grid | MB | experts | fitted | | search: predicted / measured | passes |
|---|---|---|---|---|---|---|---|
{rows}

What each group of tensors got:

{kinds}

## The grid

KL on held-out text (MB), by experts kept; decoding in tokens a second. `source` is the source's
own type.

| type |{head} tok/s |
|---|{line}---|
{table}

## When dropping experts pays, and when lower types do

- **Types first.** As long as there are bits to spare, lower types cost less than missing experts:
  all 64 experts in IQ4_XS (12.8 MB) are as good as 60 of them in Q8_0 (22.8 MB), and dropping an
  eighth of the experts costs more than going from Q8_0 to Q3_K_M.
- **Experts next.** Where all experts would need the lowest types, dropping some and keeping better
  types beats either alone: below {pays} here. `fit` finds that point; it differs by model: small
  models take low types better than large ones.
- **Types by group** are worth more than any choice between the two: attention and the embedding
  want many bits and have few weights, the experts' matrices of late layers take the fewest.
- It depends on the text: one that uses few experts loses little with the others. Measure on yours.

## How it is found

1. One pass over the calibration text gives the statistics that choose experts, and the importance
   matrix.
2. On the search text (about 8,000 tokens a pass): four counts of experts by masking, and every
   group of tensors in a type of about 4.5 bits, everything else as in the source. A split GGUF has
   a shard for each group, each quantized once in a type; a candidate is a folder of links.
3. Costs add up: a mix costs (Σ d^p)^(1/p) over its groups, plus what missing experts cost. Types in
   between follow a power of their importance-weighted rounding error. An exact knapsack finds the
   best mix for every count.
4. Groups are measured in the type that the mix gives them, the mix itself is measured, p is fitted,
   and it is solved again.
5. The winner, the whole model in the best single type that fits and the best count in one type are
   judged on held-out text; a winner within noise of a simpler file is none. The file is written by
   llama.cpp's quantizer and compared byte for byte with what was measured.

## What it costs

At most 60 passes for the first size, 6 for each further one (the last column above), and one
quantization for each type that is measured. On the fixture one size from nothing, calibration
included, took 44 passes and 236 s of processor time (15 MB: 0.00140, where Q4_K_M has 0.00404);
six of the sizes above and the grid {cpu:.0f} s.

For a model of 26 billion weights in Q8_0 (27 GB), one card that reads 3,000 tokens of prompt a
second, and 16 cores, by calculation: 60 passes of 8,192 tokens are 3 minutes; reading 27 GB sixty
times from the page cache at 5 GB/s takes 5. Rounding takes longest; measured here, with an
importance matrix, a core rounds this many million weights a second:

| Q3_K | Q6_K | Q4_K | Q5_K | Q2_K | IQ4_XS | IQ3_S | IQ3_XXS | IQ2_XXS | IQ2_XS | IQ2_S |
|---|---|---|---|---|---|---|---|---|---|---|
| 19 | 12 | 6.5 | 6.2 | 5.6 | 3.6 | 1.9 | 1.6 | 1.0 | 0.5 | 0.4 |

So all groups once in Q4_K are 4 minutes, a second time in types like IQ3_S 14, and writing the
file as much again: 40 minutes in all, 20 with `--types Q8_0,Q6_K,Q5_K,Q4_K,Q3_K,Q2_K`. A file that
is mostly IQ2_XS or IQ2_S takes hours; llama-quantize needs them for it too.
"""


if __name__ == "__main__":
    main()
