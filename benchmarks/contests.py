"""How often does the comparison that `auto` makes take the right method?

    make evidence
    python benchmarks/contests.py

Measures the plans of docs/evidence-work on all of the search text, then makes the comparison again
and again, with the product's own code, on other chunks each time. What it takes is judged by the
held-out text of docs/evidence.json. Prints what docs/methods.md has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from evidence import CASES, ROOT, Case

from ggprune.calibration.statistics import Statistics
from ggprune.choosing.search.contest import ALLOWANCE, rounds
from ggprune.choosing.search.meter import MaskedMeter
from ggprune.choosing.search.search import compare_one_shot
from ggprune.llama.options import RunOptions
from ggprune.model import open_model
from ggprune.plan import Plan
from ggprune.text.load import load_texts
from ggprune.types import Floats, Ints

FIVE = ("cover", "contribution", "contribution, maxmin", "gate", "reap")
TEN = (*FIVE, "gate, maxmin", "frequency", "ean", "man", "msan")
#: Candidates, tokens of a chunk, and the allowance.
WAYS = ((TEN, 128, ALLOWANCE), (TEN, 64, ALLOWANCE), (FIVE, 128, ALLOWANCE), (FIVE, 64, ALLOWANCE))
MORE = ((FIVE, 64, 2 * ALLOWANCE),)
DRAWS = 400
#: Tokens of each domain that chunks are drawn from.
TOKENS = 8192
FEWEST = 5


class Recorded:
    """A meter that knows all divergences already."""

    def __init__(self, kl: Mapping[str, Floats], plans: Mapping[str, Ints]) -> None:
        self._kl = {plans[name].tobytes(): values for name, values in kl.items()}

    def kl(self, kept: Ints, chunks: Sequence[int]) -> Floats:
        """Look the mean KL divergence of each chunk up."""
        return self._kl[kept.tobytes()][list(chunks)]

    def token_kl(self, kept: Ints, chunk: int) -> Floats:
        """Nothing here asks for tokens."""
        raise NotImplementedError


def measured(
    case: Case, chunk: int, plans: Mapping[str, Mapping[str, Ints]], threads: int | None
) -> tuple[dict[str, dict[str, Floats]], list[list[int]]]:
    """Divergence of every chunk, by count and method, and the chunks of each domain."""
    sources = load_texts((p.stem, str(p)) for p in sorted((case.texts / "search").glob("*.[tj]*")))
    layers = Statistics.load(work_of(case) / "stats.gguf").layers
    options = RunOptions(threads=threads)
    with MaskedMeter(case.model, options, layers, sources, chunk=chunk, max_tokens=TOKENS) as meter:
        domains: dict[str, list[int]] = {}
        for number, each in enumerate(meter.chunks):
            domains.setdefault(each.domain, []).append(number)
        every = range(len(meter.chunks))
        kl = {k: {n: meter.kl(kept, every) for n, kept in of.items()} for k, of in plans.items()}
    return kl, list(domains.values())


def work_of(case: Case) -> Path:
    return ROOT / "docs/evidence-work" / case.model.stem


def taken(meter: Recorded, plans: Mapping[str, Ints], order: list[int], sizes: list[int]) -> str:
    """The method that the comparison takes on chunks in this order."""
    ends = list(accumulate(sizes))
    parts = [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return next(iter(compare_one_shot(meter, plans, parts)))


def mixed(domains: Sequence[Sequence[int]], random: np.random.Generator) -> list[int]:
    """One chunk of each domain in turn, each in a random order."""
    shuffled = [random.permutation(numbers) for numbers in domains]
    longest = max(map(len, shuffled))
    return [int(part[i]) for i in range(longest) for part in shuffled if i < len(part)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int)
    told = parser.parse_args()
    results = json.loads((ROOT / "docs/evidence.json").read_text("utf-8"))
    for case in CASES[:2]:
        statistics = Statistics.load(work_of(case) / "stats.gguf")
        tokens = sum(domain.tokens for domain in statistics.domains)
        found = results[open_model(case.model).name]
        plans = {
            str(keep): {
                name: np.array(
                    [
                        part.keep
                        for part in Plan.load(work_of(case) / f"{keep} {name}.json").layers.values()
                    ]
                )
                for name in TEN
            }
            for keep in found["model"]["keeps"]
        }
        recorded = {
            chunk: measured(case, chunk, plans, told.threads)
            for chunk in sorted({chunk for _, chunk, _ in (*WAYS, *MORE)})
        }
        for candidates, chunk, allowance in (*WAYS, *MORE):
            kl, domains = recorded[chunk]
            lost = []
            for keep, of in plans.items():
                truth = {name: found["plans"][keep][name]["kld_mean"] for name in TEN}
                some = {name: of[name] for name in candidates}
                allowed, most = int(allowance * tokens) // chunk, sum(map(len, domains))
                sizes = rounds(len(some), allowed, len(domains), most, FEWEST)
                meter, random = Recorded(kl[keep], of), np.random.default_rng(0)
                drawn = [taken(meter, some, mixed(domains, random), sizes) for _ in range(DRAWS)]
                lost.append([truth[name] / min(truth.values()) - 1 for name in drawn])
            means, often = np.mean(lost, axis=1), np.mean(np.array(lost) > 0.05, axis=1)
            print(
                f"{case.model.stem}: {len(candidates)} candidates, chunks of {chunk}, "
                f"{allowance:.0%} of calibration's tokens: mean regret "
                + ", ".join(f"{m:.2%}" for m in means)
                + "; above 5 %: "
                + ", ".join(f"{o:.0%}" for o in often),
                flush=True,
            )


if __name__ == "__main__":
    main()
