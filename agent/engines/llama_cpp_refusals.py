"""Which of llama-server's flags a deployment may not give, and why: data for the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_MODEL = "`model` decides it"
_DEVICES = "`devices` decides it"
_DOWNLOAD = "it downloads; `model` names what is fetched and verified"
_BUDGET = "its memory is not part of the plan's budget"
_EXECUTES = "it gives whoever reaches the port commands or files of this host"
_LOGS = "the agent keeps the engine's log and reads failures from it"
_KEY = "a key would stand in the process list; use `secrets` with LLAMA_API_KEY"
_PROBES = "the agent's probes would not reach the server any more"
_ROUTER = "an instance serves the one model of its deployment"
_ENDS = "it prints something and exits instead of serving"
_OWNED = "the agent sets it"

#: Spellings (all aliases of each are meant) -> why it is refused.
REFUSED_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "--model": _MODEL,
        "--alias": "`served_name` decides it",
        "--host": "the node's `policy.bind` decides it",
        "--port": "`port` decides it",
        "--ctx-size": "`limits.max_model_len` decides it (per sequence)",
        "--parallel": "`limits.max_num_seqs` decides it",
        "--batch-size --ubatch-size": "the plan decides it: it sizes the compute buffers",
        "--threads": "`limits.threads` decides it",
        "--cache-type-k --cache-type-v": "`limits.kv_cache_dtype` decides it",
        "--embedding --rerank": "`task` decides it",
        "--kv-unified --fit --fit-target --fit-ctx --flash-attn": "the plan's memory and limits depend on it",
        "--cache-ram --ctx-checkpoints --swa-full": _BUDGET,
        "--mmproj --lora --lora-scaled --control-vector --control-vector-scaled": _BUDGET,
        "--spec-draft-model --spec-default": _BUDGET,
        "--metrics --slots --offline --sse-ping-interval --ui": _OWNED,
        "--device --gpu-layers --split-mode --tensor-split --main-gpu --cpu-moe --n-cpu-moe": _DEVICES,
        "--override-tensor --spec-draft-device": _DEVICES,
        "--rpc": "it computes on other hosts",
        "--model-url --docker-repo --hf-repo --hf-file --mmproj-url --spec-draft-hf": _DOWNLOAD,
        "--embd-gemma-default --fim-qwen-1.5b-default --fim-qwen-3b-default --fim-qwen-7b-default": _DOWNLOAD,
        "--fim-qwen-7b-spec --fim-qwen-14b-spec --fim-qwen-30b-default --gpt-oss-20b-default": _DOWNLOAD,
        "--gpt-oss-120b-default --vision-gemma-4b-default --vision-gemma-12b-default": _DOWNLOAD,
        "--tools --tools-runtime --mcp-servers-config --mcp-servers-json --agent --ui-mcp-proxy": _EXECUTES,
        "--media-path --path --slot-save-path --props": _EXECUTES,
        "--log-disable --log-file --log-prompts-dir": _LOGS,
        "--lookup-cache-static --lookup-cache-dynamic": "it writes files outside the instance's directory",
        "--api-key --api-key-file --hf-token": _KEY,
        "--ssl-key-file --ssl-cert-file --api-prefix --reuse-port": _PROBES,
        "--sleep-idle-seconds": "the model would be unloaded while the deployment is shown as ready",
        "--models-dir --models-preset --models-max --models-autoload": _ROUTER,
        "--help --version --cache-list --completion-bash --list-devices": _ENDS,
    }
)
