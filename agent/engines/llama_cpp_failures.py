"""How llama-server's exit statuses and log lines map to diagnoses. Excerpts of real logs: tests/engines/data."""

from __future__ import annotations

import re

from agent.engines.signatures import Signature, by_status, find, last_line, unexplained
from agent.status import Diagnosis, DiagnosisCode, ExitStatus

_SMALLER = "lower limits.max_model_len or limits.max_num_seqs"
_FETCH_AGAIN = "fetch the model again: its file is not what was published"

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
        r'error while handling argument "--device": invalid device: (\S+)',
        DiagnosisCode.DEVICE_FAILED,
        "the engine does not find the device {0}",
        "see `agentctl devices` and `agentctl doctor`: the device or its driver may have failed since the plan",
    ),
    Signature(
        r'error while handling argument "(.+?)": (.+)',
        DiagnosisCode.BAD_FLAG,
        "the engine refused the value of {0} ({1})",
        "correct it in extra_args",
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
    Signature(
        r"(?:CUDA|ROCm) error: (no kernel image is available .*|the provided PTX was compiled .*"
        r"|.*driver version is insufficient .*|invalid device function)",
        DiagnosisCode.BINARY_MISSING,
        "this build of the engine does not run on the device or its driver: {0}",
        "install a build for this device, or a newer driver; `agentctl doctor` names both versions",
    ),
    Signature(
        r"(?:CUDA|ROCm) error: (.*(?:ECC error|busy or unavailable|no CUDA-capable device|no ROCm-capable device"
        r"|GPU is lost|hardware stack|launch failure|launch timed out).*)",
        DiagnosisCode.DEVICE_FAILED,
        "the device failed: {0}",
        "see `agentctl devices` for its condition, and the kernel's log",
    ),
    Signature(
        r"(?:cudaMalloc failed|ErrorOutOfDeviceMemory|(?:CUDA|ROCm) error): ?out of memory|ErrorOutOfDeviceMemory",
        DiagnosisCode.DEVICE_OOM,
        "the device's memory was exhausted",
        _SMALLER,
    ),
    Signature(
        r"std::bad_alloc|failed to allocate (?:buffer|compute|output|\S+ buffer of size)"
        r"|unable to allocate .* buffer|Cannot allocate memory",
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
    return by_status(exit_status, evidence) or find(SIGNATURES, log_tail) or unexplained(exit_status, evidence)
