"""Published configurations, cut down to their shapes."""

from __future__ import annotations

from typing import Any

from agent.models.huggingface import from_config
from agent.models.profile import ModelProfile

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32, "hidden_size": 4096,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "intermediate_size": 14336,
    "tie_word_embeddings": False, "max_position_embeddings": 131072, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN3_06B = LLAMA_8B | {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 28, "hidden_size": 1024,
    "num_attention_heads": 16, "head_dim": 128, "vocab_size": 151936, "intermediate_size": 3072,
    "tie_word_embeddings": True, "max_position_embeddings": 40960,
}  # fmt: skip
QWEN3_32B = QWEN3_06B | {
    "num_hidden_layers": 64, "hidden_size": 5120, "num_attention_heads": 64, "intermediate_size": 25600,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN25_7B = LLAMA_8B | {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 28, "hidden_size": 3584,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "intermediate_size": 18944,
    "max_position_embeddings": 32768,
}  # fmt: skip
GPT_OSS_120B: dict[str, Any] = {
    "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "num_hidden_layers": 36, "hidden_size": 2880,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088,
    "intermediate_size": 2880, "num_local_experts": 128, "num_experts_per_tok": 4, "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18, "max_position_embeddings": 131072,
    "rope_theta": 150000.0, "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip
GEMMA4_26B: dict[str, Any] = {
    "model_type": "gemma4", "architectures": ["Gemma4ForConditionalGeneration"], "num_hidden_layers": 30,
    "hidden_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 262144,
    "intermediate_size": 2112, "moe_intermediate_size": 704, "num_experts": 128, "top_k_experts": 8,
    "sliding_window": 1024, "global_head_dim": 512, "num_global_key_value_heads": 2, "num_kv_shared_layers": 0,
    "layer_types": [("full_attention" if index % 6 == 5 else "sliding_attention") for index in range(30)],
    "enable_moe_block": True, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0,
    "max_position_embeddings": 262144, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "rope_theta": 10000.0,
}  # fmt: skip
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 61,
    "hidden_size": 7168, "num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 129280,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 8,
    "n_shared_experts": 1, "first_k_dense_replace": 3, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "max_position_embeddings": 163840,
    "num_nextn_predict_layers": 1, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3",
    },
}  # fmt: skip
QWEN3_NEXT: dict[str, Any] = {
    "model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"], "num_hidden_layers": 48,
    "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 151936,
    "intermediate_size": 5120, "moe_intermediate_size": 512, "num_experts": 512, "num_experts_per_tok": 10,
    "shared_expert_intermediate_size": 512, "full_attention_interval": 4, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4, "max_position_embeddings": 262144, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "rope_theta": 10000000.0,
}  # fmt: skip
ALL = {
    "llama": LLAMA_8B, "small": QWEN3_06B, "dense": QWEN3_32B, "biased": QWEN25_7B, "mxfp4": GPT_OSS_120B,
    "windows": GEMMA4_26B, "latent": DEEPSEEK_V3, "hybrid": QWEN3_NEXT,
}  # fmt: skip


def profile(config: dict[str, Any], **changes: Any) -> ModelProfile:
    return from_config(config | changes)
