"""Which parts and keys the layers of each architecture have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

Value = bool | int | float | str | list[int] | list[float]
PerLayer = Callable[[int, int], int]

# Parts that often go together.
ATTN = "attn_norm qkv out"
MLA = "attn_norm mla_q_lora mla_kv"
MOE = "router gate up_down"
FUSED = "router fused"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """How to make a model of an architecture.

    Attributes:
        layers: the parts of each layer, repeated as often as needed.
        lead: the parts of the first layer, where that is a dense one.
        mtp: the parts of a last layer that predicts a further token.
        top: the tensors outside layers.
        keys: metadata; a function of a layer's number and of the depth without MTP layers gives
            an array with one number a layer.
        dimensions: what differs from ``DIMENSIONS``.
        groups: groups of experts, and how many of them a token uses.
        file: the file in llama.cpp's src/models; empty: as the architecture, with dashes.
    """

    layers: tuple[str, ...]
    lead: str | None = None
    mtp: str | None = None
    top: str = "top"
    keys: Mapping[str, Value | PerLayer] = field(default_factory=dict)
    dimensions: Mapping[str, int] = field(default_factory=dict)
    groups: tuple[int, int] = (0, 0)
    file: str = ""


def _every(period: int, *, first: int = 1, second: int = 0) -> PerLayer:
    """Give ``second`` in every ``period``-th layer, ``first`` in the others."""
    return lambda layer, _: second if (layer + 1) % period == 0 else first


def _odd(layer: int, depth: int) -> int:
    """Give 1 in odd layers and in MTP layers: those with attention where others are recurrent."""
    return int(layer % 2 == 1 or layer >= depth)


_MLA_KEYS: dict[str, Value | PerLayer] = {
    "attention.q_lora_rank": 32,
    "attention.kv_lora_rank": 32,
    "attention.key_length": 40,
    "attention.value_length": 32,
    "attention.key_length_mla": 24,
    "attention.value_length_mla": 16,
    "rope.dimension_count": 8,
}
_INDEXER_KEYS: dict[str, Value | PerLayer] = {
    "attention.indexer.head_count": 2,
    "attention.indexer.key_length": 64,
    "attention.indexer.top_k": 1024,
}
_SHARED_KEYS: dict[str, Value | PerLayer] = {
    "expert_shared_count": 1,
    "expert_shared_feed_forward_length": 64,
}
_SIGMOID: dict[str, Value | PerLayer] = {
    "expert_gating_func": 2,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.5,
}
_DELTA_KEYS: dict[str, Value | PerLayer] = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 64,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 2,
    "full_attention_interval": 2,
}
_MAMBA2_KEYS: dict[str, Value | PerLayer] = {**_DELTA_KEYS, "ssm.group_count": 1}
_KDA_KEYS: dict[str, Value | PerLayer] = {
    "ssm.conv_kernel": 4,
    "kda.head_dim": 16,
    "kda.gate_lower_bound": -5.0,
    "attention.head_count_kv": _odd,
}
_SWA_KEYS: dict[str, Value | PerLayer] = {
    "attention.sliding_window": 32,
    "attention.sliding_window_pattern": _every(2),
    "rope.freq_base_swa": 10000.0,
}
_SECTIONS: dict[str, Value | PerLayer] = {"rope.dimension_sections": [4, 2, 2, 0]}
_HC_KEYS: dict[str, Value | PerLayer] = {
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 2,
    "hyper_connection.epsilon": 1e-6,
}

_LLAMA = Spec(layers=(f"{ATTN} ffn_norm {MOE}",))
_GRANITE = Spec(
    layers=(f"{ATTN} ffn_norm {MOE} shared",),
    keys={"logit_scale": 2.0, "residual_scale": 0.5, **_SHARED_KEYS},
)
_QWEN3 = Spec(layers=(f"{ATTN} qk ffn_norm {MOE}",))
_DEEPSEEK = Spec(
    lead=f"{ATTN} ffn_norm dense",
    layers=(f"{ATTN} ffn_norm {MOE} shared",),
    keys={**_SHARED_KEYS, "expert_weights_scale": 1.0},
)
_DEEPSEEK2 = Spec(
    lead=f"{MLA} ffn_norm dense",
    layers=(f"{MLA} ffn_norm {MOE} selection shared",),
    mtp=f"{MLA} ffn_norm {MOE} selection shared nextn nextn_norm",
    keys={**_MLA_KEYS, **_SHARED_KEYS, **_SIGMOID},
)
_DEEPSEEK32 = Spec(
    lead=f"{MLA} indexer ffn_norm dense",
    layers=(f"{MLA} indexer ffn_norm {MOE} selection shared",),
    mtp=f"{MLA} indexer ffn_norm {MOE} selection shared nextn nextn_norm",
    keys={**_MLA_KEYS, **_INDEXER_KEYS, **_SHARED_KEYS, **_SIGMOID},
)
_NEMOTRON = Spec(
    layers=(
        "attn_norm mamba2",
        ATTN,
        "attn_norm router up_down selection shared_no_gate",
    ),
    mtp=f"{ATTN} attn_post router up_down selection shared_no_gate nextn nextn_norm",
    keys={
        **_MAMBA2_KEYS,
        **_SHARED_KEYS,
        **_SIGMOID,
        "attention.head_count_kv": lambda layer, depth: int(layer % 3 == 1 or layer >= depth),
        "feed_forward_length": lambda layer, depth: 64 * (layer % 3 == 2 or layer >= depth),
        # Multiplied by the number of experts used.
        "expert_used_count": lambda layer, depth: int(layer % 3 == 2 or layer >= depth),
    },
)

SPECS: dict[str, Spec] = {
    "afmoe": Spec(
        lead=f"{ATTN} attn_post qk gate_per_element ffn_norm ffn_post dense",
        layers=(f"{ATTN} attn_post qk gate_per_element ffn_norm ffn_post {MOE} selection shared",),
        keys={**_SHARED_KEYS, **_SIGMOID, "attention.sliding_window": 32},
    ),
    "arctic": Spec(layers=(f"{ATTN} ffn_norm arctic_norm dense_square {MOE}",)),
    "bailingmoe": Spec(
        layers=(f"{ATTN} ffn_norm {MOE} shared",),
        keys={**_SHARED_KEYS, "expert_weights_norm": True, "expert_weights_scale": 1.0},
    ),
    "bailingmoe2": Spec(
        lead="attn_norm qkv_fused out qk ffn_norm dense",
        layers=(f"attn_norm qkv_fused out qk ffn_norm {MOE} selection shared",),
        mtp=f"attn_norm qkv_fused out qk ffn_norm {MOE} selection shared nextn layer_out",
        keys={**_SHARED_KEYS, **_SIGMOID},
        groups=(4, 2),
    ),
    "bailingmoe3": Spec(
        lead="attn_norm kda kda_full ffn_norm dense",
        layers=(
            f"{MLA} gate_per_head ffn_norm {MOE} selection shared",
            f"attn_norm kda kda_full ffn_norm {MOE} selection shared",
        ),
        mtp=f"{MLA} gate_per_head ffn_norm {MOE} selection shared nextn layer_out",
        keys={
            **_MLA_KEYS, **_KDA_KEYS, **_SHARED_KEYS, **_SIGMOID,
        },
    ),
    "cohere2moe": Spec(
        lead=f"{ATTN} dense",
        layers=(f"{ATTN} {MOE} shared",),
        mtp=f"{ATTN} {MOE} shared nextn nextn_norm",
        keys={**_SHARED_KEYS, **_SIGMOID, "attention.sliding_window": 32, "logit_scale": 1.0},
    ),
    "dbrx": Spec(
        layers=(f"attn_norm qkv_fused out attn_out_norm {MOE}",),
        keys={"attention.clamp_kqv": 8.0},
    ),
    "deepseek": _DEEPSEEK,
    "deepseek2": _DEEPSEEK2,
    "deepseek2-ocr": Spec(
        lead=_DEEPSEEK.lead,
        layers=_DEEPSEEK.layers,
        keys=_DEEPSEEK.keys,
        dimensions={"kv_heads": 2},
        file="deepseek2",
    ),
    "deepseek32": _DEEPSEEK32,
    "deepseek4": Spec(
        layers=tuple(
            f"attn_norm dsv4 {compressed} mhc ffn_norm {MOE} {choice} selection_images shared"
            for compressed, choice in (
                ("", "hash_table"),
                ("dsv4_4", "selection"),
                ("dsv4_128", "selection"),
            )
        ),
        mtp=f"attn_norm dsv4 mhc ffn_norm {MOE} selection shared nextn nextn_norm",
        top="top mhc_out",
        keys={
            **_SHARED_KEYS, **_SIGMOID, **_INDEXER_KEYS, **_HC_KEYS,
            "attention.q_lora_rank": 32,
            "attention.sliding_window": 32,
            "attention.output_group_count": 2,
            "attention.output_lora_rank": 16,
            "attention.compress_ratios": lambda layer, _: (0, 4, 128)[layer % 3],
            "attention.compress_rope_freq_base": 160000.0,
            "rope.dimension_count": 8,
            "hash_layer_count": 1,
            "swiglu_clamp_exp": 10.0,
            "expert_gating_func": 4,
        },
    ),
    "dots1": Spec(
        lead=f"{ATTN} qk ffn_norm dense",
        layers=(f"{ATTN} qk ffn_norm {MOE} selection shared",),
        keys={**_SHARED_KEYS, **_SIGMOID},
        dimensions={"kv_heads": 2},
    ),
    "dots3note": Spec(
        lead=f"{MLA} mla_rope_norm gate_per_head indexer ffn_norm dense",
        layers=(
            f"{MLA} mla_rope_norm gate_per_head ffn_norm {MOE} selection shared",
            f"{MLA} mla_rope_norm gate_per_head indexer ffn_norm {MOE} selection shared",
        ),
        mtp=f"{MLA} mla_rope_norm gate_per_head ffn_norm dense nextn nextn_norm",
        keys={
            **_MLA_KEYS, **_INDEXER_KEYS, **_SHARED_KEYS, **_SIGMOID,
            "attention.kv_lora_rank_swa": 32,
            "attention.key_length_swa": 40,
            "attention.value_length_swa": 32,
            "attention.key_length_mla_swa": 24,
            "attention.value_length_mla_swa": 16,
            "attention.sliding_window": 32,
            "attention.sliding_window_pattern": lambda layer, _: layer % 2,
            "attention.indexer.types": lambda layer, _: 1 - layer % 2,
            "rope.freq_base_swa": 10000.0,
        },
    ),
    "ernie4_5-moe": Spec(
        lead=f"{ATTN} ffn_norm dense",
        layers=(f"{ATTN} ffn_norm {MOE} selection shared",),
        keys={**_SHARED_KEYS, "interleave_moe_layer_step": 1},
    ),
    "exaone-moe": Spec(
        lead=f"{ATTN} qk ffn_norm dense",
        layers=(f"{ATTN} qk ffn_norm {MOE} selection shared",),
        mtp=f"{ATTN} qk ffn_norm dense nextn nextn_norm",
        keys={**_SHARED_KEYS, **_SIGMOID, "attention.sliding_window": 32},
    ),
    "gemma4": Spec(
        layers=(
            f"{ATTN} attn_post qk ffn_norm ffn_post dense {FUSED} gemma4_moe down_scale",
        ),
        top="top rope_freqs",
        keys={
            **_SWA_KEYS,
            "attention.key_length_swa": 16,
            "attention.value_length_swa": 16,
            "embedding_length_per_layer_input": 0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "glm-dsa": Spec(
        lead=_DEEPSEEK32.lead,
        layers=_DEEPSEEK32.layers,
        mtp=_DEEPSEEK32.mtp,
        keys=_DEEPSEEK32.keys,
    ),
    "glm4moe": Spec(
        lead=f"{ATTN} attn_post dense",
        layers=(f"{ATTN} attn_post {MOE} selection shared",),
        mtp=f"{ATTN} attn_post {MOE} selection shared nextn nextn_norm",
        keys={**_SHARED_KEYS, **_SIGMOID},
        file="glm4-moe",
    ),
    "glm5-next": Spec(
        lead="attn_norm kda kda_f kda_g mhc ffn_norm dense",
        layers=(
            f"{MLA} indexer indexer_pool mhc ffn_norm {MOE} selection shared",
            f"attn_norm kda kda_f kda_g mhc ffn_norm {MOE} selection shared",
        ),
        mtp=f"{MLA} indexer indexer_pool ffn_norm {MOE} selection shared nextn nextn_norm",
        dimensions={"rope": 0},
        keys={
            **_MLA_KEYS, **_KDA_KEYS, **_INDEXER_KEYS, **_HC_KEYS, **_SHARED_KEYS, **_SIGMOID,
            "attention.key_length": 32,
            "attention.key_length_mla": 16,
            "rope.dimension_count": 0,
            "attention.indexer.kpool": 4,
            "attention.indexer.kpool_select_tail": True,
        },
    ),
    "gpt-oss": Spec(
        layers=(f"{ATTN} qkv_bias out_bias attn_post sinks {MOE} expert_biases",),
        keys={"attention.sliding_window": 32},
        file="openai-moe",
    ),
    "granite": _GRANITE,
    "granite_swa": Spec(
        layers=(f"{ATTN} sinks ffn_norm {FUSED} shared_fused",),
        keys={**_GRANITE.keys, **_SWA_KEYS},
    ),
    "granitehybrid": Spec(
        layers=(
            f"attn_norm mamba2 ffn_norm {MOE} shared",
            f"{ATTN} ffn_norm {MOE} shared",
        ),
        keys={
            **_GRANITE.keys, **_MAMBA2_KEYS,
            "attention.head_count_kv": _odd,
        },
        file="granite-hybrid",
    ),
    "granitemoe": replace(_GRANITE, file="granite"),
    "grok": Spec(
        layers=(f"{ATTN} attn_out_norm ffn_norm ffn_post dense {MOE}",),
        keys={"embedding_scale": 1.0, "attention.output_scale": 0.25},
    ),
    "grovemoe": Spec(
        layers=(f"{ATTN} qk ffn_norm {MOE} chunks",),
        keys={
            "expert_chunk_feed_forward_length": 16,
            "expert_group_scale": 0.05,
            "experts_per_group": 2,
        },
    ),
    "hunyuan-moe": Spec(layers=(f"{ATTN} qk ffn_norm {MOE} shared",), keys=_SHARED_KEYS),
    "hy_v3": Spec(
        lead=f"{ATTN} qk ffn_norm dense",
        layers=(f"{ATTN} qk ffn_norm {MOE} selection_bare shared",),
        mtp=f"{ATTN} qk ffn_norm {MOE} selection_bare shared nextn nextn_norm",
        keys={**_SHARED_KEYS, **_SIGMOID},
    ),
    "hy_v4": Spec(
        lead=f"{MLA} sinks gate_per_value indexer hc2 ffn_norm dense",
        layers=(
            f"{MLA} sinks gate_per_value hc2 ffn_norm {MOE} selection shared",
            f"{MLA} sinks gate_per_value indexer hc2 ffn_norm {MOE} selection shared",
        ),
        top="top mhc_out",
        keys={
            **_MLA_KEYS, **_INDEXER_KEYS, **_SHARED_KEYS, **_SIGMOID,
            "hyper_connection.count": 4,
            "hyper_connection.epsilon": 1e-6,
            "hyper_connection.magnitude": 2.0,
            "attention.indexer.types": lambda layer, _: 1 - layer % 2,
            "swiglu_clamp_exp": 10.0,
        },
    ),
    "jamba": Spec(
        layers=("attn_norm mamba ffn_norm dense", f"{ATTN} ffn_norm {MOE}"),
        keys={**_MAMBA2_KEYS, "attention.head_count_kv": _every(2, first=0, second=1)},
    ),
    "kimi-k3": Spec(
        lead="attn_norm kda kda_f kda_g_full res_scores ffn_norm dense",
        layers=(
            f"{MLA} res_scores ffn_norm router latent_gate latent_up_down kimi_latent "
            "selection shared",
            "attn_norm kda kda_f kda_g_full res_scores ffn_norm router latent_gate latent_up_down "
            "kimi_latent selection shared",
        ),
        top="top res_score_out",
        keys={
            **_MLA_KEYS, **_KDA_KEYS, **_SHARED_KEYS, **_SIGMOID,
            "expert_latent_length": 32,
            "attn_res.block_size": 12,
            "activation.situ_beta": 4.0,
            "activation.situ_linear_beta": 25.0,
        },
    ),
    "kimi-linear": Spec(
        lead="attn_norm kda kda_f2 kda_g ffn_norm dense",
        layers=(
            f"attn_norm mla_q mla_kv ffn_norm {MOE} selection shared",
            f"attn_norm kda kda_f2 kda_g ffn_norm {MOE} selection shared",
        ),
        keys={
            **_MLA_KEYS, **_KDA_KEYS, **_SHARED_KEYS, **_SIGMOID,
        },
    ),
    "laguna": Spec(
        lead=f"{ATTN} qk gate_per_head ffn_norm dense",
        layers=(f"{ATTN} qk gate_per_head ffn_norm {MOE} selection shared",),
        keys={**_SHARED_KEYS, **_SIGMOID, "attention.sliding_window": 32},
    ),
    "lfm2moe": Spec(
        lead="attn_norm shortconv ffn_norm dense",
        layers=(
            f"{ATTN} qk ffn_norm {MOE} selection",
            f"attn_norm shortconv ffn_norm {MOE} selection",
        ),
        top="top_lfm2",
        keys={
            "expert_gating_func": 2,
            "shortconv.l_cache": 3,
            "attention.head_count_kv": _odd,
        },
        file="lfm2",
    ),
    "llada-moe": _QWEN3,
    "llama": _LLAMA,
    "llama-embed": replace(_LLAMA, file="llama"),
    "llama4": Spec(
        # Every fourth layer attends to all tokens, and llama.cpp asserts that there is one.
        layers=(f"{ATTN} ffn_norm dense", f"{ATTN} ffn_norm {MOE} shared") * 2,
        keys={"interleave_moe_layer_step": 2},
    ),
    "maple": Spec(layers=_QWEN3.layers, keys={**_SWA_KEYS, "swiglu_clamp_exp": 7.0}),
    "mellum": Spec(layers=_QWEN3.layers, keys={"attention.sliding_window": 32}),
    "mimo2": Spec(
        lead=f"{ATTN} sinks ffn_norm dense",
        layers=(f"{ATTN} sinks ffn_norm {MOE} selection",),
        mtp="attn_norm qkv_fused out ffn_norm dense nextn layer_out",
        keys={**_SWA_KEYS},
    ),
    "minicpm": replace(_LLAMA, file="granite"),
    "minimax-01": Spec(
        layers=(
            f"attn_norm lightning ffn_norm {MOE}",
            f"{ATTN} ffn_norm {MOE}",
        ),
        keys={"residual_scale": 3.5, "full_attention_interval": 2},
    ),
    "minimax-m2": Spec(
        layers=(f"{ATTN} qk_all ffn_norm {MOE} selection",), keys={"expert_gating_func": 2}
    ),
    "minimax-m3": Spec(
        lead=f"{ATTN} qk ffn_norm dense",
        layers=(f"{ATTN} qk indexer_qk ffn_norm {MOE} selection shared",),
        dimensions={"index_heads": 1},
        keys={
            **_SHARED_KEYS, **_SIGMOID, **_INDEXER_KEYS,
            "attention.indexer.head_count": 1,
            "attention.indexer.block_size": 4,
            "attention.indexer.local_blocks": 1,
        },
    ),
    "mistral3": _LLAMA,
    "mistral4": replace(_DEEPSEEK2, file="deepseek2"),
    "nemotron_h": _NEMOTRON,
    "nemotron_h_moe": Spec(
        layers=tuple(
            parts.replace(" up_down", " latent_up_down nemotron_latent")
            for parts in _NEMOTRON.layers
        ),
        mtp=(_NEMOTRON.mtp or "").replace(" up_down", " latent_up_down nemotron_latent"),
        keys={**_NEMOTRON.keys, "moe_latent_size": 32},
    ),
    "nomic-bert-moe": Spec(
        layers=("qkv_fused out bert dense_no_gate", "qkv_fused out bert router up_down"),
        top="top_embedding",
        keys={"moe_every_n_layers": 2, "attention.causal": False, "pooling_type": 1},
        dimensions={"kv_heads": 2},
        file="bert",
    ),
    "olmoe": Spec(layers=(f"{ATTN} qk_all ffn_norm {MOE}",), dimensions={"kv_heads": 2}),
    "phimoe": Spec(
        layers=(f"{ATTN} qkv_bias out_bias ffn_norm norm_biases {MOE}",), top="top top_biases",
        file="phi3",
    ),
    "qwen2moe": Spec(
        layers=(f"{ATTN} qkv_bias ffn_norm {MOE} shared shared_gate",), keys=_SHARED_KEYS
    ),
    "qwen35moe": Spec(
        layers=(
            f"attn_norm delta delta_ab attn_post {FUSED} shared shared_gate",
            f"attn_norm q2kv out qk attn_post {FUSED} shared shared_gate",
        ),
        mtp=f"attn_norm q2kv out qk attn_post {FUSED} shared shared_gate nextn nextn_norm",
        keys={**_DELTA_KEYS, **_SHARED_KEYS, **_SECTIONS},
    ),
    "qwen3moe": _QWEN3,
    "qwen3next": Spec(
        layers=(
            f"attn_norm delta delta_ba attn_post {MOE} shared shared_gate",
            f"attn_norm q2kv out qk attn_post {MOE} shared shared_gate",
        ),
        mtp=f"attn_norm q2kv out qk attn_post {MOE} shared shared_gate nextn nextn_norm",
        keys={**_DELTA_KEYS, **_SHARED_KEYS},
    ),
    "qwen3vlmoe": Spec(layers=_QWEN3.layers, keys=_SECTIONS),
    "qwen4exp": Spec(
        layers=(
            f"hc_lowrank delta delta_ab {MOE} shared shared_gate",
            f"hc_lowrank q2kv out qk indexer_qk {MOE} shared shared_gate",
        ),
        top="top_bare hc_lowrank_out",
        keys={
            **_DELTA_KEYS, **_SHARED_KEYS, **_SECTIONS, **_INDEXER_KEYS,
            "hyper_connection.count": 4,
            "hyper_connection.low_rank": 8,
        },
    ),
    "rnd1": _QWEN3,
    "smallthinker": Spec(layers=_LLAMA.layers, keys={"expert_gating_func": 2}),
    "step35": Spec(
        lead=f"{ATTN} qk gate_per_head ffn_norm dense",
        layers=(f"{ATTN} qk gate_per_head ffn_norm {MOE} selection shared",),
        mtp=f"{ATTN} qk gate_per_head ffn_norm dense nextn nextn_norm",
        keys={**_SHARED_KEYS, **_SIGMOID, **_SWA_KEYS},
    ),
}  # fmt: skip
NOT_GENERATED: dict[str, str] = {
    "dflash": "a draft model that runs only with its target's hidden states",
}

#: Files in src/models of llama.cpp that call build_moe_ffn: ``git grep -l build_moe_ffn``, looked
#: at anew for each release that pyproject.toml allows.
MOE_FILES = (
    "afmoe", "arctic", "bailingmoe", "bailingmoe2", "bailingmoe3", "bert", "cohere2moe", "dbrx",
    "deepseek", "deepseek2", "deepseek32", "deepseek4", "dflash", "dots1", "dots3note",
    "ernie4-5-moe", "exaone-moe", "gemma4", "glm-dsa", "glm4-moe", "glm5-next", "granite",
    "granite-hybrid", "granite-swa", "grok", "grovemoe", "hunyuan-moe", "hy-v3", "hy-v4", "jamba",
    "kimi-k3", "kimi-linear", "laguna", "lfm2", "llada-moe", "llama", "llama4", "maple", "mellum",
    "mimo2", "minimax-01", "minimax-m2", "minimax-m3", "mistral3", "nemotron-h", "nemotron-h-moe",
    "olmoe", "openai-moe", "phi3", "qwen2moe", "qwen35moe", "qwen3moe", "qwen3next", "qwen3vlmoe",
    "qwen4exp", "rnd1", "smallthinker", "step35",
)  # fmt: skip
