"""Saying "bad" when a pruned model is bad: one gate a kind of damage, each with what to try."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

#: Above this perplexity ratio users notice without looking for it.
MAX_PPL_RATIO = 1.2
#: Nats a token. Where no sweep has found the cliff, this much is past any: the base's own choice
#: has lost more than a third of its probability on average.
MAX_KLD = 0.5
#: Below this share of Σ g‖f‖ a layer has lost experts that it uses.
MIN_RETAINED = 0.95
#: A domain may lose this many nats a token more than the rest (a perplexity ratio of 1.25 to it).
MAX_DOMAIN_LOSS = math.log(1.25)
#: Standard errors that a difference between domains must exceed.
_SIGNIFICANT = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """Something bad.

    Attributes:
        gate: which one tripped: "perplexity", "cliff", "domain", "loops" or "layers".
        text: what, with its number.
        remedy: what to try.
    """

    gate: str
    text: str
    remedy: str

    def as_json(self) -> dict[str, str]:
        """As a dictionary."""
        return asdict(self)


def verdict(
    *,
    evaluation: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Any] | None = None,
    keep: int | None = None,
    retained: Mapping[int, float | None] | None = None,
    probe: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Everything bad that the numbers show; empty if nothing is. All parts may be missing.

    Args:
        evaluation: as ``ggprune evaluate --json`` prints it.
        sweep: as ``ggprune sweep --json`` prints it; tells where the cliff is.
        keep: experts the candidate keeps.
        retained: share of Σ g‖f‖ by layer.
        probe: as ``ggprune probe --json`` prints it.
    """
    return [
        *_perplexity(evaluation or {}),
        *_cliff(evaluation or {}, sweep or {}, keep),
        *_domains(evaluation or {}),
        *_loops(probe or {}),
        *_layers(retained or {}),
    ]


def _perplexity(evaluation: Mapping[str, Any]) -> Iterator[Finding]:
    ratio = evaluation.get("ppl_ratio")
    if ratio is not None and ratio > MAX_PPL_RATIO:
        yield Finding(
            "perplexity",
            f"Perplexity is {ratio:.2f} times the base model's (more than {MAX_PPL_RATIO}).",
            "Keep more experts; `ggprune sweep` shows how many it takes.",
        )


def _cliff(
    evaluation: Mapping[str, Any], sweep: Mapping[str, Any], keep: int | None
) -> Iterator[Finding]:
    cliff = cliff_of(sweep)
    if cliff and keep and keep < cliff:
        yield Finding(
            "cliff",
            f"{keep} experts are past the cliff at {cliff}: divergence rises steeply below it.",
            f"Keep {cliff} experts or more.",
        )
    elif (evaluation.get("kld_mean") or 0) > MAX_KLD:
        yield Finding(
            "cliff",
            f"Mean KL divergence is {evaluation['kld_mean']:.2f} nats a token, past any cliff.",
            "Keep more experts; `ggprune sweep` shows where the curve breaks.",
        )


def cliff_of(sweep: Mapping[str, Any], method: str | None = None) -> int | None:
    """The smallest count before the curve breaks: of a method, or the lowest; None if unknown."""
    cliff = sweep.get("cliff")
    if isinstance(cliff, Mapping):
        known = [value for name, value in cliff.items() if value and method in (None, name)]
        cliff = min(known, default=None)
    return cliff if isinstance(cliff, int) else None


def _domains(evaluation: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare each domain's loss, ln(ppl ratio), with the loss over all other text."""
    domains = evaluation.get("domains") or {}
    tokens = evaluation.get("tokens") or 0
    for name, part in domains.items():
        others = tokens - part["tokens"]
        if len(domains) < 2 or others <= 0:
            continue
        own, total = math.log(part["ppl_ratio"]), math.log(evaluation["ppl_ratio"])
        rest = (total * tokens - own * part["tokens"]) / others
        error = part["ppl_ratio_se"] / part["ppl_ratio"]
        if own - rest > max(MAX_DOMAIN_LOSS, _SIGNIFICANT * error):
            yield Finding(
                "domain",
                f"{name} suffers far more than the rest: perplexity ratio "
                f"{part['ppl_ratio']:.2f} against {math.exp(rest):.2f}.",
                f"Calibrate with more text of this kind (--text {name}=PATH), "
                f"or protect it: --protect-domain {name}.",
            )


def _loops(probe: Mapping[str, Any]) -> Iterator[Finding]:
    for name, mode in (probe.get("modes") or {}).items():
        ids = mode.get("loops_in_candidate_only") or []
        if len(ids) > len(mode.get("loops_in_base_only") or []):
            shown = ", ".join(ids[:4]) + (", …" if len(ids) > 4 else "")
            yield Finding(
                "loops",
                f"The candidate loops where the base model does not ({name}): {shown}.",
                "Keep more experts, or calibrate with text like the prompts that loop.",
            )


def _layers(retained: Mapping[int, float | None]) -> Iterator[Finding]:
    low = [
        (share, layer)
        for layer, share in retained.items()
        if share is not None and share < MIN_RETAINED
    ]
    if low:
        share, layer = min(low)
        more = len(low) - 1
        others = f" and {more} more layer{'s' * (more > 1)} keep" if more else " keeps"
        yield Finding(
            "layers",
            f"Layer {layer}{others} less than {MIN_RETAINED:.0%} of Σ g‖f‖ (worst {share:.1%}).",
            "Keep more experts.",
        )
