"""How vLLM's ends and log lines map to diagnoses. Real logs (version 0.32): tests/engines/data/vllm-*.log.

A server is several processes: when one dies, the others end by themselves, the API server with status 0. Its last line
is a wrapper ("Engine core initialization failed. See root cause above"); the cause stands before it.
"""

from __future__ import annotations

import re

from agent.engines import torch_failures
from agent.engines.signatures import Signature
from agent.status import Diagnosis, DiagnosisCode, ExitStatus

_SMALLER = "lower limits.max_num_seqs or limits.gpu_memory_utilization: this is taken on top of the cache"
_OTHERS = "see `agentctl devices` for who holds its memory; lower limits.gpu_memory_utilization"

#: Before those of every engine on PyTorch. The first that is found decides.
SIGNATURES: tuple[Signature, ...] = (
    Signature(
        r"Free memory on device .* on startup is less than desired GPU memory utilization \(([\d.]+), ([\d.]+) GiB\)",
        DiagnosisCode.DEVICE_OOM,
        "less memory of the device is free than the {1} GiB that the engine was told to use",
        _OTHERS,
    ),
    Signature(
        r"Error in memory profiling\. Initial free memory",
        DiagnosisCode.DEVICE_OOM,
        "somebody else gave back or took memory of the device while it was measured",
        _OTHERS,
    ),
    Signature(
        r"Available memory on node \S+ .* is less than (?:requested memory for kv|desired CPU memory utilization)",
        DiagnosisCode.HOST_OOM,
        "the host has less memory free than the cache was to take",
        "lower limits.max_num_seqs or limits.max_model_len, or end what holds the memory",
    ),
    Signature(
        r"To serve at least one request with the models?'?s? max seq len \((\d+)\), \(([\d.]+) GiB KV cache is needed, "
        r"which is larger than the available KV cache memory \(([\d.]+) GiB\)",
        DiagnosisCode.CACHE_TOO_SMALL,
        "one request of {0} tokens needs {1} GiB of cache, and {2} GiB are left for it",
        "lower limits.max_model_len, or raise limits.gpu_memory_utilization; the log names the longest that would fit",
    ),
    Signature(
        r"No available memory for the cache blocks",
        DiagnosisCode.CACHE_TOO_SMALL,
        "weights and activations leave nothing for the cache",
        "raise limits.gpu_memory_utilization, lower limits.max_num_seqs, or use more devices or a smaller quantization",
    ),
    Signature(
        r"Failed to load model - not enough GPU memory",
        DiagnosisCode.DEVICE_OOM,
        "the device's memory was exhausted while the weights were loaded",
        "use more devices, or a smaller quantization; or end what else holds the device's memory",
    ),
    Signature(
        r"CUDA out of memory occurred when warming up (?:sampler|pooler) with (\d+) dummy requests",
        DiagnosisCode.DEVICE_OOM,
        "the device's memory was exhausted at the warm-up with {0} sequences",
        _SMALLER,
    ),
    Signature(
        r"User-specified max_model_len \((\d+)\) is greater than the derived max_model_len \((?:\S+=)?(\d+)",
        DiagnosisCode.BAD_FLAG,
        "a context of {0} tokens is longer than the {1} that the model was trained for",
        "lower limits.max_model_len",
    ),
    Signature(
        r"quantization method (\S+) is not supported for the current GPU\. Minimum capability: (\d+)\. "
        r"Current capability: (\d+)",
        DiagnosisCode.DEVICE_UNSUPPORTED,
        "{0} weights need compute capability {1}, and the device has {2}",
        "use another quantization, or another device; `agentctl plan` says which run here",
    ),
    Signature(
        r"Quantization scheme is not supported for the current GPU|kernel .* not supported on .* compute capability",
        DiagnosisCode.DEVICE_UNSUPPORTED,
        "the device cannot run these quantized weights",
        "use another quantization, or another device; `agentctl plan` says which run here",
    ),
    Signature(
        r"Bfloat16 is only supported on GPUs with compute capability of at least|on CPU requires (x86 with AVX-512.*)",
        DiagnosisCode.DEVICE_UNSUPPORTED,
        "the device cannot compute in the type that was asked for",
        "use limits.kv_cache_dtype `auto`, another variant, or another device",
    ),
    Signature(
        r"Unknown quantization method: (\S+?)\.? |quantization is currently not supported in (\S+?)\.",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "this build of vLLM does not know how the weights are quantized",
        "use another variant; GGUF and bitsandbytes need plugins of vLLM that the agent does not use",
    ),
    Signature(
        r"Model architectures (\[.*?\]) (?:are not supported for now|failed to be inspected)",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "this version of vLLM does not know the architecture {0}",
        "use a newer vLLM, or another engine",
    ),
)
#: The newest lines of a server tell of requests; the first ones, of its start.
_STAGES = torch_failures.oom_stages(
    loading=r"Starting to load model|Loading safetensors checkpoint shards",
    loaded=r"Model loading took",
    serving=r'Application startup complete|Avg prompt throughput|"(?:GET|POST) /',
)
#: What is left where neither the above nor torch's lines, which name the cause, are in the log: that there is no
#: device, or which part died.
_PARTS: tuple[Signature, ...] = (
    Signature(
        r"Failed to infer device type",
        DiagnosisCode.DEVICE_UNSUPPORTED,
        "this build of vLLM finds no device that it was made for",
        "see `agentctl doctor`; a build for the CPU is another package than one for CUDA",
    ),
    *torch_failures.by_exit_code(r"Worker proc \S+ died unexpectedly \(exit code: |Failed core proc\(s\): \{.*'\w+': "),
    Signature(
        r"Worker proc (\S+) died unexpectedly",
        DiagnosisCode.CRASHED,
        "its worker process {0} died, and the server ended",
        "the kernel's log tells whether it was out of memory",
    ),
    Signature(
        r"engine core exited unexpectedly|EngineCore encountered (?:a fatal error|an issue)",
        DiagnosisCode.CRASHED,
        "its engine core died, and the server ended",
        "the kernel's log tells whether it was out of memory",
    ),
)
#: Errors that only wrap the cause.
_TELLING = re.compile(
    r"^(?!.*(?:Engine core initialization failed|EngineDeadError|See root cause|WorkerProc initialization failed))"
    rf"(?:{torch_failures.TELLING.pattern})"
)


def diagnose(exit_status: ExitStatus, log_tail: str) -> Diagnosis:
    """Why it ended unasked."""
    table = (*SIGNATURES, *torch_failures.SIGNATURES, *_PARTS)
    return torch_failures.diagnose(exit_status, log_tail, table, telling=_TELLING, stages=_STAGES)
