"""The parts that layers are made of, as tensors with their dimensions.

A part is a list of tensors, each with its dimensions in GGML's order
(``attn_q.weight:embd,heads*head``). The dimensions are expressions in the names of ``DIMENSIONS``.
"""

from __future__ import annotations

DIMENSIONS: dict[str, int] = {
    "embd": 32,  # embedding length
    "vocab": 288,  # tokens in the vocabulary
    "used": 4,  # experts that a token uses
    "heads": 2,  # attention heads
    "kv_heads": 1,  # heads of keys and values
    "head": 16,  # dimensions of a head
    "ff": 64,  # FFN length of a dense layer
    "ff_exp": 64,  # FFN length of an expert
    "ff_shexp": 64,  # FFN length of shared experts
    "latent": 32,  # latent dimension of the experts
    # multi-head latent attention
    "q_rank": 32,  # rank of the query
    "kv_rank": 32,  # rank of keys and values
    "rope": 8,  # rotated dimensions of a head
    "nope": 16,  # other dimensions of a head
    "value": 16,  # dimensions of a value
    "index_head": 64,  # dimensions of an indexer head
    "index_heads": 2,  # indexer heads
    # recurrent layers
    "kda_head": 16,  # dimensions of a KDA head
    "state": 16,  # state size
    "inner": 64,  # inner size
    "ssm_heads": 4,  # heads
}
"""The dimensions of every model; ``experts`` is added by the writer."""

_MHC = "hc_{0}_fn.weight:4*embd,24 hc_{0}_base.weight:24 hc_{0}_scale.weight:3"
_LOWRANK_HC = (
    "hc_{0}_norm.weight:embd,4 hc_{0}_down.weight:4*embd,8 hc_{0}_up.weight:8,4*embd "
    "hc_{0}_inject.weight:4*embd,4"
)

