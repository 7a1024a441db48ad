"""What cover should count: parts of squares or of norms, of the token or of the mean token.

    python benchmarks/covers.py MODEL --texts FOLDER --keep N [--keep N …]

Prints mean KL divergence on FOLDER/heldout of plans made from FOLDER/calibration, over that of the
best score that is a sum or a mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ggprune.calibration.run import Run
from ggprune.calibration.settings import Settings
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.choose import choose_plan
from ggprune.choosing.cover import BETA, GENTLE, cover_scores, losses
from ggprune.choosing.request import Budget, Request
from ggprune.choosing.scores import choose_all
from ggprune.evaluation.evaluator import Evaluator
from ggprune.llama.options import RunOptions
from ggprune.model import open_model
from ggprune.text.documents import Source
from ggprune.text.load import load_texts
from ggprune.types import Ints

CONTEXT = 512
SUMS = ("contribution", "contribution, maxmin", "gate", "reap", "ean", "frequency")
#: The text's shares as they are, with the factor that suits them; parts of norms.
SQUARES, OWN, MEAN = "squares, own", "norms, own", "norms, mean token"


def plans(statistics: Statistics, keep: int) -> dict[str, Ints]:
    """Plans by name, [layers, keep] each."""
    found = {}
    for name in SUMS:
        method, _, blend = name.partition(", ")
        request = Request(
            budget=Budget(keep=keep), method=method, blend=blend or None, super_experts=False
        )
        layers = choose_plan(statistics, request).layers
        found[name] = np.array([layers[n].keep for n in statistics.layers])
    experts, routing = statistics.identity.experts, statistics.shares
    assert routing is not None
    found[SQUARES] = choose_all(cover_scores(routing, keep, experts, beta=BETA), keep)
    for name, normed in ((OWN, True), (MEAN, False)):
        scores = cover_scores(losses(routing, normed=normed), keep, experts, beta=GENTLE)
        found[name] = choose_all(scores, keep)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--keep", type=int, action="append", required=True)
    parser.add_argument("--tokens", type=int, default=4096, help="of each domain, to calibrate on")
    parser.add_argument("--heldout-tokens", type=int, default=1024, help="of each domain")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    options, model = RunOptions(threads=args.threads), open_model(args.model)

    def texts(part: str) -> tuple[Source, ...]:
        found = sorted((args.texts / part).glob("*.txt"))
        return load_texts((path.stem, str(path)) for path in found)

    settings = Settings(ctx=CONTEXT, generate=0, max_tokens=args.tokens)
    statistics = Run(model, texts("calibration"), settings, options).run()
    with Evaluator(
        args.model,
        options,
        texts("heldout"),
        n_ctx=CONTEXT,
        max_tokens=args.heldout_tokens,
        scored_from=64,
    ) as evaluator:
        for keep in args.keep:
            kl = {}
            for name, kept in plans(statistics, keep).items():
                every = set(range(model.experts))
                rows = zip(statistics.layers, kept.tolist(), strict=True)
                dropped = {layer: sorted(every - set(row)) for layer, row in rows}
                kl[name] = evaluator.measure_mask(dropped).total.kld_mean
            least = min(kl[name] for name in SUMS)
            print(f"{keep} kept, best sum {least:.4f}")
            for name in sorted(kl, key=kl.__getitem__):
                print(f"  {name:24} {kl[name] / least:.3f}", flush=True)


if __name__ == "__main__":
    main()
