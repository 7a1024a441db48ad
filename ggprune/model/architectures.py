"""What ggprune knows of each mixture-of-experts architecture of llama.cpp, as one table.

Everything here was read in the source of llama.cpp and is checked against the library by
``tests/model/test_architectures.py``, with a generated model of every architecture: which graph
nodes appear, which tensors are per expert, and that masking the nodes named here gives the same
logits as removing the experts.

Nearly all of it happens in one function, ``build_moe_ffn`` (``src/llama-graph.cpp``); the files
named in comments are in ``src/models``. Metadata is passed as a mapping from key to value, where
keys of the architecture come without their ``{architecture}.`` prefix (``expert_count``).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType
from typing import Final

from ggprune.errors import UnsupportedModelError

Metadata = Mapping[str, object]


class Gating(enum.Enum):
    """How router logits become gate weights."""

    SOFTMAX = "softmax"
    SOFTMAX_CHOSEN = "softmax over the chosen"
    SIGMOID = "sigmoid"
    SQRT_SOFTPLUS = "sqrt(softplus)"
    BY_KEY = "by expert_gating_func"


class Space(enum.Enum):
    """Where the norm of an expert's weighted output is taken."""

    RESIDUAL = "residual stream"
    NORMED = "normalised before the residual stream"
    LATENT = "latent space"
    STREAMS = "several residual streams"


class Kind(enum.Enum):
    """What the model computes, so which measures of it have a meaning."""

    CAUSAL = "causal language model"
    DIFFUSION = "diffusion language model"
    EMBEDDING = "embedding model"

    @property
    def program(self) -> str:
        """The program of llama.cpp that runs such a model."""
        return {Kind.DIFFUSION: "llama-diffusion-cli", Kind.EMBEDDING: "llama-embedding"}.get(
            self, "llama-cli"
        )


# Values of {architecture}.expert_gating_func (src/llama-hparams.h).
GATING_VALUES: Final[Mapping[int, Gating]] = MappingProxyType(
    {
        1: Gating.SOFTMAX,
        2: Gating.SIGMOID,
        3: Gating.SOFTMAX_CHOSEN,
        4: Gating.SQRT_SOFTPLUS,
    }
)

# Router logits are masked so that a softmax is taken over the kept experts only. Selection scores
# are masked as well because a selection bias, or a sigmoid that is 0 for a masked expert and
# nearly 0 for a kept one, could bring a masked expert back. Both are [n_expert, tokens].
# With a softmax over the chosen, llama.cpp gives both names to one node, and the last one stays.
LOGITS_NODE: Final = "ffn_moe_logits"
MASK_NODES: Final = (LOGITS_NODE, "ffn_moe_probs")
# A softmax gives exactly 0 for it, and no bias or scale brings it back. Finite, because
# llama.cpp's own arithmetic (a group's score is a sum) would make NaN of infinities.
MASKED: Final = -1e30
WEIGHTED_NODES: Final = ("ffn_moe_weighted",)
CHOSEN_NODE: Final = "ffn_moe_topk"

GATING_KEY: Final = "expert_gating_func"
# Tokens in the vocabulary: the key, or the length of tokenizer.ggml.tokens.
VOCABULARY_KEY: Final = "vocab_size"
BLOCK_COUNT_KEY: Final = "block_count"
NEXTN_KEY: Final = "nextn_predict_layers"
EXPERT_COUNT_KEY: Final = "expert_count"
# A number, or an array of one number a layer, where layers without experts may hold 0.
EXPERT_USED_KEY: Final = "expert_used_count"
FEED_FORWARD_KEY: Final = "feed_forward_length"
# Where it is missing, llama.cpp takes feed_forward_length / experts used in many architectures.
EXPERT_WIDTH_KEY: Final = "expert_feed_forward_length"
SHARED_WIDTH_KEY: Final = "expert_shared_feed_forward_length"
EXPERT_GROUP_KEY: Final = "expert_group_count"
EXPERT_GROUP_USED_KEY: Final = "expert_group_used_count"