PARTS: dict[str, str] = {
    # attention
    "attn_norm": "attn_norm.weight:embd",
    "qkv": (
        "attn_q.weight:embd,heads*head attn_k.weight:embd,kv_heads*head "
        "attn_v.weight:embd,kv_heads*head"
    ),
    "q2kv": (
        "attn_q.weight:embd,2*heads*head attn_k.weight:embd,kv_heads*head "
        "attn_v.weight:embd,kv_heads*head"
    ),
    "qkv_bias": "attn_q.bias:heads*head attn_k.bias:kv_heads*head attn_v.bias:kv_heads*head",
    "qkv_fused": "attn_qkv.weight:embd,(heads+2*kv_heads)*head",
    "out": "attn_output.weight:heads*head,embd",
    "out_bias": "attn_output.bias:embd",
    "qk": "attn_q_norm.weight:head attn_k_norm.weight:head",
    "qk_all": "attn_q_norm.weight:heads*head attn_k_norm.weight:kv_heads*head",
    "sinks": "attn_sinks.weight:heads",
    "gate_per_head": "attn_gate.weight:embd,heads",
    "gate_per_element": "attn_gate.weight:embd,heads*head",
    "gate_per_value": "attn_gate.weight:embd,heads*value",
    "attn_post": "post_attention_norm.weight:embd",
    "attn_out_norm": "attn_output_norm.weight:embd",
    # multi-head latent attention
    "mla_q_lora": (
        "attn_q_a.weight:embd,q_rank attn_q_a_norm.weight:q_rank "
        "attn_q_b.weight:q_rank,heads*(nope+rope)"
    ),
    "mla_q": "attn_q.weight:embd,heads*(nope+rope)",
    "mla_kv": (
        "attn_kv_a_mqa.weight:embd,kv_rank+rope attn_kv_a_norm.weight:kv_rank "
        "attn_k_b.weight:nope,kv_rank,heads attn_v_b.weight:kv_rank,value,heads "
        "attn_output.weight:heads*value,embd"
    ),
    "mla_rope_norm": "attn_k_norm.weight:rope",
    "indexer": (
        "indexer.k_norm.weight:index_head indexer.k_norm.bias:index_head "
        "indexer.proj.weight:embd,index_heads indexer.attn_k.weight:embd,index_head "
        "indexer.attn_q_b.weight:q_rank,index_heads*index_head"
    ),
    "indexer_pool": (
        "indexer_compressor_gate.weight:embd,index_head indexer_compressor_ape.weight:index_head,4"
    ),
    "indexer_qk": (
        "indexer.q_proj.weight:embd,index_heads*index_head indexer.k_proj.weight:embd,index_head "
        "indexer.q_norm.weight:index_head indexer.k_norm.weight:index_head"
    ),
    # deepseek4
    "hash_table": "ffn_gate_tid2eid.weight:used,vocab",
    "dsv4": (
        "attn_sinks.weight:heads attn_q_a.weight:embd,q_rank attn_q_a_norm.weight:q_rank "
        "attn_q_b.weight:q_rank,heads*head attn_kv.weight:embd,head attn_kv_a_norm.weight:head "
        "attn_output_a.weight:head,16,heads attn_output_b.weight:16*heads,embd"
    ),
    "dsv4_4": (
        "attn_compressor_kv.weight:embd,2*head attn_compressor_gate.weight:embd,2*head "
        "attn_compressor_ape.weight:2*head,4 attn_compressor_norm.weight:head "
        "indexer.proj.weight:embd,index_heads "
        "indexer.attn_q_b.weight:q_rank,index_heads*index_head "
        "indexer_compressor_kv.weight:embd,2*index_head "
        "indexer_compressor_gate.weight:embd,2*index_head "
        "indexer_compressor_ape.weight:2*index_head,4 indexer_compressor_norm.weight:index_head"
    ),
    "dsv4_128": (
        "attn_compressor_kv.weight:embd,head attn_compressor_gate.weight:embd,head "
        "attn_compressor_ape.weight:head,128 attn_compressor_norm.weight:head"
    ),
    # hyper-connections
    "mhc": _MHC.format("attn") + " " + _MHC.format("ffn"),
    "mhc_out": "output_hc_fn.weight:4*embd,4 output_hc_base.weight:4 output_hc_scale.weight:1",
    "hc2": (
        "hc_attn_fn.weight:4*embd,8 hc_attn_base.weight:8 hc_attn_scale.weight:2 "
        "hc_ffn_fn.weight:4*embd,8 hc_ffn_base.weight:8 hc_ffn_scale.weight:2"
    ),
    "hc_lowrank": _LOWRANK_HC.format("attn") + " " + _LOWRANK_HC.format("ffn"),
    "hc_lowrank_out": (
        "output_hc_norm.weight:embd,4 output_hc_down.weight:4*embd,8 output_hc_up.weight:8,4*embd"
    ),
    # recurrent layers
    "kda": (
        "ssm_conv1d_q.weight:4,1,heads*kda_head ssm_conv1d_k.weight:4,1,heads*kda_head "
        "ssm_conv1d_v.weight:4,1,heads*kda_head attn_q.weight:embd,heads*kda_head "
        "attn_k.weight:embd,heads*kda_head attn_v.weight:embd,heads*kda_head "
        "ssm_beta.weight:embd,heads ssm_dt.bias:heads*kda_head ssm_norm.weight:kda_head "
        "attn_output.weight:heads*kda_head,embd"
    ),
    "kda_f": "ssm_f_a.weight:embd,kda_head ssm_f_b.weight:kda_head,heads*kda_head ssm_a:heads",
    "kda_f2": "ssm_f_a.weight:embd,kda_head ssm_f_b.weight:kda_head,heads*kda_head ssm_a:1,heads",
    "kda_g": "ssm_g_a.weight:embd,kda_head ssm_g_b.weight:kda_head,heads*kda_head",
    "kda_g_full": "ssm_g.weight:embd,heads*kda_head",
    "kda_full": (
        "ssm_f_a.weight:embd,heads*kda_head ssm_g_a.weight:embd,heads*kda_head ssm_a:1,heads"
    ),
    "delta": (
        "attn_qkv.weight:embd,2*2*state+ssm_heads*state attn_gate.weight:embd,ssm_heads*state "
        "ssm_conv1d.weight:4,2*2*state+ssm_heads*state ssm_dt.bias:ssm_heads ssm_a:ssm_heads "
        "ssm_norm.weight:state ssm_out.weight:ssm_heads*state,embd"
    ),
    "delta_ab": "ssm_alpha.weight:embd,ssm_heads ssm_beta.weight:embd,ssm_heads",
    "delta_ba": "ssm_ba.weight:embd,2*ssm_heads",
    "mamba": (
        "ssm_in.weight:embd,2*inner ssm_conv1d.weight:4,inner ssm_conv1d.bias:inner "
        "ssm_x.weight:inner,ssm_heads+2*state ssm_dt_norm.weight:ssm_heads "
        "ssm_dt.weight:ssm_heads,inner ssm_dt.bias:inner ssm_b_norm.weight:state "
        "ssm_c_norm.weight:state ssm_a:state,inner ssm_d:inner ssm_out.weight:inner,embd"
    ),
    "mamba2": (
        "ssm_in.weight:embd,2*inner+2*state+ssm_heads ssm_conv1d.weight:4,inner+2*state "
        "ssm_conv1d.bias:inner+2*state ssm_dt.bias:ssm_heads ssm_a:1,ssm_heads ssm_d:1,ssm_heads "
        "ssm_norm.weight:inner,1 ssm_out.weight:inner,embd"
    ),
    "lightning": (
        "attn_norm_2.weight:heads*head attn_qkv.weight:embd,3*heads*head "
        "attn_gate.weight:embd,heads*head attn_output.weight:heads*head,embd"
    ),
    "shortconv": (
        "shortconv.conv.weight:3,embd shortconv.in_proj.weight:embd,3*embd "
        "shortconv.out_proj.weight:embd,embd"
    ),
    # feed-forward
    "ffn_norm": "ffn_norm.weight:embd",
    "ffn_post": "post_ffw_norm.weight:embd",
    "dense": "ffn_gate.weight:embd,ff ffn_up.weight:embd,ff ffn_down.weight:ff,embd",
    "dense_no_gate": "ffn_up.weight:embd,ff ffn_down.weight:ff,embd",
    "dense_square": "ffn_gate.weight:embd,embd ffn_up.weight:embd,embd ffn_down.weight:embd,embd",
    "router": "ffn_gate_inp.weight:embd,experts",
    "up_down": "ffn_up_exps.weight:embd,ff_exp,experts ffn_down_exps.weight:ff_exp,embd,experts",
    "latent_up_down": (
        "ffn_up_exps.weight:latent,ff_exp,experts ffn_down_exps.weight:ff_exp,latent,experts"
    ),
    "gate": "ffn_gate_exps.weight:embd,ff_exp,experts",
    "latent_gate": "ffn_gate_exps.weight:latent,ff_exp,experts",
    "fused": (
        "ffn_gate_up_exps.weight:embd,2*ff_exp,experts ffn_down_exps.weight:ff_exp,embd,experts"
    ),
    "chunks": (
        "ffn_gate_chexps.weight:embd,16,experts//2 ffn_up_chexps.weight:embd,16,experts//2 "
        "ffn_down_chexps.weight:16,embd,experts//2"
    ),
    "selection": "exp_probs_b.bias:experts",
    "selection_bare": "exp_probs_b:experts",
    "selection_images": "exp_probs_b_vl.bias:experts",
    "expert_biases": (
        "ffn_gate_inp.bias:experts ffn_gate_exps.bias:ff_exp,experts "
        "ffn_up_exps.bias:ff_exp,experts ffn_down_exps.bias:embd,experts"
    ),
    "scales": "ffn_gate_exps.scale:experts ffn_up_exps.scale:experts ffn_down_exps.scale:experts",
    "down_scale": "ffn_down_exps.scale:experts",
    "shared": (
        "ffn_gate_shexp.weight:embd,ff_shexp ffn_up_shexp.weight:embd,ff_shexp "
        "ffn_down_shexp.weight:ff_shexp,embd"
    ),
    "shared_no_gate": "ffn_up_shexp.weight:embd,ff_shexp ffn_down_shexp.weight:ff_shexp,embd",
    "shared_fused": "ffn_up_shexp.weight:embd,2*ff_shexp ffn_down_shexp.weight:ff_shexp,embd",
    "shared_gate": "ffn_gate_inp_shexp.weight:embd",
    # a layer that predicts a further token
    "nextn": "nextn.eh_proj.weight:2*embd,embd nextn.enorm.weight:embd nextn.hnorm.weight:embd",
    "nextn_norm": "nextn.shared_head_norm.weight:embd",
    "layer_out": "layer_output_norm.weight:embd",
    # whole architectures' odd ones
    "norm_biases": "attn_norm.bias:embd ffn_norm.bias:embd",
    "gemma4_moe": (
        "ffn_gate_inp.scale:embd pre_ffw_norm_2.weight:embd post_ffw_norm_1.weight:embd "
        "post_ffw_norm_2.weight:embd layer_output_scale.weight:1"
    ),
    "arctic_norm": "ffn_norm_exps.weight:embd",
    "bert": (
        "attn_output_norm.weight:embd attn_output_norm.bias:embd layer_output_norm.weight:embd "
        "layer_output_norm.bias:embd"
    ),
    "res_scores": "attn_res_score.weight:embd ffn_res_score.weight:embd",
    "nemotron_latent": "ffn_latent_down.weight:embd,latent ffn_latent_up.weight:latent,embd",
    "kimi_latent": (
        "ffn_routed_down.weight:embd,latent ffn_routed_up.weight:latent,embd "
        "ffn_routed_norm.weight:latent"
    ),
    # not in a layer
    "top": "token_embd.weight:embd,vocab output_norm.weight:embd output.weight:embd,vocab",
    "top_biases": "output_norm.bias:embd output.bias:vocab",
    "top_bare": "token_embd.weight:embd,vocab output.weight:embd,vocab",
    "top_embedding": (
        "token_embd.weight:embd,vocab token_types.weight:embd,1 token_embd_norm.weight:embd "
        "token_embd_norm.bias:embd"
    ),
    "top_lfm2": "token_embd.weight:embd,vocab token_embd_norm.weight:embd output.weight:embd,vocab",
    "rope_freqs": "rope_freqs.weight:head//2",
    "res_score_out": "output_res_score.weight:embd",
}
