"""How TGI's exit statuses and log lines map to diagnoses. Sources (version 3.3.7): `launcher/src/main.rs`,
`backends/v3/src/lib.rs`, `models/flash_causal_lm.py`, `models/__init__.py`.

The launcher ends with status 1 when a shard or the router does; their last lines stand in its log.
"""

from __future__ import annotations

import re

from agent.engines.signatures import Signature
from agent.engines.torch_failures import SIGNATURES as OF_TORCH
from agent.engines.torch_failures import TELLING, oom_stages
from agent.engines.torch_failures import diagnose as diagnose_torch
from agent.status import Diagnosis, DiagnosisCode, ExitStatus

#: The first that is found decides, so causes stand before their consequences.
SIGNATURES: tuple[Signature, ...] = (
    Signature(
        r"error: unexpected argument '(\S+)' found",
        DiagnosisCode.BAD_FLAG,
        "the engine does not know the argument {0}",
        "remove it from extra_args; another version of the engine may know it",
    ),
    Signature(
        r"error: invalid value '(.*)' for '(\S+) .*'",
        DiagnosisCode.BAD_FLAG,
        "the engine refused the value {0} of {1}",
        "correct it in extra_args",
    ),
    Signature(
        r"ArgumentValidation\(\"(.+)\"\)|Invalid argument: (.+)",
        DiagnosisCode.BAD_FLAG,
        "the engine's limits contradict each other",
        "correct extra_args; the log says which",
    ),
    Signature(
        r"Not enough memory to handle (\d+) prefill tokens|Not enough memory to handle `max_total_tokens=(\d+)`",
        DiagnosisCode.CACHE_TOO_SMALL,
        "what the weights leave holds neither the largest prefill nor one request of the longest length",
        "raise limits.gpu_memory_utilization, lower limits.max_model_len, or use more devices",
    ),
    Signature(
        r"`num_heads` must be divisible by `num_shards` \(got `num_heads`: (\d+) and `num_shards`: (\d+)",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "{0} attention heads do not divide by {1} devices",
        "use another number of devices",
    ),
    Signature(
        r"NotEnoughCUDADevices|not enough cuda devices",
        DiagnosisCode.DEVICE_FAILED,
        "the engine finds fewer devices than it was given",
        "see `agentctl devices` and `agentctl doctor`: a device or its driver may have failed since the plan",
    ),
    Signature(
        r"Unsupported model type (\S+)|requires Flash Attention enabled models",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "TGI does not know the model's architecture, or not on this device",
        "use another engine: TGI gets no new models",
    ),
    Signature(
        r"Unknown quantization method: (\S+)|quantization is not supported",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "TGI does not know how the weights are quantized, or not for this model",
        "use another variant of the model, or another engine",
    ),
    *OF_TORCH,
    Signature(
        r"text-generation-(\w+) not found in PATH",
        DiagnosisCode.BINARY_MISSING,
        "TGI's {0} is not installed beside its launcher",
        "install all of TGI, or use its image",
    ),
    Signature(
        r"Shard process was signaled to shutdown with signal (\d+)",
        DiagnosisCode.CRASHED,
        "a shard was ended by signal {0}",
        "signal 9 while it loads is most often the kernel's answer to exhausted host memory",
    ),
    Signature(
        r"Download encountered an error",
        DiagnosisCode.MODEL_MISSING,
        "the engine wanted to fetch files that are not on this node",
        "fetch the model again: its files are not what was published",
    ),
    Signature(
        r"Shard \d+ (?:failed to start|crashed)|ShardCannotStart|ShardFailed|WebserverFailed|Webserver Crashed",
        DiagnosisCode.CRASHED,
        "a process of the engine failed and took the others with it",
        "the lines before it name the cause",
    ),
)
#: What ends every failed start says nothing of its cause.
_TELLING = re.compile(rf"(?!.*(?:ShardCannotStart|failed to start))(?:{TELLING.pattern})")
_STAGES = oom_stages(
    loading=r"Starting shard|Waiting for shard",
    loaded=r"Shard ready in|Warming up model",
    serving=r"server\.rs:\d+: (?:Connected|Success)|\b(?:generate|completions|chat_completions)\w*\{",
)


def diagnose(exit_status: ExitStatus, log_tail: str) -> Diagnosis:
    """Why it ended unasked."""
    return diagnose_torch(exit_status, log_tail, SIGNATURES, telling=_TELLING, stages=_STAGES)
