"""How SGLang's exit statuses and log lines map to diagnoses. Sources of the lines: version 0.5.23.

When a child fails, the server kills itself with SIGKILL, as the kernel's OOM killer would; as a container's first
process it cannot, and exits with status 0. So neither proves anything, and the log decides.
"""

from __future__ import annotations

from agent.engines.signatures import Signature
from agent.engines.torch_failures import SIGNATURES as OF_TORCH
from agent.engines.torch_failures import by_exit_code, oom_stages
from agent.engines.torch_failures import diagnose as diagnose_torch
from agent.status import Diagnosis, DiagnosisCode, ExitStatus

_SMALLER = "lower limits.max_num_seqs, limits.max_model_len or limits.gpu_memory_utilization"
_MORE = "raise limits.gpu_memory_utilization, use more devices, or a smaller quantization"

#: The first that is found decides, so causes stand before their consequences.
SIGNATURES: tuple[Signature, ...] = (
    Signature(
        r"Port is already in use",
        DiagnosisCode.PORT_TAKEN,
        "a port that the engine wants is taken by another process",
        "free the port, or let the agent choose one with `port: auto`",
    ),
    Signature(
        r"quantization method (\S+) is not supported for the current GPU\. "
        r"Minimum capability: (\d+)\. Current capability: (\d+)",
        DiagnosisCode.DEVICE_UNSUPPORTED,
        "{0} weights need a compute capability of {1} (in tenths), and the device has {2}",
        "use another variant of the model, or a newer device",
    ),
    Signature(
        r"Quantization scheme is not supported for|SGLang only supports sm(\d+) and above",
        DiagnosisCode.DEVICE_UNSUPPORTED,
        "SGLang does not run these weights on the device",
        "use another variant of the model, or a newer device; `agentctl plan` says which engines run it here",
    ),
    Signature(
        r"Model architectures \[(.+?)\] are not supported for now",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "this version of SGLang does not know the architecture {0}",
        "use a newer SGLang, or another engine",
    ),
    Signature(
        r"(?:Unknown|Invalid) quantization method|quantization is currently not supported",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "SGLang does not know how the weights are quantized, or not on this kind of device",
        "use another variant of the model, or another engine",
    ),
    Signature(
        r"context_length \((\d+)\) is greater than the derived context_length \((\d+)\)",
        DiagnosisCode.BAD_FLAG,
        "the context of {0} tokens is longer than the model's {1}",
        "lower limits.max_model_len",
    ),
    Signature(
        r"AssertionError: (\d+) is not divisible by (\d+)|must be divisible by (?:tp_size|moe_tp_size) \((\d+)\)",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "the model's shapes do not divide by the number of devices",
        "use another number of devices",
    ),
    Signature(
        r"Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=([\d.]+)",
        DiagnosisCode.CACHE_TOO_SMALL,
        "the weights leave nothing of the engine's share ({0} of what was free) to the cache",
        _MORE,
    ),
    Signature(
        r"Not enough memory\. Please try to increase --mem-fraction-static",
        DiagnosisCode.CACHE_TOO_SMALL,
        "the weights leave too little of the engine's share to the cache",
        _MORE,
    ),
    Signature(
        r"Hybrid \(mamba/linear-attention\) state cache is too small",
        DiagnosisCode.CACHE_TOO_SMALL,
        "the recurrent states of one request do not fit what the weights leave",
        _MORE,
    ),
    Signature(
        r"Capture .*(?:cuda|CUDA) graph failed: .*out of memory",
        DiagnosisCode.DEVICE_OOM,
        "the device's memory was exhausted while CUDA graphs were captured, after the cache was allocated",
        "lower limits.gpu_memory_utilization or limits.max_num_seqs",
    ),
    *OF_TORCH,
    Signature(
        r"[Ww]atchdog timeout \(",
        DiagnosisCode.INFERENCE_HANG,
        "the engine's own watchdog ended it: a batch did not come back",
        "see the devices' condition with `agentctl devices`; a newer engine or driver may help",
    ),
    Signature(
        r"scheduler died during initialization \(exit code: -9\)",
        DiagnosisCode.HOST_OOM,
        "a process of the engine was killed while it loaded, most often because host memory was exhausted",
        "raise limits.memory_bytes, or free host memory; the kernel's log tells",
    ),
    *by_exit_code(
        r"scheduler died during initialization \(exit code: |Subprocess \S+ \(pid=\d+\) crashed with exit code "
    ),
    Signature(
        r"Received sigquit from a child process|Scheduler hit an exception|Initialization failed",
        DiagnosisCode.CRASHED,
        "a process of the engine failed and took the others with it",
        _SMALLER,
    ),
)
#: Its own warm-up asks /generate; requests of others come after it.
_STAGES = oom_stages(
    loading=r"Load weight begin",
    loaded=r"Load weight end",
    serving=r'fired up and ready to roll|Decode batch|"POST /v1/',
)


def diagnose(exit_status: ExitStatus, log_tail: str) -> Diagnosis:
    """Why it ended unasked."""
    return diagnose_torch(exit_status, log_tail, SIGNATURES, kills_itself=True, stages=_STAGES)
