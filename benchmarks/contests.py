"""How often does the comparison that `auto` makes take the right method?

    make evidence
    python benchmarks/contests.py

    make evidence MODEL=model.gguf TEXTS=folder OUT=folder
    python benchmarks/contests.py model.gguf --texts folder --out folder

Measures the plans of `make evidence` on much of the search text, then makes the comparison again
and again, with the product's own code, on other chunks each time. What it takes is judged by the
held-out text: KL over the best method's, less 1. Prints what docs/methods.md has.
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

#: What auto compares, the same with contribution weighed one way, and without it.
ALL = ("consensus", "cover", "contribution, maxmin", "contribution", "gate", "reap")
FIVE = tuple(name for name in ALL if name != "contribution")
FOUR = tuple(name for name in ALL if "contribution" not in name)
#: Candidates, tokens of a chunk, and the allowance.
WAYS = (
    *((ALL, 128, ALLOWANCE), (FIVE, 128, ALLOWANCE), (FOUR, 128, ALLOWANCE)),
    *((ALL, 64, ALLOWANCE), (ALL, 128, 2 * ALLOWANCE)),
)
LIMIT = 0.05
DRAWS = 400
#: Tokens of each domain that chunks are drawn from.
TOKENS = 8192


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
    case: Case,
    chunk: int,
    layers: Sequence[int],
    plans: Mapping[str, Mapping[str, Ints]],
    threads: int | None,
) -> tuple[dict[str, dict[str, Floats]], list[list[int]]]:
    """Divergence of every chunk, by count and method, and the chunks of each domain."""
    sources = load_texts((p.stem, str(p)) for p in sorted((case.texts / "search").glob("*.[tj]*")))
    options = RunOptions(threads=threads)
    with MaskedMeter(case.model, options, layers, sources, chunk=chunk, max_tokens=TOKENS) as meter:
        domains: dict[str, list[int]] = {}
        for number, each in enumerate(meter.chunks):
            domains.setdefault(each.domain, []).append(number)
        every = range(len(meter.chunks))
        kl = {k: {n: meter.kl(kept, every) for n, kept in of.items()} for k, of in plans.items()}
    return kl, list(domains.values())


def kept_by(work: Path, keep: str) -> dict[str, Ints]:
    """Experts that each method keeps, [layers, keep]."""
    plans = {name: Plan.load(work / f"{keep} {name}.json") for name in ALL}
    return {
        name: np.array([layer.keep for layer in plan.layers.values()])
        for name, plan in plans.items()
    }


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


def replay(case: Case, out: Path, threads: int | None) -> None:
    """Print what each way of comparing would take, and what that costs."""
    found = json.loads((out / "evidence.json").read_text("utf-8"))[open_model(case.model).name]
    work = out / "evidence-work" / case.model.stem
    statistics = Statistics.load(work / "stats.gguf")
    tokens = sum(domain.tokens for domain in statistics.domains)
    plans = {keep: kept_by(work, keep) for keep in found["plans"]}
    recorded = {
        chunk: measured(case, chunk, statistics.layers, plans, threads)
        for chunk in sorted({chunk for _, chunk, _ in WAYS})
    }
    for names, chunk, allowance in WAYS:
        kl, domains = recorded[chunk]
        most = sum(map(len, domains))
        sizes = rounds(len(names), int(allowance * tokens) // chunk, len(domains), most)
        told = []
        for keep, of in plans.items():
            truth = {name: found["plans"][keep][name]["kld_mean"] for name in ALL}
            meter, some = Recorded(kl[keep], of), {name: of[name] for name in names}
            random = np.random.default_rng(0)
            drawn = [taken(meter, some, mixed(domains, random), sizes) for _ in range(DRAWS)]
            lost = np.array([truth[name] for name in drawn]) / min(truth.values()) - 1
            told.append(f"{keep} kept {lost.mean():.1%}, {(lost > LIMIT).mean():.0%}")
        way = f"{len(names)} candidates, chunks of {chunk}, {allowance:.0%} of calibration's tokens"
        print(f"{case.model.stem}, {way}: {'; '.join(told)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, help="default: two of fixtures/")
    parser.add_argument("--texts", type=Path, default=ROOT / "fixtures")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="of make evidence")
    parser.add_argument("--threads", type=int)
    told = parser.parse_args()
    print(f"mean regret, and how often it is above {LIMIT:.0%}:")
    # The third of fixtures/ takes an hour.
    for case in [Case(told.model, told.texts, None, 0)] if told.model else CASES[:2]:
        replay(case, told.out, told.threads)


if __name__ == "__main__":
    main()
