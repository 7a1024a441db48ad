"""What a card says of quality: measurements with their errors, and what was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ggprune.evaluation.verdict import verdict
from ggprune.publish.card_facts import Card, ModelFile
from ggprune.publish.markdown import clean, table


def evaluation(card: Card) -> str:
    """Measurements with their errors, or that there are none."""
    measured = [file for file in card.files if file.evaluation]
    single = (card.metadata or {}).get("evaluation")
    if not measured and isinstance(single, Mapping):
        name = ((card.metadata or {}).get("result") or {}).get("name") or card.files[0].name
        measured = [ModelFile(str(name), "", 0, evaluation=single)]
    if not measured:
        return (
            "## Evaluation\n\n**Not measured.** No perplexity, divergence or task score of this "
            "model is known. `ggprune evaluate ORIGINAL THIS` measures it.\n"
        )
    rows = [_measured_row(file.name, file.evaluation or {}) for file in measured]
    header = ["File", "Perplexity, original", "this", "Ratio", "KL mean", "KL 99 %", "Same top"]
    missing = [
        file.name for file in card.files if file not in measured and card.files[0].quantization
    ]
    text = (
        "## Evaluation\n\n"
        "Both sides ran in the same program (ggprune with llama.cpp) on the same tokens with the "
        "same settings; ± is one standard error, that of the ratio from paired differences. KL: "
        "divergence of this model from the original in nats a token. Same top: tokens for which "
        "both find the same next token most probable. Where a file is quantized more than the "
        "original was, the numbers include what that costs.\n\n"
        f"{table(header, rows)}"
    )
    if missing and measured[0] in card.files:
        text += f"\nNot measured: {', '.join(f'`{name}`' for name in missing)}.\n"
    return text + _by_domain(measured) + _bad(card, measured)


def limits(card: Card) -> str:
    """What the reader should not assume."""
    measured = any(file.evaluation for file in card.files) or bool(
        (card.metadata or {}).get("evaluation")
    )
    domains = list(((card.metadata or {}).get("calibration") or {}).get("domains") or {})
    chosen = f"on text of these kinds: {', '.join(map(clean, domains))}" if domains else ""
    lines = [
        "## Limits\n",
        f"- The experts were chosen {chosen or 'on text that is not recorded here'}. Topics and "
        "languages that are not in it may have lost more than the numbers show.",
        "- Perplexity and divergence do not show everything: a pruned model can loop or fail at "
        "a task and still have a good perplexity."
        if measured
        else "",
        "- Not measured: task benchmarks (GPQA, GSM8K, …), generated text side by side, speed, and "
        "languages other than those of the text above. Nothing is claimed about them.",
        "- The dropped experts are gone; only the original has them.",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _measured_row(name: str, found: Mapping[str, Any]) -> list[str]:
    base, mine = found["base"], found["candidate"]
    return [
        f"`{clean(name)}`",
        _pm(base.get("ppl"), base.get("ppl_se")),
        _pm(mine.get("ppl"), mine.get("ppl_se")),
        _pm(found.get("ppl_ratio"), found.get("ppl_ratio_se"), 4),
        _pm(found.get("kld_mean"), found.get("kld_se"), 4),
        _number(found.get("kld_p99"), 4),
        f"{found['top1_agreement']:.2%}" if "top1_agreement" in found else "not measured",
    ]


def _by_domain(measured: Sequence[ModelFile]) -> str:
    """Each kind of text, of the first file (the rest is in its JSON)."""
    file = measured[0]
    domains = (file.evaluation or {}).get("domains") or {}
    tokens = int((file.evaluation or {}).get("tokens", 0))
    if len(domains) < 2:
        return f"\nScored tokens: {tokens:,}.\n"
    rows = [
        [
            clean(name),
            f"{part.get('tokens', 0):,}",
            _pm(part.get("ppl_ratio"), part.get("ppl_ratio_se"), 4),
            _pm(part.get("kld_mean"), part.get("kld_se"), 4),
        ]
        for name, part in domains.items()
    ]
    header = ["Text", "Scored tokens", "Perplexity ratio", "KL mean"]
    return f"\nBy kind of text, `{clean(file.name)}` ({tokens:,} tokens):\n\n{table(header, rows)}"


def _bad(card: Card, measured: Sequence[ModelFile]) -> str:
    """What ggprune itself calls bad: it belongs into the card."""
    layers = (card.metadata or {}).get("layers") or {}
    shares = {int(n): part.get("retained") for n, part in layers.items()}
    seen: dict[str, None] = {}
    for file in measured:
        for finding in verdict(evaluation=file.evaluation, keep=card.experts, retained=shares):
            of = "" if finding.gate == "layers" else f"`{clean(file.name)}`: "
            seen.setdefault(f"- {of}{clean(finding.text)}")
    return "\nWhat ggprune calls bad here:\n\n" + "\n".join(seen) + "\n" if seen else ""


def _pm(value: Any, error: Any, digits: int = 3) -> str:
    if not isinstance(value, int | float):
        return "not measured"
    more = f" ± {error:.{digits}f}" if isinstance(error, int | float) else ""
    return f"{value:.{digits}f}{more}"


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "not measured"
