"""Tiny mixture-of-experts models with random weights, one for every architecture.

``write_tiny`` writes a GGUF file of a few hundred kilobytes that llama.cpp loads in milliseconds.
It has the tensors and keys that real models of the architecture have: leading dense layers, shared
experts, selection biases, fused and scaled experts, MTP layers, recurrent layers. It is made with
the ``gguf`` package and knows nothing of ggprune.

A layer is written down as parts ("attn qk ffn_norm moe"); a part as tensors with their dimensions
in GGML's order ("attn_q.weight:d,a*h"), in terms of these names:

=====  ===================================  =====  ====================================
``d``  embedding length                     ``Q``  rank of the query in MLA
``a``  attention heads                      ``K``  rank of keys and values in MLA
``g``  heads of keys and values             ``r``  rotated dimensions of a head in MLA
``h``  dimensions of a head                 ``p``  other dimensions of a head in MLA
``f``  FFN length of a dense layer          ``m``  dimensions of a value in MLA
``x``  FFN length of an expert              ``I``  dimensions of an indexer head
``s``  FFN length of shared experts         ``N``  indexer heads
``n``  experts                              ``c``  dimensions of a recurrent (KDA) head
``v``  tokens in the vocabulary             ``S``  state size of a recurrent layer
``l``  latent dimension of the experts      ``i``  inner size of a recurrent layer
``e``  heads of a recurrent layer
=====  ===================================  =====  ====================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Value = bool | int | float | str | list[int] | list[float]
PerLayer = Callable[[int, int], int]

DIMENSIONS: dict[str, int] = {
    "d": 32, "a": 2, "g": 1, "h": 16, "f": 64, "x": 64, "s": 64, "v": 288,
    "Q": 32, "K": 32, "r": 8, "p": 16, "m": 16, "I": 64, "N": 2,
    "c": 16, "S": 16, "i": 64, "e": 4, "l": 32,
}  # fmt: skip

_MHC = "hc_{0}_fn.weight:4*d,24 hc_{0}_base.weight:24 hc_{0}_scale.weight:3"
_LOWRANK_HC = (
    "hc_{0}_norm.weight:d,4 hc_{0}_down.weight:4*d,8 hc_{0}_up.weight:8,4*d "
    "hc_{0}_inject.weight:4*d,4"
)

PARTS: dict[str, str] = {
    # attention
    "attn_norm": "attn_norm.weight:d",
    "qkv": "attn_q.weight:d,a*h attn_k.weight:d,g*h attn_v.weight:d,g*h",
    "q2kv": "attn_q.weight:d,2*a*h attn_k.weight:d,g*h attn_v.weight:d,g*h",
    "qkv_bias": "attn_q.bias:a*h attn_k.bias:g*h attn_v.bias:g*h",
    "qkv_fused": "attn_qkv.weight:d,(a+2*g)*h",
    "out": "attn_output.weight:a*h,d",
    "out_bias": "attn_output.bias:d",
    "qk": "attn_q_norm.weight:h attn_k_norm.weight:h",
    "qk_all": "attn_q_norm.weight:a*h attn_k_norm.weight:g*h",
    "sinks": "attn_sinks.weight:a",
    "gate_per_head": "attn_gate.weight:d,a",
    "gate_per_element": "attn_gate.weight:d,a*h",
    "gate_per_value": "attn_gate.weight:d,a*m",
    "attn_post": "post_attention_norm.weight:d",
    "attn_out_norm": "attn_output_norm.weight:d",
    # multi-head latent attention
    "mla_q_lora": ("attn_q_a.weight:d,Q attn_q_a_norm.weight:Q attn_q_b.weight:Q,a*(p+r)"),
    "mla_q": "attn_q.weight:d,a*(p+r)",
    "mla_kv": (
        "attn_kv_a_mqa.weight:d,K+r attn_kv_a_norm.weight:K attn_k_b.weight:p,K,a "
        "attn_v_b.weight:K,m,a attn_output.weight:a*m,d"
    ),
    "mla_rope_norm": "attn_k_norm.weight:r",
    "indexer": (
        "indexer.k_norm.weight:I indexer.k_norm.bias:I indexer.proj.weight:d,N "
        "indexer.attn_k.weight:d,I indexer.attn_q_b.weight:Q,N*I"
    ),
    "indexer_pool": "indexer_compressor_gate.weight:d,I indexer_compressor_ape.weight:I,4",
    "indexer_qk": (
        "indexer.q_proj.weight:d,N*I indexer.k_proj.weight:d,I "
        "indexer.q_norm.weight:I indexer.k_norm.weight:I"
    ),
    # deepseek4
    "dsv4": (
        "attn_sinks.weight:a attn_q_a.weight:d,Q attn_q_a_norm.weight:Q attn_q_b.weight:Q,a*h "
        "attn_kv.weight:d,h attn_kv_a_norm.weight:h attn_output_a.weight:h,16,a "
        "attn_output_b.weight:16*a,d"
    ),
    "dsv4_4": (
        "attn_compressor_kv.weight:d,2*h attn_compressor_gate.weight:d,2*h "
        "attn_compressor_ape.weight:2*h,4 attn_compressor_norm.weight:h "
        "indexer.proj.weight:d,N indexer.attn_q_b.weight:Q,N*I "
        "indexer_compressor_kv.weight:d,2*I indexer_compressor_gate.weight:d,2*I "
        "indexer_compressor_ape.weight:2*I,4 indexer_compressor_norm.weight:I"
    ),
    "dsv4_128": (
        "attn_compressor_kv.weight:d,h attn_compressor_gate.weight:d,h "
        "attn_compressor_ape.weight:h,128 attn_compressor_norm.weight:h"
    ),
    # hyper-connections
    "mhc": _MHC.format("attn") + " " + _MHC.format("ffn"),
    "mhc_out": "output_hc_fn.weight:4*d,4 output_hc_base.weight:4 output_hc_scale.weight:1",
    "hc2": (
        "hc_attn_fn.weight:4*d,8 hc_attn_base.weight:8 hc_attn_scale.weight:2 "
        "hc_ffn_fn.weight:4*d,8 hc_ffn_base.weight:8 hc_ffn_scale.weight:2"
    ),
    "hc_lowrank": _LOWRANK_HC.format("attn") + " " + _LOWRANK_HC.format("ffn"),
    "hc_lowrank_out": (
        "output_hc_norm.weight:d,4 output_hc_down.weight:4*d,8 output_hc_up.weight:8,4*d"
    ),
    # recurrent layers
    "kda": (
        "ssm_conv1d_q.weight:4,1,a*c ssm_conv1d_k.weight:4,1,a*c ssm_conv1d_v.weight:4,1,a*c "
        "attn_q.weight:d,a*c attn_k.weight:d,a*c attn_v.weight:d,a*c ssm_beta.weight:d,a "
        "ssm_dt.bias:a*c ssm_norm.weight:c attn_output.weight:a*c,d"
    ),
    "kda_f": "ssm_f_a.weight:d,c ssm_f_b.weight:c,a*c ssm_a:a",
    "kda_f2": "ssm_f_a.weight:d,c ssm_f_b.weight:c,a*c ssm_a:1,a",
    "kda_g": "ssm_g_a.weight:d,c ssm_g_b.weight:c,a*c",
    "kda_g_full": "ssm_g.weight:d,a*c",
    "kda_full": "ssm_f_a.weight:d,a*c ssm_g_a.weight:d,a*c ssm_a:1,a",
    "delta": (
        "attn_qkv.weight:d,2*2*S+e*S attn_gate.weight:d,e*S ssm_conv1d.weight:4,2*2*S+e*S "
        "ssm_dt.bias:e ssm_a:e ssm_norm.weight:S ssm_out.weight:e*S,d"
    ),
    "delta_ab": "ssm_alpha.weight:d,e ssm_beta.weight:d,e",
    "delta_ba": "ssm_ba.weight:d,2*e",
    "mamba": (
        "ssm_in.weight:d,2*i ssm_conv1d.weight:4,i ssm_conv1d.bias:i ssm_x.weight:i,e+2*S "
        "ssm_dt_norm.weight:e ssm_dt.weight:e,i ssm_dt.bias:i ssm_b_norm.weight:S "
        "ssm_c_norm.weight:S ssm_a:S,i ssm_d:i ssm_out.weight:i,d"
    ),
    "mamba2": (
        "ssm_in.weight:d,2*i+2*S+e ssm_conv1d.weight:4,i+2*S ssm_conv1d.bias:i+2*S "
        "ssm_dt.bias:e ssm_a:1,e ssm_d:1,e ssm_norm.weight:i,1 ssm_out.weight:i,d"
    ),
    "lightning": (
        "attn_norm_2.weight:a*h attn_qkv.weight:d,3*a*h attn_gate.weight:d,a*h "
        "attn_output.weight:a*h,d"
    ),
    "shortconv": (
        "shortconv.conv.weight:3,d shortconv.in_proj.weight:d,3*d shortconv.out_proj.weight:d,d"
    ),
    # feed-forward
    "ffn_norm": "ffn_norm.weight:d",
    "ffn_post": "post_ffw_norm.weight:d",
    "dense": "ffn_gate.weight:d,f ffn_up.weight:d,f ffn_down.weight:f,d",
    "dense_no_gate": "ffn_up.weight:d,f ffn_down.weight:f,d",
    "dense_square": "ffn_gate.weight:d,d ffn_up.weight:d,d ffn_down.weight:d,d",
    "router": "ffn_gate_inp.weight:d,n",
    "up_down": "ffn_up_exps.weight:d,x,n ffn_down_exps.weight:x,d,n",
    "latent_up_down": "ffn_up_exps.weight:l,x,n ffn_down_exps.weight:x,l,n",
    "gate": "ffn_gate_exps.weight:d,x,n",
    "latent_gate": "ffn_gate_exps.weight:l,x,n",
    "fused": "ffn_gate_up_exps.weight:d,2*x,n ffn_down_exps.weight:x,d,n",
    "chunks": (
        "ffn_gate_chexps.weight:d,16,n//2 ffn_up_chexps.weight:d,16,n//2 "
        "ffn_down_chexps.weight:16,d,n//2"
    ),
    "selection": "exp_probs_b.bias:n",
    "selection_bare": "exp_probs_b:n",
    "selection_images": "exp_probs_b_vl.bias:n",
    "expert_biases": (
        "ffn_gate_inp.bias:n ffn_gate_exps.bias:x,n ffn_up_exps.bias:x,n ffn_down_exps.bias:d,n"
    ),
    "scales": "ffn_gate_exps.scale:n ffn_up_exps.scale:n ffn_down_exps.scale:n",
    "down_scale": "ffn_down_exps.scale:n",
    "shared": "ffn_gate_shexp.weight:d,s ffn_up_shexp.weight:d,s ffn_down_shexp.weight:s,d",
    "shared_no_gate": "ffn_up_shexp.weight:d,s ffn_down_shexp.weight:s,d",
    "shared_fused": "ffn_up_shexp.weight:d,2*s ffn_down_shexp.weight:s,d",
    "shared_gate": "ffn_gate_inp_shexp.weight:d",
    # a layer that predicts a further token
    "nextn": "nextn.eh_proj.weight:2*d,d nextn.enorm.weight:d nextn.hnorm.weight:d",
    "nextn_norm": "nextn.shared_head_norm.weight:d",
    "layer_out": "layer_output_norm.weight:d",
    # whole architectures' odd ones
    "norm_biases": "attn_norm.bias:d ffn_norm.bias:d",
    "gemma4_moe": (
        "ffn_gate_inp.scale:d pre_ffw_norm_2.weight:d post_ffw_norm_1.weight:d "
        "post_ffw_norm_2.weight:d layer_output_scale.weight:1"
    ),
    "arctic_norm": "ffn_norm_exps.weight:d",
    "bert": (
        "attn_output_norm.weight:d attn_output_norm.bias:d "
        "layer_output_norm.weight:d layer_output_norm.bias:d"
    ),
    "res_scores": "attn_res_score.weight:d ffn_res_score.weight:d",
    "nemotron_latent": "ffn_latent_down.weight:d,l ffn_latent_up.weight:l,d",
    "kimi_latent": ("ffn_routed_down.weight:d,l ffn_routed_up.weight:l,d ffn_routed_norm.weight:l"),
    # not in a layer
    "top": "token_embd.weight:d,v output_norm.weight:d output.weight:d,v",
    "top_biases": "output_norm.bias:d output.bias:v",
    "top_bare": "token_embd.weight:d,v output.weight:d,v",
    "top_embedding": (
        "token_embd.weight:d,v token_types.weight:d,1 "
        "token_embd_norm.weight:d token_embd_norm.bias:d"
    ),
    "top_lfm2": "token_embd.weight:d,v token_embd_norm.weight:d output.weight:d,v",
    "rope_freqs": "rope_freqs.weight:h//2",
    "res_score_out": "output_res_score.weight:d",
}

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
    """

    layers: tuple[str, ...]
    lead: str | None = None
    mtp: str | None = None
    top: str = "top"
    keys: Mapping[str, Value | PerLayer] = field(default_factory=dict)
    dimensions: Mapping[str, int] = field(default_factory=dict)
    groups: tuple[int, int] = (0, 0)


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
        lead=_DEEPSEEK.lead, layers=_DEEPSEEK.layers, keys=_DEEPSEEK.keys, dimensions={"g": 2}
    ),
    "deepseek32": _DEEPSEEK32,
    "deepseek4": Spec(
        layers=tuple(
            f"attn_norm dsv4 {compressed} mhc ffn_norm {MOE} selection selection_images shared"
            for compressed in ("", "dsv4_4", "dsv4_128")
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
            "hash_layer_count": 0,
            "swiglu_clamp_exp": 10.0,
            "expert_gating_func": 4,
        },
    ),
    "dots1": Spec(
        lead=f"{ATTN} qk ffn_norm dense",
        layers=(f"{ATTN} qk ffn_norm {MOE} selection shared",),
        keys={**_SHARED_KEYS, **_SIGMOID},
        dimensions={"g": 2},
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
    ),
    "glm5-next": Spec(
        lead="attn_norm kda kda_f kda_g mhc ffn_norm dense",
        layers=(
            f"{MLA} indexer indexer_pool mhc ffn_norm {MOE} selection shared",
            f"attn_norm kda kda_f kda_g mhc ffn_norm {MOE} selection shared",
        ),
        mtp=f"{MLA} indexer indexer_pool ffn_norm {MOE} selection shared nextn nextn_norm",
        dimensions={"r": 0},
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
    ),
    "granitemoe": _GRANITE,
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
    ),
    "llada-moe": _QWEN3,
    "llama": _LLAMA,
    "llama-embed": _LLAMA,
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
    "minicpm": _LLAMA,
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
        dimensions={"N": 1},
        keys={
            **_SHARED_KEYS, **_SIGMOID, **_INDEXER_KEYS,
            "attention.indexer.head_count": 1,
            "attention.indexer.block_size": 4,
            "attention.indexer.local_blocks": 1,
        },
    ),
    "mistral3": _LLAMA,
    "mistral4": _DEEPSEEK2,
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
        dimensions={"g": 2},
    ),
    "olmoe": Spec(layers=(f"{ATTN} qk_all ffn_norm {MOE}",), dimensions={"g": 2}),
    "phimoe": Spec(
        layers=(f"{ATTN} qkv_bias out_bias ffn_norm norm_biases {MOE}",), top="top top_biases"
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


def _shapes(parts: str, prefix: str, sizes: Mapping[str, int]) -> Iterator[tuple[str, list[int]]]:
    for part in parts.split():
        for tensor in PARTS[part].split():
            name, _, dimensions = tensor.partition(":")
            # Expressions come from the tables above only.
            yield prefix + name, [eval(size, {}, dict(sizes)) for size in dimensions.split(",")]


def _weights(name: str, shape: list[int], random: np.random.Generator) -> NDArray[np.float32]:
    """Draw weights that keep activations near 1 and let experts differ in direction and size."""
    values = random.standard_normal(shape[::-1])
    if name.endswith("ssm_a"):
        values = -np.exp(0.3 * values)
    elif "norm" in name and not name.endswith(".bias"):
        values = 1 + 0.1 * values
    elif name.endswith(("scale", "scale.weight", "ssm_d", "rope_freqs.weight")):
        values = np.exp(0.2 * values)
    elif name.endswith((".bias", "exp_probs_b", "_base.weight")):
        values = 0.1 * values
    elif name == "token_embd.weight":
        pass
    else:
        values /= np.sqrt(shape[0])
    if "_exps.weight" in name:
        sizes = random.uniform(0.5, 2.0, size=shape[-1])
        values *= sizes.reshape(-1, *[1] * (values.ndim - 1))
    return values.astype(np.float32)


def _vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Write a byte-level vocabulary: three special tokens, 256 bytes, some words."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3, *[6] * 256]
    words = ["\u2581", *"etaoinshrdlu", "\u2581the", "\u2581of", "\u2581and", "in", "er", "on"]
    tokens += words
    types += [1] * len(words)
    while len(tokens) < size:
        tokens.append(f"<extra_{len(tokens)}>")
        types.append(5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(size)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_token_type_count(1)


def _add_key(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    kinds = gguf.GGUFValueType
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        kind = {bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING}
        writer.add_key_value(key, value, kind[type(value)])


def _keys(spec: Spec, sizes: Mapping[str, int], count: int, used: int) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "context_length": 256,
        "embedding_length": sizes["d"],
        "block_count": count,
        "feed_forward_length": sizes["f"],
        "attention.head_count": sizes["a"],
        "attention.head_count_kv": 1 if "attention.kv_lora_rank" in spec.keys else sizes["g"],
        "attention.key_length": sizes["h"],
        "attention.value_length": sizes["h"],
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": sizes["h"],
        "expert_count": sizes["n"],
        "expert_used_count": used,
        "expert_feed_forward_length": sizes["x"],
        **spec.keys,
    }
    if spec.lead:
        keys["leading_dense_block_count"] = 1
    return keys


def tiny_tensors(
    architecture: str, sizes: Mapping[str, int], depth: int, mtp: int
) -> Iterator[tuple[str, list[int]]]:
    """List the tensors of a model: names, and dimensions in GGML's order."""
    spec = SPECS[architecture]
    yield from _shapes(spec.top, "", sizes)
    for layer in range(depth + mtp):
        if layer >= depth:
            parts = spec.mtp or ""
        elif spec.lead and layer == 0:
            parts = spec.lead
        else:
            parts = spec.layers[(layer - bool(spec.lead)) % len(spec.layers)]
        yield from _shapes(parts, f"blk.{layer}.", sizes)


def write_tiny(
    path: Path | str,
    architecture: str,
    *,
    experts: int = 16,
    used: int = 4,
    layers: int | None = None,
    mtp: int | None = None,
    groups: tuple[int, int] | None = None,
    seed: int = 0,
    dtype: str = "F32",
    keys: Mapping[str, Value] | None = None,
    tensors: str = "",
) -> Path:
    """Write a tiny model.

    Args:
        path: the file to write.
        architecture: one of ``SPECS``.
        experts: experts in each MoE layer.
        used: experts that a token uses.
        layers: layers, without MTP layers; None: enough to have every kind.
        mtp: MTP layers; None: one where the architecture has them.
        groups: groups of experts, and how many a token uses; None: as in ``SPECS``.
        seed: of the random weights.
        dtype: type of matrices with rows that are a multiple of 32; the others are F32.
        keys: metadata to add or replace, without the architecture's prefix.
        tensors: parts to add to every layer with experts, such as ``"scales"``.
    """
    spec = SPECS[architecture]
    sizes = {**DIMENSIONS, **spec.dimensions, "n": experts}
    depth = layers or bool(spec.lead) + max(2, len(spec.layers))
    last = (1 if spec.mtp else 0) if mtp is None else mtp
    metadata = {**_keys(spec, sizes, depth + last, used), **(keys or {})}
    if last:
        metadata["nextn_predict_layers"] = last
    if (groups or spec.groups)[0]:
        metadata["expert_group_count"], metadata["expert_group_used_count"] = groups or spec.groups

    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name(f"tiny {architecture}")
    for key, value in metadata.items():
        if callable(value):
            factor = used if key == "expert_used_count" else 1
            array = [factor * value(layer, depth) for layer in range(depth + last)]
            _add_key(writer, f"{architecture}.{key}", array)
        else:
            _add_key(writer, f"{architecture}.{key}", value)
    _vocabulary(writer, sizes["v"])
    random = np.random.default_rng(seed)
    kind = gguf.GGMLQuantizationType[dtype]
    for name, shape in _with_extra(architecture, sizes, depth, last, tensors):
        data = _weights(name, shape, random)
        if _is_matrix(name, shape) and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def _is_matrix(name: str, shape: list[int]) -> bool:
    """Say whether llama.cpp's quantizer would touch a tensor, roughly."""
    kept = re.search(r"norm|_ape|ssm_|hc_|gate_inp|conv|token_types|res_score|_b\.weight", name)
    return name.endswith(".weight") and len(shape) > 1 and shape[0] % 32 == 0 and not kept


def _with_extra(
    architecture: str, sizes: Mapping[str, int], depth: int, mtp: int, extra: str
) -> Iterator[tuple[str, list[int]]]:
    tensors = dict(tiny_tensors(architecture, sizes, depth, mtp))
    for name in list(tensors):
        if name.endswith("ffn_gate_inp.weight"):
            tensors.update(_shapes(extra, name.removesuffix("ffn_gate_inp.weight"), sizes))
    yield from tensors.items()
