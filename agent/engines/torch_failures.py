"""Failures that all engines on PyTorch and Hugging Face's libraries have: log lines, and what they mean.

From the sources of torch, transformers, huggingface_hub and safetensors. An adapter puts its engine's own signatures
before these.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

from agent.engines.signatures import (
    CUDA_DRIVER,
    Signature,
    Stage,
    by_status,
    ending_signal,
    find,
    last_line,
    staged,
    unexplained,
)
from agent.status import Diagnosis, DiagnosisCode, ExitStatus

_SMALLER = "lower limits.max_num_seqs, limits.max_model_len or limits.gpu_memory_utilization"
_FETCH_AGAIN = "fetch the model again: its files are not what was published"
_SEE_DEVICES = "see `agentctl devices` for its condition, and the kernel's log"
_BUS_ERROR = "ended with SIGBUS: the shared memory of its processes (/dev/shm) is exhausted"
_LARGER = "make it larger; a model file that is shortened while it is mapped ends an engine like this too"

#: Memory of a device, wherever it ran out.
OUT_OF_MEMORY: tuple[Signature, ...] = (
    Signature(
        r"(?:OutOfMemoryError: (?:CUDA|HIP|XPU) out of memory\. |(?:CUDA|HIP|XPU) out of memory\. )"
        r"Tried to allocate ([\d.]+ \w+)",
        DiagnosisCode.DEVICE_OOM,
        "the device's memory was exhausted when {0} more were asked for",
        _SMALLER,
    ),
    Signature(
        r"CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|hipErrorOutOfMemory"
        r"|UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
        DiagnosisCode.DEVICE_OOM,
        "the device's memory was exhausted",
        _SMALLER,
    ),
)


def oom_stages(*, loading: str, loaded: str, serving: str) -> tuple[Stage, ...]:
    """By what an engine's log holds since it began to load weights, had them, and served."""
    return (
        Stage(serving, "while it served", "lower limits.gpu_memory_utilization or limits.max_num_seqs: what a batch "
              "takes beside the cache did not fit; `agentctl devices` tells whether others took the memory"),
        Stage(loaded, "at the warm-up, when the weights were loaded", "lower limits.max_num_seqs or "
              "limits.gpu_memory_utilization: activations and graphs are taken beside the cache"),
        Stage(loading, "while the weights were loaded", "use more devices or a smaller quantization, or end what else "
              "holds the device's memory: `agentctl devices` shows it"),
    )  # fmt: skip


def by_exit_code(said: str) -> tuple[Signature, ...]:
    """What ended a process of the engine, of which the engine itself tells only the exit code, after `said`: the log
    holds nothing of that process, and the status is its parent's."""
    return (
        Signature(
            rf"(?:{said})-{int(signal.SIGBUS)}\b",
            DiagnosisCode.SHARED_MEMORY,
            f"a process of the engine {_BUS_ERROR}",
            _LARGER,
        ),
        Signature(
            rf"(?:{said})-{int(signal.SIGILL)}\b",
            DiagnosisCode.CPU_UNSUPPORTED,
            "a process of the engine uses instructions that this CPU lacks (SIGILL)",
            "use a build or image for this CPU",
        ),
        Signature(
            rf"(?:{said})-{int(signal.SIGKILL)}\b",
            DiagnosisCode.HOST_OOM,
            "a process of the engine was killed, most often because host memory was exhausted",
            "raise limits.memory_bytes, or free host memory; the kernel's log tells",
        ),
    )


