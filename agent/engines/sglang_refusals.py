"""Which of SGLang's flags a deployment may not give, and why: data for the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_MODEL = "`model` decides it"
_DEVICES = "`devices` decides it"
_DOWNLOAD = "it downloads; `model` names what is fetched and verified"
_BUDGET = "its memory is not part of the plan's budget"
_SHARE = "the plan computes it from `limits.gpu_memory_utilization`"
_EXECUTES = "it runs code that is not the engine's"
_SENDS = "it gives whoever reaches the port code or files of this host"
_WRITES = "it writes files outside the instance's directory"
_TEXTS = "it writes what clients send to disk"
_KEY = "a key would stand in the process list; SGLang reads it from nowhere else: put a gateway before it"
_PROBES = "the agent's probes would not reach the server any more"
_PART = "an instance is a whole server on one node"
_ENDS = "it prints something and exits instead of serving"
_OWNED = "the agent sets it"

#: Spellings (all aliases of each are meant) -> why it is refused.
REFUSED_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "--model-path --revision": _MODEL,
        "--served-model-name": "`served_name` decides it",
        "--host": "the node's `policy.bind` decides it",
        "--port": "`port` decides it",
        "--context-length": "`limits.max_model_len` decides it",
        "--max-running-requests": "`limits.max_num_seqs` decides it",
        "--chunked-prefill-size --max-prefill-tokens": "the plan decides it: it sizes the activations",
        "--kv-cache-dtype": "`limits.kv_cache_dtype` decides it",
        "--mem-fraction-static --max-total-tokens": _SHARE,
        "--is-embedding": "`task` decides it",
        "--quantization --modelopt-quant --quantize-and-serve": "the variant that `model` names decides it",
        "--tp-size --pp-size --dp-size --attn-dp-size --enable-dp-attention --dcp-size": _DEVICES,
        "--attn-cp-size --moe-dp-size --dwdp-size --device --base-gpu-id --gpu-id-step": _DEVICES,
        "--enable-metrics --uvicorn-access-log-exclude-prefixes": _OWNED,
        "--cpu-offload-gb --offload-group-size --offload-num-in-group --offload-prefetch-step": _BUDGET,
        "--enable-hierarchical-cache --hicache-ratio --hicache-size --enable-lmcache --enable-flexkv": _BUDGET,
        "--enable-lora --lora-paths --max-loaded-loras --max-loras-per-batch --max-lora-rank": _BUDGET,
        "--speculative-draft-model-path --speculative-algorithm --enable-memory-saver": _BUDGET,
        "--enable-weights-cpu-backup --kt-weight-path --enable-symm-mem --ple-offload-embedding": _BUDGET,
        "--cuda-graph-max-bs-decode --cuda-graph-bs-decode --mamba-full-memory-ratio": _BUDGET,
        "--custom-weight-loader --forward-hooks --sidecar --sidecar-args --msprobe-dump-config": _EXECUTES,
        "--enable-custom-logit-processor --tool-server --trust-request-chat-template": _SENDS,
        "--file-storage-path --crash-dump-folder --export-metrics-to-file --export-metrics-to-file-dir": _WRITES,
        "--debug-tensor-dump-output-folder --spec-trace-dir --modelopt-export-path": _WRITES,
        "--delete-ckpt-after-loading": "it deletes the model's files, which are not the engine's",
        "--log-requests --log-requests-target": _TEXTS,
        "--download-dir --modelexpress-config": _DOWNLOAD,
        "--api-key --admin-api-key": _KEY,
        "--ssl-keyfile --ssl-certfile --ssl-ca-certs --ssl-keyfile-password --fastapi-root-path": _PROBES,
        "--grpc-mode --smg-grpc-mode --skip-server-warmup": _PROBES,
        "--log-level": "the agent reads memory and failures from the log at the level info",
        "--nnodes --node-rank --dist-init-addr --use-ray --disaggregation-mode --encoder-only --language-only": _PART,
        "--config": "flags are given in `extra_args`, where they are checked",
        "--help": _ENDS,
    }
)
