"""Do answers say the same as divergence? Plans of the model that speaks, by both.

    make chatty
    python benchmarks/answers.py out/chatty-Q8_0.gguf

Prints the table of docs/evaluation.md: 96 short prompts, sampled, 64 tokens at most, each candidate
against the whole model, and those with another number of experts used against the plan without it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import ggprune
from ggprune.evaluation.evaluator import Evaluator
from ggprune.evaluation.masking import MaskObserver, dropped_by
from ggprune.evaluation.probe import SHORT, answer_all, builtin_probes, own_sampling
from ggprune.evaluation.probe_gate import gate
from ggprune.evaluation.verdict import answers_in_a_line
from ggprune.llama.session import LlamaModel
from ggprune.model import open_model
from ggprune.plan import Plan
from ggprune.text.load import load_texts

ROOT = Path(__file__).parents[1]
BUILTIN = ROOT / "ggprune/text/builtin"
#: Experts kept, the domain they are chosen on, and the numbers used (None: the model's own).
PLANS = ((22, "chat", (None,)), (12, "chat", (None, 12, 6)), (12, "english", (None,)))
CONTEXT, KL_TOKENS, ANSWER_TOKENS = 512, 512, 64


def texts(english: str, chat: str) -> dict[str, Path]:
    return {"english": ROOT / f"fixtures/{english}/english.txt", "chat": BUILTIN / chat}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    model, options = open_model(args.model), ggprune.RunOptions(threads=args.threads)
    statistics = ggprune.calibrate(
        args.model,
        text=texts("calibration", "search.jsonl"),
        settings=ggprune.Settings(ctx=CONTEXT, max_tokens=2048),
        options=options,
    )
    plans: dict[tuple[int, str, int | None], Plan | None] = {(model.experts, "", None): None}
    for keep, domain, numbers in PLANS:
        blend = ",".join(f"{name}={int(name == domain)}" for name in ("chat", "english"))
        plan = ggprune.choose(statistics, keep=keep, method="contribution", blend=blend)
        plans |= {(keep, domain, used): replace(plan, experts_used=used) for used in numbers}
    held_out = texts("heldout", "heldout.jsonl").items()
    sources = load_texts((name, str(path)) for name, path in held_out)
    with Evaluator(args.model, options, sources, n_ctx=CONTEXT, max_tokens=KL_TOKENS) as measured:
        for key, plan in plans.items():
            if plan is not None:
                found = measured.measure_plan(plan)
                kl = {name: f"{part.kld_mean:.3f}" for name, part in found.domains.items()}
                print(*key, "KL", kl, f"{found.total.kld_mean:.4f} ± {found.total.kld_se:.4f}")
    probes = [probe for probe in builtin_probes() if probe.kind == SHORT]
    modes, answers = {"sampled": own_sampling(model.gguf)}, {}
    for key, plan in plans.items():
        overrides = model.overrides(plan.experts_used) if plan else {}
        masks = [MaskObserver(model, dropped_by(plan))] if plan else []
        with LlamaModel(args.model, options, overrides=overrides) as llama:
            answers[key] = answer_all(
                llama, probes, modes, max_tokens=ANSWER_TOKENS, parallel=16, observers=masks
            )["sampled"]
        for base in ((model.experts, "", None), (*key[:2], None)):
            mode = {"base": {"probes": len(probes)}, "gate": gate(answers[base], answers[key])}
            print(*key, "against", *base, answers_in_a_line(mode), flush=True)


if __name__ == "__main__":
    main()
