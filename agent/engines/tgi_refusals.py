"""Which of TGI's flags a deployment may not give, and why: data for the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_MODEL = "`model` decides it"
_DEVICES = "`devices` decides it"
_BUDGET = "its memory is not part of the plan's budget"
_DOWNLOAD = "it downloads; `model` names what is fetched and verified"
_KEY = "a key would stand in the process list; use `secrets` with API_KEY"
_TUNNEL = "it opens the server to the internet"
_ENDS = "it prints something and exits instead of serving"
_OWNED = "the agent sets it"

#: Spellings (all aliases of each are meant) -> why it is refused.
REFUSED_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "--model-id --revision": _MODEL,
        "--hostname": "the node's `policy.bind` decides it",
        "--port": "`port` decides it",
        "--max-total-tokens --max-input-tokens --max-input-length": "`limits.max_model_len` decides it",
        "--max-batch-size --max-concurrent-requests": "`limits.max_num_seqs` decides it",
        "--max-batch-prefill-tokens": "the plan decides it: it sizes the activations",
        "--max-batch-total-tokens --cuda-memory-fraction": "the plan computes it from `limits.gpu_memory_utilization`",
        "--kv-cache-dtype": "`limits.kv_cache_dtype` decides it",
        "--quantize": "the variant that `model` names decides it",
        "--sharded --num-shard": _DEVICES,
        "--lora-adapters --speculate --cuda-graphs": _BUDGET,
        "--huggingface-hub-cache --weights-cache-override": _DOWNLOAD,
        "--api-key --ngrok-authtoken": _KEY,
        "--ngrok --ngrok-edge": _TUNNEL,
        "--shard-uds-path --master-addr --master-port --prometheus-port --usage-stats --json-output": _OWNED,
        "--env --help --version": _ENDS,
    }
)
