"""Do answers say the same as divergence? Plans measured by both.

    python benchmarks/answers.py fixture
    make chatty
    python benchmarks/answers.py chatty out/chatty-Q8_0.gguf

Prints what docs/evaluation.md has: KL divergence on held-out text, and what the gate says of
the answers, against the whole model and against the plan with the model's number of experts used.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import ggprune
from ggprune.calibration.generate import Sampling
from ggprune.choosing.search.search import paired
from ggprune.evaluation.evaluator import Evaluator
from ggprune.evaluation.masking import MaskObserver, dropped_by
from ggprune.evaluation.probe import SHORT, Probe, answer_all, builtin_probes, own_sampling
from ggprune.evaluation.probe_gate import gate
from ggprune.evaluation.verdict import answers_in_a_line
from ggprune.llama.session import LlamaModel
from ggprune.model import open_model
from ggprune.text.documents import Message
from ggprune.text.load import load_texts
from ggprune.types import Floats

ROOT = Path(__file__).parents[1]
FIXTURES, BUILTIN = ROOT / "fixtures", ROOT / "ggprune/text/builtin"
CONTEXT = 512


@dataclass(frozen=True)
class Case:
    """Texts by domain, plans as experts kept and numbers used, prompts, and lengths in tokens."""

    calibration: dict[str, Path]
    held_out: dict[str, Path]
    plans: dict[int, tuple[int | None, ...]]
    probes: Sequence[Probe]
    modes: tuple[str, ...]
    calibration_tokens: int
    kl_tokens: int
    answer_tokens: int
    method: str | None = None
    blend: str | None = None


def words() -> list[Probe]:
    """Two hundred words to define; the fixture was trained on others."""
    text = (FIXTURES / "heldout/dictionary.txt").read_text("utf-8")
    entries = re.split(r"\n(?=[A-Za-z][^\n]* \\)", text)
    found = dict.fromkeys(e.split(" ")[0] for e in entries if " \\" in e and len(e) < 2400)
    return [
        Probe(word, "dictionary", (Message("user", f"Define the word {word}."),))
        for word in list(found)[:200]
    ]


def cases() -> dict[str, Case]:
    def folder(name: str) -> dict[str, Path]:
        return {path.stem: path for path in sorted((FIXTURES / name).glob("*.txt"))}

    short = [probe for probe in builtin_probes() if probe.kind == SHORT]
    english, chat = FIXTURES / "calibration/english.txt", BUILTIN / "search.jsonl"
    held_out = {"english": FIXTURES / "heldout/english.txt", "chat": BUILTIN / "heldout.jsonl"}
    return {
        "fixture": Case(
            *(folder("calibration"), folder("heldout"), {32: (None, 6), 16: (None, 5)}),
            *(words(), ("sampled",), 4096, 2048, 200, "cover"),
        ),
        "chatty": Case(
            *(
                {"english": english, "chat": chat},
                held_out,
                {23: (None,), 22: (None,), 12: (None, 12, 6)},
            ),
            *((*short, *words()), ("sampled", "greedy"), 2048, 2048, 64),
            *("contribution", "chat=1,english=0"),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=sorted(cases()))
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    case, path = cases()[args.case], args.model or FIXTURES / "gemma4-moe-tiny-Q8_0.gguf"
    model, options = open_model(path), ggprune.RunOptions(threads=args.threads)
    settings = ggprune.Settings(ctx=CONTEXT, max_tokens=case.calibration_tokens)
    statistics = ggprune.calibrate(path, text=case.calibration, settings=settings, options=options)
    plans = {}
    for keep, numbers in case.plans.items():
        plan = ggprune.choose(statistics, keep=keep, method=case.method, blend=case.blend)
        plans |= {(keep, used): replace(plan, experts_used=used) for used in numbers}
    sources = load_texts((name, str(file)) for name, file in case.held_out.items())
    with Evaluator(path, options, sources, n_ctx=CONTEXT, max_tokens=case.kl_tokens) as measured:
        chunks: dict[int, Floats] = {}
        for (keep, used), plan in plans.items():
            found = measured.measure_plan(plan)
            slices = map(measured.chunk_slice, range(len(measured.chunks)))
            means = np.array([found.scores.kld[part].mean() for part in slices])
            change, error = paired(chunks.setdefault(keep, means), means)
            print(
                f"{keep} kept, {used or model.experts_used} used: "
                f"KL {found.total.kld_mean:.4f} ± {found.total.kld_se:.4f}; in pairs of chunks "
                f"{change:+.1%} ± {error:.1%} against as many used as the model does",
                flush=True,
            )
    every = {"greedy": Sampling(), "sampled": own_sampling(model.gguf)}
    modes, answers = {name: every[name] for name in case.modes}, {}
    for key, plan in {(model.experts, None): None, **plans}.items():
        overrides = model.overrides(plan.experts_used) if plan else {}
        masks = [MaskObserver(model, dropped_by(plan))] if plan else []
        with LlamaModel(path, options, overrides=overrides) as llama:
            answers[key] = answer_all(
                *(llama, case.probes, modes),
                max_tokens=case.answer_tokens,
                parallel=16,
                observers=masks,
            )
        for base in dict.fromkeys(((model.experts, None), (key[0], None))):
            for name in modes:
                checks = gate(answers[base][name], answers[key][name])
                line = answers_in_a_line({"base": {"probes": len(case.probes)}, "gate": checks})
                told = [
                    f"{keep} kept, {used or model.experts_used} used" for keep, used in (key, base)
                ]
                print(f"{told[0]} against {told[1]}, {name}: {line}", flush=True)


if __name__ == "__main__":
    main()
