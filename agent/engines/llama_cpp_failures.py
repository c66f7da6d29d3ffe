"""How llama-server's exit statuses and log lines map to diagnoses. Excerpts of real logs: tests/engines/data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from agent.engines.signatures import CUDA_DRIVER, Signature, Stage, by_status, find, last_line, staged, unexplained
from agent.status import Diagnosis, DiagnosisCode, ExitStatus

_SMALLER = "lower limits.max_model_len or limits.max_num_seqs"
_FETCH_AGAIN = "fetch the model again: its file is not what was published"

OUT_OF_MEMORY = Signature(
    r"(?:cudaMalloc|hipMalloc) failed|(?:CUDA|ROCm) error: out of memory|out of device memory|ErrorOutOfDeviceMemory"
    r"|can't allocate \d+ Bytes of memory on device|UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"
    r"|ggml_\w*metal\w*: error: failed to allocate buffer|kIOGPUCommandBufferCallbackErrorOutOfMemory",
    DiagnosisCode.DEVICE_OOM,
    "the device's memory was exhausted",
    _SMALLER,
)
#: What follows, where a backend did not say it first. A buffer of the host's is "CUDA_Host", or "CPU".
_NO_BUFFER = replace(
    OUT_OF_MEMORY,
    pattern=r"(?:failed|unable) to allocate (?:CUDA|ROCm|SYCL|Vulkan|MTL|Metal)\d*(?:_Private|_Mapped|_Split)? buffer",
)
#: When that was, by what stands after it in the log, or before.
_STAGES = (
    Stage(
        r"listening on http|done request: |\bslot +(?!load_model)\w+: ",
        "while it served",
        "see `agentctl devices` for who else took its memory, or lower limits.max_num_seqs",
    ),
    Stage(
        r"failed to allocate buffer for kv cache",
        "when its cache was allocated",
        "lower limits.max_model_len, limits.max_num_seqs, or take a smaller limits.kv_cache_dtype",
    ),
    Stage(
        r"failed to allocate compute|graph_reserve: failed|ggml_gallocr_reserve_n\w*: failed",
        "when its compute buffers were allocated",
        _SMALLER,
    ),
    Stage(
        r"alloc_tensor_range: failed|unable to allocate \S+ buffer",
        "while the weights were loaded",
        "use a smaller quantization or more devices, or end what else holds the device's memory",
    ),
)

_NO_SUCH_DEVICE = Signature(
    r'error while handling argument "--device": invalid device: (\S+)',
    DiagnosisCode.DEVICE_FAILED,
    "the engine does not find the device {0}",
    "see `agentctl devices` and `agentctl doctor`: the device or its driver may have failed since the plan",
)

#: The first that is found decides, so causes stand before their consequences.
SIGNATURES: tuple[Signature, ...] = (
    Signature(
        r"couldn't bind HTTP server socket, hostname: (\S+), port: (\d+)",
        DiagnosisCode.PORT_TAKEN,
        "port {1} on {0} is taken by another process",
        "free the port, or let the agent choose one with `port: auto`",
    ),
    Signature(
        r"error: invalid argument: (.+)",
        DiagnosisCode.BAD_FLAG,
        "the engine does not know the argument {0}",
        "remove it from extra_args; another version of the engine may know it",
    ),
    Signature(
        r"failed to open GGUF file '(.*)' \((?:No such file|Permission denied|Not a directory).*\)",
        DiagnosisCode.MODEL_MISSING,
        "the model file {0} cannot be opened",
        "check that it is there and readable for the agent's user",
    ),
    Signature(
        r"unknown model architecture: '(.+)'|unsupported model architecture",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "this build of llama.cpp does not know the model's architecture",
        "use a newer llama.cpp, or another model",
    ),
    Signature(
        r"this GGUF file is version (\d+) but this software only supports",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "this build of llama.cpp does not read GGUF version {0}",
        "use a newer llama.cpp",
    ),
    Signature(
        r"unknown pre-tokenizer type: '(.+)'|unknown tokenizer: '(.+)'",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "this build of llama.cpp does not know the model's tokenizer",
        "use a newer llama.cpp",
    ),
    Signature(
        r"tensor '(.+)' data is not within the file bounds",
        DiagnosisCode.MODEL_CORRUPT,
        "the model file ends before its tensor {0} does",
        _FETCH_AGAIN,
    ),
    Signature(
        r"gguf_init_from_(?:reader|file): (?!failed to open)(.+)",
        DiagnosisCode.MODEL_CORRUPT,
        "the model file is no valid GGUF: {0}",
        _FETCH_AGAIN,
    ),
    Signature(
        r"(wrong number of tensors|has wrong shape|missing tensor|key not found in model|invalid split)",
        DiagnosisCode.MODEL_CORRUPT,
        "the model file does not hold what its own header promises ({0})",
        _FETCH_AGAIN,
    ),
    *(replace(each, pattern=rf"^(?=.*(?:CUDA|ROCm) error: ).*?{each.pattern}") for each in CUDA_DRIVER),
    Signature(
        r"(?:CUDA|ROCm) error: (no kernel image is available .*|invalid device function.*"
        r"|device kernel image is invalid.*)",
        DiagnosisCode.DEVICE_UNSUPPORTED,
        "this build of the engine has no code for the device: {0}",
        "install a build for this device; `agentctl devices` names its compute capability",
    ),
    _NO_SUCH_DEVICE,
    Signature(
        r'error while handling argument "(.+?)": (.+)',
        DiagnosisCode.BAD_FLAG,
        "the engine refused the value of {0} ({1})",
        "correct it in extra_args",
    ),
    Signature(
        r"(?:CUDA|ROCm) error: (.*(?:ECC error|busy or unavailable|no CUDA-capable device|no ROCm-capable device"
        r"|GPU is lost|hardware stack|launch failure|launch timed out).*)",
        DiagnosisCode.DEVICE_FAILED,
        "the device failed: {0}",
        "see `agentctl devices` for its condition, and the kernel's log",
    ),
    OUT_OF_MEMORY,
    _NO_BUFFER,
    Signature(
        r"std::bad_alloc|failed to allocate (?:buffer|compute|output|\S+ buffer of size)"
        r"|unable to allocate .* buffer|Cannot allocate memory|can't allocate \d+ Bytes of memory on host",
        DiagnosisCode.HOST_OOM,
        "the system refused the engine memory that it asked for",
        _SMALLER,
    ),
    Signature(
        r"error while loading shared libraries: (\S+): (.+)",
        DiagnosisCode.BINARY_MISSING,
        "the engine's library {0} cannot be loaded: {1}",
        "install it, or set engines.llama.cpp.binary to a complete build",
    ),
)
#: The level mark of llama.cpp's log lines ("0.00.044.340 E srv ..."), or a plain "error".
_TELLING = re.compile(r"^[\d.]+ E |error|terminate called|GGML_ASSERT|Traceback", re.IGNORECASE)


def diagnose(exit_status: ExitStatus, log_tail: str) -> Diagnosis:
    """Why it ended unasked. What the kernel says comes first: a log can only hint at it."""
    evidence = last_line(log_tail, _TELLING)
    return by_status(exit_status, evidence) or by_log(SIGNATURES, log_tail) or unexplained(exit_status, evidence)


def launched(
    exit_status: ExitStatus,
    log_tail: str,
    *,
    signatures: Sequence[Signature],
    telling: re.Pattern[str],
    last_word: str,
    failed: str,
) -> Diagnosis:
    """As `diagnose`, of a server that a launcher ends when it does not serve the model. Then there is the launcher's
    `last_word` in the log, the exit status says nothing, and what no signature explains has `failed`."""
    evidence = last_line(log_tail, telling)
    if last_word in log_tail and not exit_status.oom_killed:
        return by_log(signatures, log_tail) or Diagnosis(DiagnosisCode.CRASHED, failed, evidence)
    return by_status(exit_status, evidence) or by_log(signatures, log_tail) or unexplained(exit_status, evidence)


def by_log(signatures: Sequence[Signature], log_tail: str) -> Diagnosis | None:
    """As `find`, and when it was that a device's memory ran out, or why there was no device: a build for CUDA that does
    not come up says so at every start, and goes on unless it was told to use a device."""
    found = find(signatures, log_tail)
    if found and found == find([_NO_SUCH_DEVICE], log_tail):
        return find(CUDA_DRIVER, log_tail) or found
    return staged(found, log_tail, _STAGES) if found and found.code is DiagnosisCode.DEVICE_OOM else found