#: The first that is found decides, so causes stand before their consequences.
SIGNATURES: tuple[Signature, ...] = (
    Signature(
        r"could not select device driver .* with capabilities: \[\[gpu\]\]",
        DiagnosisCode.TOOLKIT_MISSING,
        "the container runtime cannot give devices to containers",
        "install the NVIDIA container toolkit; `agentctl doctor` checks it",
    ),
    Signature(
        r"nvidia-container-cli: requirement error: unsatisfied condition: (cuda>=[\d.]+)"
        r"|NVIDIA driver on your system is too old \((found version \d+)",
        DiagnosisCode.DRIVER_UNSUPPORTED,
        "the driver is too old for this build of the engine",
        "install a newer driver, or a build for an older CUDA; `agentctl doctor` names both versions",
    ),
    Signature(
        r"Error 802: system not yet initialized|CUDA error: system not yet initialized",
        DiagnosisCode.DRIVER_UNSUPPORTED,
        "the devices' NVSwitch is not set up, so the driver computes on none of them",
        "start nvidia-fabricmanager, of exactly the driver's version; `agentctl doctor` checks it",
    ),
    *CUDA_DRIVER,
    Signature(
        r"(?:ImportError|OSError): lib(?:cuda|nvidia-ml)\.so\.1: cannot open shared object file"
        r"|Found no NVIDIA driver on your system|CUDA driver is a stub library",
        DiagnosisCode.TOOLKIT_MISSING,
        "the engine does not see the driver's libraries",
        "in a container, install the NVIDIA container toolkit; else the driver; `agentctl doctor` checks both",
    ),
    Signature(
        r"No CUDA GPUs are available|No HIP GPUs are available",
        DiagnosisCode.DEVICE_FAILED,
        "the engine finds no device",
        _SEE_DEVICES,
    ),
    Signature(
        r"[Dd]river/library version mismatch",
        DiagnosisCode.DRIVER_UNSUPPORTED,
        "the driver in the kernel and its library are of different versions",
        "reboot, or reload the kernel module: the driver was upgraded while it was in use",
    ),
    Signature(
        r"no kernel image is available for execution on the device|invalid device function"
        r"|HIP.*device kernel image is invalid",
        DiagnosisCode.DEVICE_UNSUPPORTED,
        "this build of the engine has no kernels for the device",
        "use a build for this device, or another device; `agentctl devices` names its compute capability",
    ),
    Signature(
        r"CUDA (?:error:|failed with error) (.*(?:ECC error|illegal memory access|launch failure|launch timed out"
        r"|hardware stack|GPU is lost|busy or unavailable|no CUDA-capable device).*)",
        DiagnosisCode.DEVICE_FAILED,
        "the device failed: {0}",
        _SEE_DEVICES,
    ),
    Signature(
        r"HIP error: (.*(?:illegal memory access|launch failure|no ROCm-capable device|hardware exception).*)",
        DiagnosisCode.DEVICE_FAILED,
        "the device failed: {0}",
        _SEE_DEVICES,
    ),
    Signature(
        r"Failed to initialize NVML: Unknown Error|NVRM: Xid \(PCI:[0-9a-fA-F:.]+\): \d+",
        DiagnosisCode.DEVICE_FAILED,
        "the engine lost its devices",
        "a container loses them when systemd reloads its cgroups: name devices by CDI; else see the kernel's log",
    ),
    *OUT_OF_MEMORY,
    Signature(
        r"Error while creating shared memory segment|unable to (?:write to|mmap \d+ bytes from) file </torch_"
        r"|unable to allocate shared memory\(shm\) for file|No space left on device: '/dev/shm",
        DiagnosisCode.SHARED_MEMORY,
        "the shared memory of its processes (/dev/shm) is exhausted",
        "make /dev/shm larger: of a container by its shm size, of the host by the mount's size option",
    ),
    Signature(r"Fatal Python error: Bus error", DiagnosisCode.SHARED_MEMORY, f"it {_BUS_ERROR}", _LARGER),
    Signature(
        r"NCCL error|ncclUnhandledCudaError|ncclSystemError|ncclInternalError|unhandled system error"
        r"|Watchdog caught collective operation timeout|DistBackendError",
        DiagnosisCode.COMMUNICATION_FAILED,
        "its devices could not talk to each other",
        "set NCCL_DEBUG=INFO in `environment` for the cause; /dev/shm, NVLink and IOMMU are what it is most often",
    ),
    Signature(
        r"GatedRepoError|is a gated repository|access(?: to)? (?:a )?gated repo|Access to model (\S+) is restricted",
        DiagnosisCode.MODEL_GATED,
        "the model's publisher gives it only to those who asked for it",
        "accept its licence on the hub, and give a token of that account as the secret HF_TOKEN",
    ),
    Signature(
        r"requires you to execute the configuration file|contains custom code which must be executed"
        r"|trust_remote_code=True",
        DiagnosisCode.POLICY_DENIED,
        "the model brings code of its own, which nobody allowed to run",
        "read that code; then name the model in policy.trust_remote_code, and give --trust-remote-code in extra_args",
    ),
    Signature(
        r"RepositoryNotFoundError|RevisionNotFoundError|is not a local folder and is not a valid model identifier",
        DiagnosisCode.MODEL_MISSING,
        "the hub has no such repository, or shows it only to those with a token",
        "check the name, and the secret HF_TOKEN if it is private",
    ),
    Signature(
        r"LocalEntryNotFoundError|IncompleteSnapshotError|outgoing traffic has been disabled"
        r"|couldn't connect to '.*' to load the files|Can't load the configuration of",
        DiagnosisCode.MODEL_MISSING,
        "files of the model are not on this node, and nothing may be fetched at the start",
        _FETCH_AGAIN,
    ),
    Signature(
        r"Repo id must be in the form .*: '(/.*?)'",
        DiagnosisCode.MODEL_MISSING,
        "the model's directory {0} is not there",
        "check that it is there and readable for the agent's user",
    ),
    Signature(
        r"Can't load (?:the )?tokenizer for|Couldn't instantiate the backend tokenizer",
        DiagnosisCode.MODEL_MISSING,
        "the files of the tokenizer are missing",
        _FETCH_AGAIN,
    ),
    Signature(
        r"(?:No such file or directory|Permission denied): '(\S+\.(?:json|safetensors|bin|pt|model|gguf|txt))'",
        DiagnosisCode.MODEL_MISSING,
        "the model's file {0} cannot be opened",
        "check that it is there and readable for the agent's user",
    ),
    Signature(
        r"Error while deserializing header: (.*)|SafetensorError: (?:File|Metadata|Tensor).*",
        DiagnosisCode.MODEL_CORRUPT,
        "a file of weights is truncated or no valid safetensors",
        _FETCH_AGAIN,
    ),
    Signature(
        r"PytorchStreamReader failed|invalid load key|UnpicklingError|JSONDecodeError: (.*)",
        DiagnosisCode.MODEL_CORRUPT,
        "a file of the model is truncated or damaged",
        _FETCH_AGAIN,
    ),
    Signature(
        r"model type `?(\S+?)`? but Transformers does not recognize this architecture",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "this version of the engine does not know the model type {0}",
        "use a newer version of the engine, or another model",
    ),
    Signature(
        r"\[Errno 98\]|Address already in use|EADDRINUSE",
        DiagnosisCode.PORT_TAKEN,
        "a port is taken by another process",
        "free the port, or let the agent choose one with `port: auto`",
    ),
    Signature(
        r"\[Errno 28\]|No space left on device",
        DiagnosisCode.DISK_FULL,
        "a disk that the engine writes to is full",
        "free space where its caches and temporary files are; the log names the path",
    ),
    Signature(
        r"DefaultCPUAllocator: (?:can't|not enough) .*memory.*|\[Errno 12\]|Cannot allocate memory"
        r"|^(?:\S+ )*MemoryError",
        DiagnosisCode.HOST_OOM,
        "the system refused the engine memory that it asked for",
        "lower limits.max_num_seqs or limits.max_model_len, or raise limits.memory_bytes",
    ),
    Signature(
        r"(?:nvcc|ninja|gcc|g\+\+|cc1plus|c\+\+|ptxas).*(?:[Nn]o such file|not found|is required)"
        r"|[Cc]ould not find (?:CUDA|nvcc|C\+\+ compiler)|CUDA_HOME environment variable is not set"
        r"|Failed to find C compiler|No working C\+\+ compiler",
        DiagnosisCode.TOOLKIT_MISSING,
        "a compiler that the engine needs for its kernels is missing",
        "install it (for CUDA the toolkit of the same version), or use the engine's own image",
    ),
    Signature(
        r"error: unrecognized arguments: (.+)",
        DiagnosisCode.BAD_FLAG,
        "the engine does not know the argument {0}",
        "remove it from extra_args; another version of the engine may know it",
    ),
    Signature(
        r"error: argument (\S+): (.+)",
        DiagnosisCode.BAD_FLAG,
        "the engine refused the value of {0} ({1})",
        "correct it in extra_args",
    ),
)

