"""Which flags and variables of vLLM a deployment may not give, and why: data for the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_MODEL = "`model` decides it"
_DEVICES = "`devices` decides it"
_BUDGET = "its memory is not part of the plan's budget"
_PLAN = "the plan's memory and limits depend on it"
_EXECUTES = "it runs Python code that is not vLLM's"
_REACHES = "it gives whoever reaches the port files or commands of this host"
_KEY = "a key would stand in the process list; use `secrets` with VLLM_API_KEY"
_TOKEN = "a token would stand in the process list; use `secrets` with HF_TOKEN"
_PROBES = "the agent's probes would not reach the server any more"
_NODES = "an instance runs on one node"
_LOGS = "the agent keeps the engine's log and reads sizes and failures from it"
_OWNED = "the agent sets it"

#: Spellings (all aliases of each are meant) -> why it is refused.
REFUSED_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "--model --revision --code-revision --tokenizer-revision --hf-config-path --load-format": _MODEL,
        "--config": "a file of flags would not be checked",
        "--served-model-name": "`served_name` decides it",
        "--host": "the node's `policy.bind` decides it",
        "--port": "`port` decides it",
        "--max-model-len": "`limits.max_model_len` decides it",
        "--max-num-seqs": "`limits.max_num_seqs` decides it",
        "--max-num-batched-tokens": "the plan decides it: it sizes the activations",
        "--gpu-memory-utilization": "`limits.gpu_memory_utilization` decides it",
        "--kv-cache-memory-bytes --num-gpu-blocks-override --block-size --dtype": _PLAN,
        "--performance-mode --hf-overrides --model-class-overrides --quantization --quantization-config": _PLAN,
        "--mamba-cache-dtype --mamba-ssm-cache-dtype --mamba-block-size --mamba-cache-mode": _PLAN,
        "--disable-hybrid-kv-cache-manager --disable-sliding-window --kv-cache-dtype-skip-layers": _PLAN,
        "--kv-cache-dtype": "`limits.kv_cache_dtype` decides it",
        "--runner --convert": "`task` decides it",
        "--tensor-parallel-size --pipeline-parallel-size --data-parallel-size --device-ids": _DEVICES,
        "--decode-context-parallel-size --prefill-context-parallel-size --distributed-executor-backend": _DEVICES,
        "--data-parallel-rank --data-parallel-start-rank --data-parallel-size-local --data-parallel-address": _NODES,
        "--data-parallel-rpc-port --data-parallel-backend --data-parallel-hybrid-lb --headless": _NODES,
        "--data-parallel-external-lb --data-parallel-multi-port-external-lb --enable-elastic-ep": _NODES,
        "--data-parallel-supervisor-port --elastic-ep-max-dp-size": _NODES,
        "--master-addr --master-port --nnodes --node-rank": _NODES,
        "--kv-transfer-config --kv-events-config --ec-transfer-config --weight-transfer-config": _NODES,
        "--cpu-offload-gb --cpu-offload-params --offload-backend --offload-group-size --offload-params": _BUDGET,
        "--offload-num-in-group --offload-prefetch-step --kv-offloading-size --kv-offloading-backend": _BUDGET,
        "--default-mm-loras --mm-ipc-gpu-memory-gb --engram-config --diffusion-config": _BUDGET,
        "--enable-sleep-mode --enable-cumem-allocator --enable-nccl-comm-suspend": "the memory of a sleeping engine "
        "would look free while the deployment is shown as ready",
        "--download-dir": "the agent fetches and verifies what `model` names",
        "--api-key": _KEY,
        "--hf-token": _TOKEN,
        "--ssl-keyfile --ssl-certfile --ssl-ca-certs --ssl-cert-reqs --uds --root-path --grpc --grpc-port": _PROBES,
        "--tokens-only --enable-scale-out --skip-tokenizer-init": "the requests of clients and probes would be refused",
        "--middleware --tool-parser-plugin --reasoning-parser-plugin --io-processor-plugin": _EXECUTES,
        "--worker-cls --worker-extension-cls --scheduler-cls --logits-processors --additional-config": _EXECUTES,
        "--ec-manager-config --profiler-config": _EXECUTES,
        "--allowed-local-media-path --tool-server --trust-request-chat-template": _REACHES,
        "--trust-request-mm-kwargs --enable-tokenizer-info-endpoint": _REACHES,
        "--log-config-file --logging-config --log-level --aggregate-engine-logging --uvicorn-log-level": _LOGS,
        "--disable-log-stats": "the agent reads from the metrics whether the engine is idle",
        "--shutdown-timeout --disable-access-log-for-endpoints": _OWNED,
        "--api-server-count": "the metrics of several servers cannot be read as one",
        "--help": "it prints something and exits instead of serving",
    }
)

_MEMORY = "the plan's memory depends on it"

#: Names of environment variables -> why they are refused.
REFUSED_VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "a context that the model was not made for gives wrong answers; what "
        "extends it stands in its config.json",
        "VLLM_SERVER_DEV_MODE": "it opens endpoints that reset the engine, for everybody who reaches the port",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": _REACHES,
        "VLLM_ALLOW_INSECURE_SERIALIZATION": _EXECUTES,
        "VLLM_PLUGINS": _EXECUTES,
        "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "a server without an engine would look alive",
        "VLLM_ENABLE_STARTUP_PLAN": _MEMORY,
        "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": _MEMORY,
        "VLLM_USE_V2_MODEL_RUNNER": _MEMORY,
        "VLLM_MLA_DISABLE": _MEMORY,
        "VLLM_CPU_KVCACHE_SPACE": _MEMORY,
        "VLLM_CPU_OMP_THREADS_BIND": "`limits.threads` decides it",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "`limits.threads` decides it",
        "OMP_NUM_THREADS": "`limits.threads` decides it",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "the agent knows how the server's processes end",
        "VLLM_USE_RUST_FRONTEND": "its probes and metrics were not read",
        "VLLM_RUST_FRONTEND_PATH": _EXECUTES,
        "VLLM_TEST_FORCE_LOAD_FORMAT": _MODEL,
        "VLLM_MODEL_REDIRECT_PATH": _MODEL,
        "VLLM_USE_MODELSCOPE": "it downloads; `model` names what is fetched and verified",
        "VLLM_CONFIGURE_LOGGING": _LOGS,
        "VLLM_LOGGING_CONFIG_PATH": _LOGS,
        "VLLM_LOGGING_STREAM": _LOGS,
        "VLLM_PP_LAYER_PARTITION": _DEVICES,
        "VLLM_DP_RANK": _NODES,
        "VLLM_DP_RANK_LOCAL": _NODES,
        "VLLM_DP_SIZE": _NODES,
        "VLLM_DP_MASTER_IP": _NODES,
        "VLLM_DP_MASTER_PORT": _NODES,
        "VLLM_PORT": "its processes take free ports of their own",
        "VLLM_RPC_BASE_PATH": _OWNED,
        "VLLM_ENGINE_READY_TIMEOUT_S": "`probes.startup` decides how long loading may take",
        "VLLM_NO_USAGE_STATS": _OWNED,
        "HF_HUB_OFFLINE": _OWNED,
    }
)