# Keys that hold one element a layer where they hold an array. llama.cpp refuses some of them when
# the length is not block_count (get_key_or_arr, src/llama-model-loader.cpp), so they shrink with
# it. An array of another length (indexer types leave out MTP layers) stays as it is.
PER_LAYER_KEYS: Final = (
    "attention.compress_ratios",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.indexer.types",
    "attention.recurrent_layers",
    "attention.rope_pattern",
    "attention.sliding_window_pattern",
    "deepstack_mapping",
    "expert_feed_forward_length",
    "expert_used_count",
    "feed_forward_length",
    "swiglu_clamp_exp",
    "swiglu_clamp_shexp",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A reason not to prune a model, and how to recognise such a model.

    Attributes:
        reason: a sentence for the user.
        condition: which models of the architecture it is about; empty: all.
        applies: told the metadata of a file, says whether the reason holds.
    """

    reason: str
    condition: str = ""
    applies: Callable[[Metadata], bool]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One value of ``general.architecture`` that llama.cpp can run with experts.

    A file of such an architecture may still be dense (``llama``, ``granite``): it has experts only
    if ``expert_count`` says so.

    Attributes:
        name: value of ``general.architecture``.
        gating: how logits become gates; ``BY_KEY``: see :func:`gating_of`.
        normalised: whether gates are divided by their sum over the chosen experts; None: the key
            ``expert_weights_norm`` decides, see :func:`is_normalised`.
        default_gating: for ``BY_KEY``, what llama.cpp takes when the key is missing; None: it
            aborts the process.
        sigmoid_models: models that llama.cpp knows to be sigmoid without the key.
        kind: what the model computes.
        contribution_nodes: nodes of which the first one present holds what each chosen expert
            adds, as rows [n_embd, n_used, tokens].
        mask_nodes: nodes in which a large negative number takes an expert out of the choice; the
            file's tensors decide which of them exist.
        space: where those rows live.
        latent_key: where ``space`` is LATENT: it is only if this key is above 0.
        residual_node: the node that holds the residual stream before the FFN; None: it has no name.
        mtp_experts: whether MTP layers (``nextn_predict_layers``) have experts (they may; the
            file's tensors decide); None: llama.cpp runs no MTP layers in this architecture.
        router_bias: whether a bias is added to the router's logits (``ffn_gate_inp.bias``).
        forbidden_counts: numbers of experts that would make llama.cpp compute another function.
        refusals: models of this architecture that must not be pruned.
        thoughts: pattern of the thoughts in an answer, where it is not ``<think>…</think>``.
    """

    name: str
    gating: Gating
    normalised: bool | None
    default_gating: Gating | None = None
    _: KW_ONLY
    kind: Kind = Kind.CAUSAL
    contribution_nodes: tuple[str, ...] = WEIGHTED_NODES
    mask_nodes: tuple[str, ...] = MASK_NODES
    space: Space = Space.RESIDUAL
    latent_key: str = ""
    residual_node: str | None = "ffn_inp"
    sigmoid_models: Callable[[Metadata], bool] | None = None
    mtp_experts: bool | None = None
    router_bias: bool = False
    forbidden_counts: tuple[int, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    thoughts: str = r"<think>.*?</think>"

    def refusal(self, metadata: Metadata) -> Refusal | None:
        """Return the first reason not to prune a model with this metadata, if there is one."""
        return next((refusal for refusal in self.refusals if refusal.applies(metadata)), None)


def number(metadata: Metadata, key: str) -> int:
    """Return a whole number of the metadata; 0 where there is none."""
    value = metadata.get(key, 0)
    return value if isinstance(value, int) else 0


def gating_of(architecture: Architecture, metadata: Metadata) -> Gating:
    """Say how a file's router logits become gates.

    Raises:
        UnsupportedModelError: the file names no gating that llama.cpp knows, at which llama.cpp
            would abort the process.
    """
    if architecture.gating is not Gating.BY_KEY:
        return architecture.gating
    value = number(metadata, GATING_KEY)
    if not value and architecture.sigmoid_models and architecture.sigmoid_models(metadata):
        return Gating.SIGMOID
    gating = GATING_VALUES.get(value) if value else architecture.default_gating
    if gating is None:
        found = f"{value}" if value else "missing"
        raise UnsupportedModelError(
            f"{architecture.name}.expert_gating_func is {found}; llama.cpp knows "
            + ", ".join(f"{number} ({name.value})" for number, name in GATING_VALUES.items()),
            remedy="Convert the model again with a current convert_hf_to_gguf.py.",
        )
    return gating


def is_normalised(architecture: Architecture, metadata: Metadata) -> bool:
    """Say whether gates sum to one (before any scale) over the chosen experts."""
    if architecture.normalised is not None:
        return architecture.normalised
    return bool(metadata.get("expert_weights_norm", False)) or (
        gating_of(architecture, metadata) is Gating.SOFTMAX_CHOSEN
    )


def statistics_note(architecture: Architecture, metadata: Metadata) -> str:
    """Say what is unusual in the measured norms of a file, or nothing."""
    if architecture.latent_key and not number(metadata, architecture.latent_key):
        return ""
    return _NOTES.get(architecture.space, "")


_MTP_TENSOR = re.compile(r"blk\.(\d{1,9})\.nextn\.eh_proj\.weight")


def mtp_layers(metadata: Metadata, tensor_names: Iterable[str]) -> tuple[int, ...]:
    """List the layers of a file that predict further tokens (MTP).

    They are the last ``nextn_predict_layers`` of ``block_count`` layers. Some files keep the key
    and leave out the tensors: then there is nothing to prune, and for ``deepseek4`` (which counts
    differently without them) those layers are ordinary ones.
    """
    count = number(metadata, BLOCK_COUNT_KEY)
    nextn = number(metadata, NEXTN_KEY)
    # From the tensors, not from the count: a damaged file may claim billions of layers.
    found = (_MTP_TENSOR.fullmatch(name) for name in tensor_names)
    layers = {int(match[1]) for match in found if match}
    return tuple(sorted(layer for layer in layers if count - nextn <= layer < count))


def keys_without_mtp(metadata: Metadata, layers: Sequence[int]) -> dict[str, object]:
    """Give new values for the keys that change when MTP layers are dropped.

    The tensors to drop are all those of these layers. llama.cpp treats ``nextn_predict_layers`` = 0
    like a missing key.

    Args:
        layers: all of :func:`mtp_layers`; none: nothing changes.
    """
    if not layers:
        return {}
    count, kept = number(metadata, BLOCK_COUNT_KEY), min(layers)
    changed: dict[str, object] = {BLOCK_COUNT_KEY: kept, NEXTN_KEY: 0}
    for key in PER_LAYER_KEYS:
        value = metadata.get(key)
        if isinstance(value, (list, tuple)) and len(value) == count:
            changed[key] = value[:kept]
    return changed


_NOTES = {
    Space.STREAMS: (
        "The sum over experts is spread over several residual streams with weights learned per "
        "token (hyper-connections), so norms compare experts of one token and layer, not layers."
    ),
    Space.NORMED: (
        "The sum over experts is RMS-normalised before it reaches the residual stream, so norms "
        "compare experts of one layer, not layers."
    ),
    Space.LATENT: (
        "Experts work in a latent space that one matrix per layer maps back, so norms are norms "
        "in that space and compare experts of one layer, not layers."
    ),
}


def _always(_metadata: Metadata) -> bool:
    return True


def _glm_flash(metadata: Metadata) -> bool:
    """GLM-4.7-Flash, whose files of before 2026-01-21 have no key (src/models/deepseek2.cpp)."""
    layers = number(metadata, BLOCK_COUNT_KEY) - number(metadata, NEXTN_KEY)
    return layers in (47, 48) and number(metadata, VOCABULARY_KEY) == 154880


_GROVE = Refusal(
    reason=(
        "llama.cpp weighs the adjugate expert of group N of grovemoe by the probability of expert "
        "number N, so which groups could go depends on their numbers, not on what they do"
    ),
    applies=_always,
)
_DRAFT = Refusal(
    reason=(
        "dflash is a draft model that runs only beside its target, so it cannot be measured alone"
    ),
    applies=_always,
)
_MAVERICK = Refusal(
    reason=(
        "llama.cpp turns the QK norm of llama4 off for exactly 128 experts (Maverick), and no key "
        "does it for another number, so it would compute another function"
    ),
    condition="with 128 experts",
    applies=lambda metadata: number(metadata, EXPERT_COUNT_KEY) == 128,
)

_S, _K = Gating.SOFTMAX, Gating.BY_KEY
_SIGMOID = Gating.SIGMOID

_TABLE = (
    Architecture("afmoe", _K, None, _SIGMOID, space=Space.NORMED),
    # arctic: the experts read the layer's input, beside attention and a dense FFN.
    Architecture("arctic", _S, True),
    Architecture("bailingmoe", _S, None),
    Architecture("bailingmoe2", _K, None, mtp_experts=True, residual_node="sa_out"),
    Architecture("bailingmoe3", _K, None, mtp_experts=True, residual_node=None),
    Architecture("cohere2moe", _K, None, _SIGMOID, mtp_experts=True, residual_node=None),
    Architecture("dbrx", _S, True),
    Architecture("deepseek", _S, False),
    Architecture("deepseek2", _K, None, _S, mtp_experts=True, sigmoid_models=_glm_flash),
    Architecture("deepseek2-ocr", _K, None, _S),
    Architecture("deepseek32", _K, None, mtp_experts=True),
    # deepseek4: the loader accepts no other gating.
    Architecture(
        "deepseek4",
        Gating.SQRT_SOFTPLUS,
        None,
        space=Space.STREAMS,
        mtp_experts=True,
        residual_node=None,
    ),
    Architecture("dflash", Gating.SQRT_SOFTPLUS, None, refusals=(_DRAFT,)),
    Architecture("dots1", _K, None),
    # dots3note, exaone-moe: the MTP layer has a dense FFN.
    Architecture("dots3note", _K, None, mtp_experts=False),
    Architecture("ernie4_5-moe", _S, True),
    Architecture("exaone-moe", _K, None, mtp_experts=False),
    # gemma4: router and experts read different norms of one input.
    Architecture(
        "gemma4",
        _S,
        True,
        space=Space.NORMED,
        residual_node="attn_out",
        thoughts=r"<\|channel>thought.*?<channel\|>",
    ),
    Architecture("glm-dsa", _K, None, _SIGMOID, mtp_experts=True),
    Architecture("glm4moe", _K, None, _SIGMOID, mtp_experts=True),
    Architecture(
        "glm5-next", _K, None, _SIGMOID, space=Space.STREAMS, mtp_experts=True, residual_node=None
    ),
    # gpt-oss (openai-moe.cpp): router bias and biases of experts.
    Architecture(
        "gpt-oss",
        Gating.SOFTMAX_CHOSEN,
        True,
        router_bias=True,
        thoughts=r"<\|channel\|>analysis.*?<\|channel\|>final<\|message\|>",
    ),
    Architecture("granite", _S, True),
    Architecture("granite_swa", _S, True),
    Architecture("granitehybrid", _S, True),
    Architecture("granitemoe", _S, True),
    Architecture("grok", _S, True, space=Space.NORMED),
    # grovemoe calls build_moe_ffn twice a layer, so every name appears twice.
    Architecture("grovemoe", _S, True, refusals=(_GROVE,)),
    Architecture("hunyuan-moe", _S, True),
    Architecture("hy_v3", _K, None, _SIGMOID, mtp_experts=True),
    Architecture("hy_v4", _K, None, space=Space.STREAMS, residual_node=None),
    Architecture("jamba", _S, False),
    Architecture(
        "kimi-k3",
        _K,
        None,
        space=Space.LATENT,
        latent_key="expert_latent_length",
        residual_node=None,
    ),
    Architecture("kimi-linear", _K, True),
    Architecture("laguna", _K, None, _SIGMOID),
    Architecture("lfm2moe", _K, True, residual_node=None),
    Architecture("llada-moe", _S, False, kind=Kind.DIFFUSION),
    Architecture("llama", _S, True),
    Architecture("llama-embed", _S, True, kind=Kind.EMBEDDING),
    # llama4 chooses by logits and takes the sigmoid of the chosen ones.
    Architecture(
        "llama4",
        _SIGMOID,
        False,
        contribution_nodes=("ffn_moe_down",),
        forbidden_counts=(128,),
        refusals=(_MAVERICK,),
    ),
    Architecture("maple", _S, True),
    Architecture("mellum", _S, True),
    # mimo2: llama.cpp runs only dense MTP layers, though it would load experts.
    Architecture("mimo2", _SIGMOID, True, mtp_experts=False),
    Architecture("minicpm", _S, True),
    Architecture("minimax-01", _S, True),
    Architecture("minimax-m2", _K, True),
    Architecture("minimax-m3", _K, None),
    Architecture("mistral3", _S, True),
    # mistral4 is deepseek2 under another name.
    Architecture("mistral4", _K, None, _S, mtp_experts=True, sigmoid_models=_glm_flash),
    # nemotron_h, nemotron_h_moe: experts have no gate matrix; expert_used_count may be an array.
    Architecture(
        "nemotron_h",
        _SIGMOID,
        None,
        space=Space.LATENT,
        latent_key="moe_latent_size",
        mtp_experts=True,
        residual_node=None,
    ),
    Architecture(
        "nemotron_h_moe",
        _SIGMOID,
        None,
        space=Space.LATENT,
        latent_key="moe_latent_size",
        mtp_experts=True,
        residual_node=None,
    ),
    # nomic-bert-moe (bert.cpp): experts have no gate matrix.
    Architecture("nomic-bert-moe", _S, False, kind=Kind.EMBEDDING),
    Architecture("olmoe", _S, False),
    Architecture("phimoe", _S, True, residual_node=None),
    Architecture("qwen2moe", _S, False),
    Architecture("qwen35moe", _S, True, mtp_experts=True, residual_node="attn_residual"),
    Architecture("qwen3moe", _S, True),
    Architecture("qwen3next", _S, True, mtp_experts=True, residual_node="attn_residual"),
    Architecture("qwen3vlmoe", _S, True),
    Architecture("qwen4exp", _S, True, space=Space.STREAMS, residual_node=None),
    Architecture("rnd1", _S, True, kind=Kind.DIFFUSION),
    # smallthinker: the router reads the layer's input, before attention.
    Architecture("smallthinker", _K, True),
    # step35: an MTP layer is dense or has experts, as the file has it.
    Architecture("step35", _K, None, _SIGMOID, mtp_experts=True),
)

ARCHITECTURES: Final[Mapping[str, Architecture]] = MappingProxyType(
    {architecture.name: architecture for architecture in _TABLE}
)
