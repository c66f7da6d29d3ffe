"""How MLX LM's log lines map to diagnoses. Excerpts of real logs: tests/engines/data/mlx-*.log."""

from __future__ import annotations

from agent.engines import torch_failures
from agent.engines.signatures import Signature
from agent.status import Diagnosis, DiagnosisCode, ExitStatus

_FETCH_AGAIN = "fetch the model again: its files are not what was published"
_NEWER = "use a newer mlx-lm, or another model or quantization"

#: The first that is found decides, so causes stand before their consequences.
SIGNATURES: tuple[Signature, ...] = (
    Signature(
        r"requires importing and running a custom module",
        DiagnosisCode.POLICY_DENIED,
        "the model brings code of its own, which may not run",
        "use a model that mlx-lm knows without it",
    ),
    Signature(
        r"ValueError: Model type (\S+) not supported",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "this version of mlx-lm does not know the model type {0}",
        _NEWER,
    ),
    Signature(
        r"(unsupported compressed-tensors format \S+|Unsupported modelopt quant_algo: \S+"
        r"|Only .* is supported for AutoAWQ|non-contiguous group indices|Cannot infer the quantization mode .*)",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "this version of mlx-lm does not read the model's quantization: {0}",
        _NEWER,
    ),
    Signature(
        r"No safetensors found in (\S+)",
        DiagnosisCode.MODEL_MISSING,
        "{0} holds no weights (model*.safetensors)",
        _FETCH_AGAIN,
    ),
    Signature(
        r"Repo id must be in the form .*: '(/.*)'|\[load_safetensors\] Failed to open (.*)",
        DiagnosisCode.MODEL_MISSING,
        "the model's files cannot be opened",
        "check that they are there and readable for the agent's user",
    ),
    Signature(
        r"\[load_safetensors\] (.+)",
        DiagnosisCode.MODEL_CORRUPT,
        "a file of weights is truncated or no valid safetensors: {0}",
        _FETCH_AGAIN,
    ),
    Signature(
        r"(Missing \d+ parameters|Received \d+ parameters not in model|Expected shape .* but received shape .*)",
        DiagnosisCode.MODEL_CORRUPT,
        "the weights are not those that config.json describes ({0})",
        "fetch the model again; a newer mlx-lm may know this form of it",
    ),
    Signature(
        r"Couldn't instantiate the backend tokenizer",
        DiagnosisCode.MODEL_MISSING,
        "the model's directory has no tokenizer that can be read",
        _FETCH_AGAIN,
    ),
    Signature(
        r"Cannot set gpu device without gpu backend",
        DiagnosisCode.DEVICE_UNSUPPORTED,
        "this build of MLX computes on the CPU alone",
        "install mlx with the extra cuda12 or cuda13, or use `devices: cpu`",
    ),
    Signature(
        r"\[METAL\] .*Insufficient Memory|kIOGPUCommandBufferCallbackErrorOutOfMemory"
        r"|\[malloc\] Unable to allocate (\d+) bytes|cuda\w+\(.*\) failed: out of memory",
        DiagnosisCode.DEVICE_OOM,
        "the device's memory was exhausted",
        "lower limits.max_model_len or limits.max_num_seqs",
    ),
    Signature(
        r"cuda\w+\(.*\) failed: (.*(?:ECC error|illegal memory access|launch failure|launch timed out|GPU is lost"
        r"|busy or unavailable|no CUDA-capable device).*)",
        DiagnosisCode.DEVICE_FAILED,
        "the device failed: {0}",
        "see `agentctl devices` for its condition, and the kernel's log",
    ),
    Signature(
        r"Can not find locations of CUDA headers",
        DiagnosisCode.TOOLKIT_MISSING,
        "MLX compiles its kernels, and finds no headers of CUDA",
        "install mlx with the extra cuda12 or cuda13, which brings them, or name a CUDA toolkit by CUDA_HOME",
    ),
    Signature(
        r"No module named '(mlx[\w.]*|transformers)'",
        DiagnosisCode.BINARY_MISSING,
        "the Python module {0} is missing",
        "install mlx-lm with one of the extras cpu, cuda12 and cuda13, and set engines.mlx-lm.binary to its Python",
    ),
    Signature(
        r"AttributeError: .*'(ModelProvider|ResponseGenerator|APIHandler)' has no attribute '(\w+)'",
        DiagnosisCode.BINARY_MISSING,
        "this version of mlx-lm has no {0}.{1}, which the agent's launcher builds on",
        "install a version that docs/reference/engines/mlx-lm.md names",
    ),
)


def diagnose(exit_status: ExitStatus, log_tail: str) -> Diagnosis:
    """Why it ended unasked."""
    return torch_failures.diagnose(exit_status, log_tail, (*SIGNATURES, *torch_failures.SIGNATURES))