#: A line that tells of an error: the end of a Python traceback but not its code, a logger's mark, a native abort.
TELLING = re.compile(
    r"^(?!.*\braise )"
    r".*(?:\b[A-Z]\w*(?:Error|Exception)\b|\bERROR\b|\bFATAL\b|\berror:|terminate called|Aborted|Segmentation)"
)


def diagnose(
    exit_status: ExitStatus,
    log_tail: str,
    signatures: Sequence[Signature] = SIGNATURES,
    *,
    telling: re.Pattern[str] = TELLING,
    kills_itself: bool = False,
    stages: Sequence[Stage] = (),
) -> Diagnosis:
    """Why it ended unasked. Status 0 proves nothing: engines of several processes exit with it after one of them has
    died. `kills_itself`: nor does SIGKILL, because the engine ends itself with it. `stages`: what helps when a device's
    memory runs out depends on when it does.
    """
    evidence = last_line(log_tail, telling)
    ending = ending_signal(exit_status)
    doubtful = exit_status.code == 0 or (kills_itself and ending == signal.SIGKILL)
    proved = by_status(exit_status, evidence)
    if proved is not None and (exit_status.oom_killed or not doubtful):
        return proved
    if found := find(signatures, log_tail) or proved:
        generic = found.code is DiagnosisCode.DEVICE_OOM and found == find(OUT_OF_MEMORY, log_tail)
        return staged(found, log_tail, stages) if generic else found
    if ending == signal.SIGBUS:
        return Diagnosis(DiagnosisCode.SHARED_MEMORY, f"it {_BUS_ERROR}", evidence, _LARGER)
    return unexplained(exit_status, evidence)
