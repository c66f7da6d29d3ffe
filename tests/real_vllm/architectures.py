"""Architectures as their makers' config.json describes them: real attention of each layer, few layers, small
feed-forwards and vocabularies (which no cache depends on), no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SMALL = {"vocab_size": 512, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_TEXT = {**_SMALL, "intermediate_size": 256, "rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 10000.0}
_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"


def _config(architecture: str, model_type: str, **values: Any) -> Mapping[str, Any]:
    return {**_TEXT, "architectures": [architecture], "model_type": model_type, **values}


#: By name: the family that it stands for, and its configuration.
ARCHITECTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Llama-3.1-8B": (
        "dense, GQA",
        _config("LlamaForCausalLM", "llama", hidden_size=4096, num_hidden_layers=3, num_attention_heads=32,
                num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=False),
    ),
    "Llama-2-7B": (
        "dense, MHA",
        _config("LlamaForCausalLM", "llama", hidden_size=4096, num_hidden_layers=2, num_attention_heads=32,
                num_key_value_heads=32, max_position_embeddings=4096, tie_word_embeddings=False),
    ),
    "Gemma-2B": (
        "dense, MQA, tied",
        _config("GemmaForCausalLM", "gemma", hidden_size=2048, num_hidden_layers=3, num_attention_heads=8,
                num_key_value_heads=1, head_dim=256, hidden_act="gelu", hidden_activation="gelu_pytorch_tanh",
                max_position_embeddings=8192, tie_word_embeddings=True),
    ),
    "Qwen2.5-0.5B": (
        "dense, GQA, tied",
        _config("Qwen2ForCausalLM", "qwen2", hidden_size=896, num_hidden_layers=5, num_attention_heads=14,
                num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True),
    ),
    "Qwen3-8B": (
        "dense, GQA, query and key norms",
        _config("Qwen3ForCausalLM", "qwen3", hidden_size=4096, num_hidden_layers=2, num_attention_heads=32,
                num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=False),
    ),
    "OPT-125M": (
        "dense, MHA, learned positions",
        {**_SMALL, "architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": 768,
         "word_embed_proj_dim": 768, "num_hidden_layers": 4, "num_attention_heads": 12, "ffn_dim": 256,
         "max_position_embeddings": 2048, "do_layer_norm_before": True, "activation_function": "relu"},
    ),
    "Mistral-7B-v0.1": (
        "dense, GQA, a window in every layer",
        _config("MistralForCausalLM", "mistral", hidden_size=4096, num_hidden_layers=3, num_attention_heads=32,
                num_key_value_heads=8, max_position_embeddings=32768, sliding_window=4096, tie_word_embeddings=False),
    ),
    "Gemma-2-2B": (
        "a window in every second layer",
        _config("Gemma2ForCausalLM", "gemma2", hidden_size=2304, num_hidden_layers=6, num_attention_heads=8,
                num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256, sliding_window=4096,
                hidden_activation="gelu_pytorch_tanh", attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
                max_position_embeddings=8192, layer_types=[_SLIDING, _FULL] * 3),
    ),
    "Gemma-3-1B": (
        "a window in five of six layers",
        _config("Gemma3ForCausalLM", "gemma3_text", hidden_size=1152, num_hidden_layers=13, num_attention_heads=4,
                num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=512,
                hidden_activation="gelu_pytorch_tanh", max_position_embeddings=32768, rope_local_base_freq=10000.0,
                layer_types=[*([_SLIDING] * 5 + [_FULL]) * 2, _SLIDING]),
    ),
    "Mixtral-8x7B": (
        "MoE, GQA",
        _config("MixtralForCausalLM", "mixtral", hidden_size=4096, num_hidden_layers=2, num_attention_heads=32,
                num_key_value_heads=8, max_position_embeddings=32768, num_local_experts=8, num_experts_per_tok=2,
                sliding_window=None, tie_word_embeddings=False),
    ),
    "Qwen3-30B-A3B": (
        "MoE, GQA",
        _config("Qwen3MoeForCausalLM", "qwen3_moe", hidden_size=2048, num_hidden_layers=3, num_attention_heads=32,
                num_key_value_heads=4, head_dim=128, max_position_embeddings=40960, num_experts=16,
                num_experts_per_tok=8, moe_intermediate_size=128, decoder_sparse_step=1, norm_topk_prob=True,
                mlp_only_layers=[], tie_word_embeddings=False),
    ),
    "DeepSeek-V2-Lite": (
        "MoE, MLA",
        _config("DeepseekV2ForCausalLM", "deepseek_v2", hidden_size=2048, num_hidden_layers=4, num_attention_heads=16,
                num_key_value_heads=16, kv_lora_rank=512, q_lora_rank=None, qk_nope_head_dim=128, qk_rope_head_dim=64,
                v_head_dim=128, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=6, n_group=1, topk_group=1,
                moe_intermediate_size=128, first_k_dense_replace=1, moe_layer_freq=1, norm_topk_prob=False,
                routed_scaling_factor=1.0, scoring_func="softmax", topk_method="greedy",
                max_position_embeddings=8192, tie_word_embeddings=False),
    ),
    "Qwen3-Next-80B-A3B": (
        "MoE, three gated delta nets for each attention",
        _config("Qwen3NextForCausalLM", "qwen3_next", hidden_size=2048, num_hidden_layers=8, num_attention_heads=16,
                num_key_value_heads=2, head_dim=256, max_position_embeddings=8192, num_experts=8,
                num_experts_per_tok=2, moe_intermediate_size=128, shared_expert_intermediate_size=128,
                decoder_sparse_step=1, norm_topk_prob=True, mlp_only_layers=[], linear_num_value_heads=32,
                linear_num_key_heads=16, linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4,
                partial_rotary_factor=0.25, full_attention_interval=4,
                layer_types=[_LINEAR, _LINEAR, _LINEAR, _FULL] * 2, tie_word_embeddings=False),
    ),
    "Falcon-H1-0.5B": (
        "attention and Mamba-2 side by side in every layer",
        _config("FalconH1ForCausalLM", "falcon_h1", hidden_size=1024, num_hidden_layers=4, num_attention_heads=8,
                num_key_value_heads=2, head_dim=64, max_position_embeddings=16384, mamba_d_ssm=1536, mamba_d_state=128,
                mamba_d_conv=4, mamba_n_heads=24, mamba_d_head=64, mamba_n_groups=1, mamba_chunk_size=256,
                mamba_expand=2, mamba_conv_bias=True, mamba_proj_bias=False, mamba_rms_norm=False,
                tie_word_embeddings=False),
    ),
    "Granite-4.0-H-Tiny": (
        "MoE, Mamba-2 with attention now and then",
        _config("GraniteMoeHybridForCausalLM", "granitemoehybrid", hidden_size=1536, num_hidden_layers=12,
                num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=131072, num_local_experts=8,
                num_experts_per_tok=2, shared_intermediate_size=128, mamba_d_state=128, mamba_d_conv=4,
                mamba_n_heads=48, mamba_d_head=64, mamba_n_groups=1, mamba_chunk_size=256, mamba_expand=2,
                mamba_conv_bias=True, mamba_proj_bias=False, position_embedding_type="nope",
                attention_multiplier=0.0078125, embedding_multiplier=12.0, logits_scaling=6.0,
                residual_multiplier=0.22, layer_types=["mamba"] * 5 + ["attention"] + ["mamba"] * 6,
                tie_word_embeddings=True),
    ),
    "StarCoder": (
        "dense, MQA, one projection for all",
        {**_SMALL, "architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", "n_embd": 2048,
         "n_layer": 3, "n_head": 16, "n_inner": 256, "n_positions": 8192, "multi_query": True,
         "activation_function": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    ),
    "Command-R7B": (
        "a window in three of four layers",
        _config("Cohere2ForCausalLM", "cohere2", hidden_size=4096, num_hidden_layers=4, num_attention_heads=32,
                num_key_value_heads=8, head_dim=128, sliding_window=4096, max_position_embeddings=8192,
                layer_norm_eps=1e-5, logit_scale=0.25, layer_types=[_SLIDING] * 3 + [_FULL],
                tie_word_embeddings=True),
    ),
    "DeepSeek-V3": (
        "MoE, MLA with compressed queries",
        _config("DeepseekV3ForCausalLM", "deepseek_v3", hidden_size=1024, num_hidden_layers=3, num_attention_heads=16,
                num_key_value_heads=16, kv_lora_rank=512, q_lora_rank=256, qk_nope_head_dim=128, qk_rope_head_dim=64,
                v_head_dim=128, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, n_group=2, topk_group=1,
                moe_intermediate_size=128, first_k_dense_replace=1, moe_layer_freq=1, norm_topk_prob=True,
                routed_scaling_factor=2.5, scoring_func="sigmoid", topk_method="noaux_tc",
                max_position_embeddings=8192, tie_word_embeddings=False),
    ),
    "gpt-oss-20b": (
        "MoE, a window in every second layer, sinks",
        _config("GptOssForCausalLM", "gpt_oss", hidden_size=2880, num_hidden_layers=4, num_attention_heads=64,
                num_key_value_heads=8, head_dim=64, sliding_window=128, max_position_embeddings=131072,
                num_local_experts=4, num_experts_per_tok=2, attention_bias=True, swiglu_limit=7.0,
                layer_types=[_SLIDING, _FULL] * 2, tie_word_embeddings=False),
    ),
    "Jamba-Mini": (
        "MoE, Mamba with attention now and then",
        _config("JambaForCausalLM", "jamba", hidden_size=1024, num_hidden_layers=8, num_attention_heads=8,
                num_key_value_heads=2, max_position_embeddings=8192, num_experts=4, num_experts_per_tok=2,
                attn_layer_period=8, attn_layer_offset=4, expert_layer_period=2, expert_layer_offset=1,
                mamba_d_state=16, mamba_d_conv=4, mamba_expand=2, mamba_dt_rank=64, mamba_conv_bias=True,
                mamba_proj_bias=False, use_mamba_kernels=False, tie_word_embeddings=False),
    ),
    "Mamba2-780M": (
        "no attention at all",
        {**_SMALL, "architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "hidden_size": 1536,
         "num_hidden_layers": 3, "state_size": 128, "conv_kernel": 4, "expand": 2, "n_groups": 1, "num_heads": 48,
         "head_dim": 64, "chunk_size": 256, "use_conv_bias": True, "use_bias": False, "rms_norm": True,
         "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 8192},
    ),
    "LFM2-1.2B": (
        "short convolutions with attention now and then",
        _config("Lfm2ForCausalLM", "lfm2", hidden_size=2048, num_hidden_layers=6, num_attention_heads=32,
                num_key_value_heads=8, max_position_embeddings=128000, conv_L_cache=3, conv_dim=2048,
                conv_dim_out=2048, block_dim=2048, conv_bias=False,
                block_ff_dim=256, block_multiple_of=256, block_ffn_dim_multiplier=1.0, block_auto_adjust_ff_dim=False,
                norm_eps=1e-5, layer_types=["conv", "conv", _FULL, "conv", "conv", _FULL]),
    ),
}  # fmt: skip
