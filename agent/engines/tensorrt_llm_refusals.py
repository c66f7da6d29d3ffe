"""Which of trtllm-serve's flags a deployment may not give, and why: data for the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_MODEL = "`model` decides it"
_DEVICES = "`devices` decides it"
_EXECUTES = "it runs code that is not the engine's"
_PROBES = "the agent's probes would not reach the server any more"
_PART = "an instance is a whole server on one node"
_OWNED = "the agent sets it"

#: Spellings (all aliases of each are meant) -> why it is refused.
REFUSED_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "--revision": _MODEL,
        "--served_model_name": "`served_name` decides it",
        "--host": "the node's `policy.bind` decides it",
        "--port": "`port` decides it",
        "--max_seq_len": "`limits.max_model_len` decides it",
        "--max_batch_size": "`limits.max_num_seqs` decides it",
        "--max_num_tokens --max_beam_width": "the plan decides it: it sizes the activations",
        "--kv_cache_dtype": "`limits.kv_cache_dtype` decides it",
        "--kv_cache_free_gpu_memory_fraction": "the plan computes it from `limits.gpu_memory_utilization`",
        "--tp_size --pp_size --cp_size --gpus_per_node --cluster_size": _DEVICES,
        "--enable_attention_dp": "it changes how weights and cache are spread, which the plan counts",
        "--backend": "only the PyTorch backend is left, and AutoDeploy uses memory in another way",
        "--config": "it overrides the flags that the plan computes",
        "--telemetry": _OWNED,
        "--log_level": "the agent reads memory and failures from the log at the level info",
        "--grpc --server_role --disagg_cluster_uri --metadata_server_config_file": _PART,
        "--enable_visual_gen --visual_gen_args": "it serves another kind of model",
        "--custom_module_dirs --middleware --post_processor_hook --custom_tokenizer": _EXECUTES,
        "--allow_request_chat_template": "it gives whoever reaches the port templates that run in the engine",
        "--help": "it prints something and exits instead of serving",
    }
)
