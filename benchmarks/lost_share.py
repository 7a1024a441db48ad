"""How divergence grows with the share of a token's experts that a plan drops: what cover rests on.

    python benchmarks/lost_share.py [MODEL --texts FOLDER --keep N]

Draws random plans around a plan, measures each on a chunk of text by masking, and prints the mean
KL divergence by the share lost; and how much of the differences between plans on the same token is
explained by the share lost, layer by layer, and by the dropped experts' gates.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ggprune.calibration.observers import RoutingRecorder
from ggprune.calibration.routing import Shares
from ggprune.choosing.cover import cover_scores
from ggprune.choosing.scores import choose_all
from ggprune.choosing.search import search
from ggprune.choosing.search.meter import CHUNK, MaskedMeter
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.model import open_model
from ggprune.model.architectures import Architecture
from ggprune.text.load import load_texts
from ggprune.types import Ints32

FIXTURES = Path(__file__).parent.parent / "fixtures"
EXCHANGED = 0.25
BINS = 10

Floats = npt.NDArray[np.float64]


class GateRecorder(RoutingRecorder):
    """Keeps the gates too."""

    def __init__(self, architecture: Architecture, layers: Sequence[int]) -> None:
        super().__init__(architecture, layers)
        self._kept_gates: list[list[Floats]] = [[] for _ in layers]

    def take_gates(self) -> Floats:
        gates = np.stack([np.concatenate(parts) for parts in self._kept_gates], axis=1)
        self._kept_gates = [[] for _ in self.rows]
        return gates

    def add(self, layer: int, chosen: Ints32, gates: Floats, contributions: Floats) -> None:
        super().add(layer, chosen, gates, contributions)
        self._kept_gates[self.rows[layer]].append(gates)


def explained(features: Floats, kl: Floats) -> float:
    """R² of differences between plans, tokens weighted as in a regression on relative ones.

    Args:
        features: [chunks, plans, tokens, layers].
        kl: [chunks, plans, tokens].
    """
    mean = kl.mean(axis=1, keepdims=True)
    weight = np.broadcast_to(1 / (mean + mean.mean()), kl.shape).ravel()
    x = (features - features.mean(axis=1, keepdims=True)).reshape(-1, features.shape[-1])
    y = (kl - mean).ravel()
    slopes = np.linalg.solve(x.T @ (x * weight[:, None]), x.T @ (y * weight))
    left = y - x @ slopes
    return float(1 - (weight * left**2).sum() / (weight * y**2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument(
        "model", nargs="?", type=Path, default=FIXTURES / "gemma4-moe-tiny-Q8_0.gguf"
    )
    parser.add_argument("--texts", type=Path, default=FIXTURES / "search")
    parser.add_argument("--keep", type=int, default=16)
    parser.add_argument("--chunks", type=int, default=48)
    parser.add_argument("--plans", type=int, default=10, help="of each chunk")
    args = parser.parse_args()
    model, options = open_model(args.model), RunOptions()
    sources = load_texts((path.stem, str(path)) for path in sorted(args.texts.glob("*.txt")))
    random = np.random.default_rng(0)
    recorder = GateRecorder(model.architecture, model.moe_layers)
    with MaskedMeter(args.model, options, model.moe_layers, sources) as meter:
        meter.start()
        chunks = meter.parts()[0][: args.chunks]
        routing = []
        with (
            LlamaModel(args.model, options) as llama,
            LlamaContext(llama, n_ctx=CHUNK, observers=(recorder,)) as context,
        ):
            for chunk in chunks:
                context.clear()
                context.decode([Tokens(0, 0, meter.chunks[chunk].tokens.tolist())])
                routing.append((*recorder.take(), recorder.take_gates()))
        shares = [Shares.of(experts, parts) for experts, parts, _ in routing]
        centre = cover_scores(Shares.joined(shares), args.keep, model.experts)

        def choose(scores: Floats) -> npt.NDArray[np.int64]:
            return choose_all(scores, args.keep, model.counts.groups)

        noise = search.spread_for(centre, choose, EXCHANGED, random)
        kl, share, gate = [], [], []
        for chunk, (experts, _, weights), part in zip(chunks, routing, shares, strict=True):
            at = meter.chunks[chunk].scored - 1
            for _ in range(args.plans):
                kept = choose(search.drawn(centre, noise, random))
                dropped = np.ones((len(kept), model.experts))
                np.put_along_axis(dropped, kept, 0, axis=1)
                lost = dropped[np.arange(len(kept))[:, None], experts[at].astype(int)]
                kl.append(meter.token_kl(kept, chunk))
                share.append((lost * part.shares[at]).sum(axis=2))
                gates = weights[at]
                gate.append((lost * gates / gates.sum(axis=2, keepdims=True)).sum(axis=2))
    shape = (len(chunks), args.plans, -1)
    divergence = np.array(kl).reshape(shape)
    by_share, by_gate = (np.array(each).reshape(*shape, len(kept)) for each in (share, gate))
    lost = by_share.mean(axis=3)
    print("| share lost | tokens | mean KL |\n|---|---|---|")
    for low in np.arange(BINS) / BINS:
        mine = (lost >= low) & (lost < low + 1 / BINS + 1e-9)
        if mine.any():
            print(f"| {low:.1f} to {low + 1 / BINS:.1f} | {mine.sum()} | "
                  f"{divergence[mine].mean():.3f} |")  # fmt: skip
    print(f"differences between plans explained by the share lost: "
          f"{explained(by_share, divergence):.1%}; by the gates lost: "
          f"{explained(by_gate, divergence):.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
