"""Log lines of PyTorch and Hugging Face's libraries, and what they mean."""

from __future__ import annotations

import signal

import pytest

from agent.engines.torch_failures import diagnose
from agent.status import DiagnosisCode as Code
from agent.status import ExitStatus

LINES = [
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total", Code.DEVICE_OOM),
    ("torch.cuda.OutOfMemoryError: HIP out of memory. Tried to allocate 448.00 MiB.", Code.DEVICE_OOM),
    ("RuntimeError: CUDA error: out of memory", Code.DEVICE_OOM),
    (("RuntimeError: [enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you "
     "tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)"), Code.HOST_OOM),
    ("RuntimeError: CUDA error: no kernel image is available for execution on the device", Code.DEVICE_UNSUPPORTED),
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 12020).", Code.DRIVER_UNSUPPORTED),
    ("docker: nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0, please",
     Code.DRIVER_UNSUPPORTED),
    ('docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].',
     Code.TOOLKIT_MISSING),
    ("Failed to initialize NVML: Driver/library version mismatch", Code.DRIVER_UNSUPPORTED),
    ("RuntimeError: CUDA error: uncorrectable ECC error encountered", Code.DEVICE_FAILED),
    ("torch.AcceleratorError: CUDA error: an illegal memory access was encountered", Code.DEVICE_FAILED),
    ("RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
     Code.COMMUNICATION_FAILED),
    ("[rank1]: torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:94",
     Code.COMMUNICATION_FAILED),
    ("NCCL WARN Error while creating shared memory segment /dev/shm/nccl-x (size 9637888)", Code.SHARED_MEMORY),
    ("RuntimeError: unable to write to file </torch_77_2>", Code.SHARED_MEMORY),
    ("huggingface_hub.errors.GatedRepoError: 403 Client Error.", Code.MODEL_GATED),
    ("OSError: You are trying to access a gated repo.", Code.MODEL_GATED),
    ("OSError: nope is not a local folder and is not a valid model identifier listed on 'https://hf.co/models'",
     Code.MODEL_MISSING),
    ("huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the requested files in the disk cache",
     Code.MODEL_MISSING),
    ("OSError: [Errno 28] No space left on device", Code.DISK_FULL),
    ("OSError: [Errno 98] Address already in use", Code.PORT_TAKEN),
    ("ERROR: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000)", Code.PORT_TAKEN),
    ("safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata", Code.MODEL_CORRUPT),
    ("ValueError: The repository x contains custom code which must be executed to correctly load the model.",
     Code.POLICY_DENIED),
    ("vllm serve: error: unrecognized arguments: --fast", Code.BAD_FLAG),
    ("RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist", Code.TOOLKIT_MISSING),
    ("RuntimeError: Failed to find C compiler. Please specify via CC environment variable", Code.TOOLKIT_MISSING),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code"), LINES, ids=[f"{code} {line[:40]}" for line, code in LINES])
def test_a_known_line_names_the_failure_and_is_its_evidence(line: str, code: Code) -> None:
    log = f"INFO starting\n{line}\nINFO: Shutting down\n"

    found = diagnose(ExitStatus(code=1), log)

    assert (found.code, found.evidence) == (code, line)
    assert found.hint


def test_status_0_after_a_failure_is_that_failure() -> None:
    log = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\nINFO: Finished server process\n"

    assert diagnose(ExitStatus(code=0), log).code is Code.DEVICE_OOM
    assert diagnose(ExitStatus(code=0), "INFO: bye\n").code is Code.EXITED


def test_the_kernel_is_believed_before_the_log() -> None:
    log = "OSError: [Errno 98] Address already in use\n"

    assert diagnose(ExitStatus(signal=signal.SIGKILL, oom_killed=True), log).code is Code.HOST_OOM
    assert diagnose(ExitStatus(signal=signal.SIGKILL), log).code is Code.KILLED


def test_an_engine_that_kills_itself_is_not_taken_to_be_killed_by_others() -> None:
    log = "RuntimeError: CUDA error: out of memory\n"

    assert diagnose(ExitStatus(signal=signal.SIGKILL), log, kills_itself=True).code is Code.DEVICE_OOM
    assert diagnose(ExitStatus(signal=signal.SIGKILL), "bye\n", kills_itself=True).code is Code.KILLED


def test_a_bus_error_is_shared_memory_that_ran_out() -> None:
    assert diagnose(ExitStatus(code=128 + signal.SIGBUS), "Loading\n").code is Code.SHARED_MEMORY


def test_an_unknown_end_shows_the_error_and_not_the_code_around_it() -> None:
    log = "Traceback (most recent call last):\n    raise OddError('x')\nOddError: x\nINFO: bye\n"

    found = diagnose(ExitStatus(code=1), log)

    assert (found.code, found.evidence) == (Code.CRASHED, "OddError: x")
