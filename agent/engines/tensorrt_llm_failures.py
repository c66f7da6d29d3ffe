"""How trtllm-serve's exit statuses and log lines map to diagnoses. Sources: `commands/serve.py`, `executor/proxy.py`,
`_torch/pyexecutor/_util.py`, `_torch/model_config.py`, `cpp/tensorrt_llm/batch_manager/kvCacheManager.cpp`.
"""

from __future__ import annotations

from agent.engines.signatures import Signature
from agent.engines.torch_failures import SIGNATURES as OF_TORCH
from agent.engines.torch_failures import diagnose as diagnose_torch
from agent.engines.torch_failures import oom_stages
from agent.status import Diagnosis, DiagnosisCode, ExitStatus

_MORE = "raise limits.gpu_memory_utilization, lower limits.max_model_len, or use more devices"

#: The first that is found decides, so causes stand before their consequences.
SIGNATURES: tuple[Signature, ...] = (
    Signature(
        r"Failed to bind socket to (\S+):(\d+)",
        DiagnosisCode.PORT_TAKEN,
        "port {1} on {0} is taken by another process",
        "free the port, or let the agent choose one with `port: auto`",
    ),
    Signature(
        r"No such option:? '?(--?[\w-]+)",
        DiagnosisCode.BAD_FLAG,
        "this version of trtllm-serve does not know the argument {0}",
        "use TensorRT-LLM 1.3 or newer; if the argument stands in extra_args, remove it",
    ),
    Signature(
        r"Invalid value for '?([^':]+)'?: (.+)",
        DiagnosisCode.BAD_FLAG,
        "the engine refused the value of {0} ({1})",
        "correct it in extra_args",
    ),
    Signature(
        r"No GPU devices found on the node",
        DiagnosisCode.DEVICE_FAILED,
        "the engine finds no device",
        "see `agentctl devices` and `agentctl doctor`: the device or its driver may have failed since the plan",
    ),
    Signature(
        r"Unknown architecture for AutoModelForCausalLM: (\S+)|Unknown architecture: (\S+)",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "this version of TensorRT-LLM does not know the model's architecture",
        "use a newer TensorRT-LLM, or another engine",
    ),
    Signature(
        r"NotImplementedError: Unsupported quantization_config: (.*)|Unsupported quant(?:ization)?[ _]algo",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "TensorRT-LLM does not read weights that are quantized like this",
        "use a variant in FP8, NVFP4 or 16 bit, or another engine",
    ),
    Signature(
        r"(?:Insufficient|[Nn]ot enough) (?:memory|space) .*(?:KV|kv)|Impossible to fit in any sequence|"
        r"[Aa]ttention window .*too large to fit",
        DiagnosisCode.CACHE_TOO_SMALL,
        "the cache that is left does not hold one request of the longest length",
        _MORE,
    ),
    Signature(
        # Of "Executor creation failed due to insufficient GPU memory" (`_torch/pyexecutor/py_executor_creator.py`).
        r"The following component could not be created: (.+)",
        DiagnosisCode.DEVICE_OOM,
        "the device's memory was exhausted at the start, when this was created: {0}",
        "lower limits.max_num_seqs or limits.gpu_memory_utilization; if it is the model, use more devices or a smaller "
        "quantization; `agentctl devices` tells whether others hold the memory",
    ),
    *OF_TORCH,
    Signature(
        r"\[TensorRT-LLM\]\[ERROR\].*(?:CUDA runtime error|cudaMalloc).*out of memory",
        DiagnosisCode.DEVICE_OOM,
        "the device's memory was exhausted",
        "lower limits.max_num_seqs, limits.max_model_len or limits.gpu_memory_utilization",
    ),
    Signature(
        r"\[TensorRT-LLM\]\[ERROR\].*CUDA runtime error in (.+)",
        DiagnosisCode.DEVICE_FAILED,
        "the device failed: {0}",
        "see `agentctl devices` for its condition, and the kernel's log",
    ),
    Signature(
        r"MPI_ABORT was invoked|mpirun noticed that process rank|PMIX ERROR",
        DiagnosisCode.CRASHED,
        "a rank of the engine failed and took the others with it",
        "the lines before it name the cause",
    ),
    Signature(
        r"Executor worker returned error|Executor worker died during initialization",
        DiagnosisCode.CRASHED,
        "a process of the engine failed while it started",
        "the traceback before it names the cause",
    ),
)
_STAGES = oom_stages(
    loading=r"GB for model weights|Loading safetensors weights|Loading weights:",
    loaded=r"Model init total|Memory used after loading model weights",
    serving=r'Application startup complete|"(?:GET|POST) /',
)


def diagnose(exit_status: ExitStatus, log_tail: str) -> Diagnosis:
    """Why it ended unasked."""
    return diagnose_torch(exit_status, log_tail, SIGNATURES, stages=_STAGES)
