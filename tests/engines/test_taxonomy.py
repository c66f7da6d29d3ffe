"""Every failure that the taxonomy names, in every engine's own words: its code, its evidence, and a hint.

`data/failures/ENGINE.log` has a section for each (`=== what fails`), or the name of a log that was recorded from a real
end (`@file`). The other lines are those of public issues of the engines with other numbers and paths, or written from
the messages in their sources, where no engine could be made to fail so here. What fails in several ways has a section
for each (`=== what fails: how`), and the issues or sources of those stand before the first section.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from agent.engines import ENGINES
from agent.status import DiagnosisCode as Code
from agent.status import ExitStatus

DATA = Path(__file__).parent / "data"
FAILURES: dict[str, Code] = {
    "memory while loading": Code.DEVICE_OOM, "memory at the warm-up": Code.DEVICE_OOM,
    "memory while serving": Code.DEVICE_OOM, "memory of the cache": Code.DEVICE_OOM,
    "memory of a component": Code.DEVICE_OOM, "cache too small": Code.CACHE_TOO_SMALL,
    "architecture": Code.MODEL_UNSUPPORTED, "quantization": Code.MODEL_UNSUPPORTED,
    "capability": Code.DEVICE_UNSUPPORTED, "gated": Code.MODEL_GATED, "no repository": Code.MODEL_MISSING,
    "driver": Code.DRIVER_UNSUPPORTED, "toolkit": Code.TOOLKIT_MISSING,
    "shared memory": Code.SHARED_MEMORY, "devices' communication": Code.COMMUNICATION_FAILED,
    "port": Code.PORT_TAKEN, "disk": Code.DISK_FULL, "corrupt file": Code.MODEL_CORRUPT, "flag": Code.BAD_FLAG,
    "device lost": Code.DEVICE_FAILED,
}  # fmt: skip
#: Stages that not every engine tells.
_TOLD = {"memory of the cache", "memory of a component"}
#: Of one process for a device, and nothing is fetched.
_ALONE = {"shared memory", "devices' communication", "gated", "memory of a component"}
#: What cannot befall an engine as the agent runs it.
NEVER: dict[str, set[str]] = {
    "vllm": _TOLD, "sglang": _TOLD, "tensorrt-llm": {"memory of the cache"}, "tgi": _TOLD,
    # It loads what the file holds, in no type of its own, and writes nothing.
    "llama.cpp": {*_ALONE, "cache too small", "quantization", "toolkit", "disk"},
    # It takes no flags.
    "ollama": {*_ALONE, "cache too small", "quantization", "toolkit", "flag", "capability", "memory at the warm-up",
               "memory while serving", "memory of the cache"},
    # It takes no flags either, and is given a file.
    "lm-studio": {*_ALONE, "cache too small", "quantization", "toolkit", "flag", "capability", "memory at the warm-up",
                  "memory while serving", "memory of the cache", "disk", "no repository"},
    # It allocates by need: nothing tells one stage from another.
    "ctranslate2": {*_ALONE, "cache too small", "quantization", "toolkit", "memory at the warm-up",
                    "memory while serving", "memory of the cache"},
    "mlx-lm": {*_ALONE, "cache too small", "memory at the warm-up", "memory while serving", "memory of the cache"},
}  # fmt: skip
#: How the message ends, or what it holds.
STAGES = {
    "memory while loading": ("while the weights were loaded",), "memory at the warm-up": ("at the warm-up", "buffers"),
    "memory while serving": ("while it served",), "memory of a component": ("KV cache",),
    "memory of the cache": ("when its cache was allocated",),
}  # fmt: skip


def sections(engine: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in re.split(r"^=== ", (DATA / "failures" / f"{engine}.log").read_text(), flags=re.MULTILINE)[1:]:
        name, _, text = part.partition("\n")
        found[name] = (DATA / text.strip()[1:]).read_text() if text.startswith("@") else text
    return found


def kind(name: str) -> str:
    return name.partition(": ")[0]


CASES = [(engine, name, text) for engine in (*NEVER, "nim") for name, text in sections(engine).items()]


@pytest.mark.parametrize("engine", NEVER)
def test_every_failure_of_the_taxonomy_has_a_log_or_cannot_happen(engine: str) -> None:
    assert {kind(name) for name in sections(engine)} == FAILURES.keys() - NEVER[engine]


@pytest.mark.parametrize(("engine", "name", "text"), CASES, ids=[f"{engine}: {name}" for engine, name, _ in CASES])
@pytest.mark.parametrize("status", [ExitStatus(code=1), ExitStatus(code=134)])
def test_each_is_diagnosed_with_its_evidence_and_a_hint(engine: str, name: str, text: str, status: ExitStatus) -> None:
    found = ENGINES[engine].diagnose(status, text)

    assert found.code is FAILURES[kind(name)], found
    assert found.evidence
    assert found.evidence in text
    assert found.hint


STAGED = [case for case in CASES if kind(case[1]) in STAGES and case[0] not in {"ctranslate2", "mlx-lm"}]


@pytest.mark.parametrize(("engine", "name", "text"), STAGED, ids=[f"{engine}: {name}" for engine, name, _ in STAGED])
def test_memory_that_runs_out_says_when(engine: str, name: str, text: str) -> None:
    message = ENGINES[engine].diagnose(ExitStatus(code=1), text).message

    assert any(words in message for words in STAGES[kind(name)]), message


def test_a_cuda_that_the_driver_does_not_know_says_which_of_both_to_change() -> None:
    for engine, name, text in CASES:
        if kind(name) == "driver" and ": " in name:
            hint = ENGINES[engine].diagnose(ExitStatus(code=1), text).hint
            assert "install a newer driver" in hint, name
            assert "`image` in the spec, or catalog/engines.yaml" in hint, name
            assert ("compatibility libraries in the image are older or newer" in hint) == ("mismatch" in name)


#: Of a process that ended without a word, its parent tells the exit code (`multiproc_executor.py` and `engine/utils.py`
#: of vLLM, `entrypoints/engine.py` and `utils/watchdog.py` of SGLang).
_WORKER = "ERROR 11-21 13:33:38 [multiproc_executor.py:315] Worker proc VllmWorker-1 died unexpectedly (exit code: {})"
_CORE = "RuntimeError: Failed core proc(s): {{'EngineCore_DP0': 1, 'EngineCore_DP1': {}}}"
_RANK = (
    "RuntimeError: Rank 1 scheduler died during initialization (exit code: {}). If exit code is -9 (SIGKILL), a common"
)
_SUBPROCESS = "[2026-04-25 02:01:26] Subprocess scheduler_0 (pid=7391) crashed with exit code {}. Triggering SIGQUIT"
_CODES = {-7: Code.SHARED_MEMORY, -9: Code.HOST_OOM, -4: Code.CPU_UNSUPPORTED}
DEATHS = [
    *[
        (engine, line, exit_code, code)
        for engine, line in [("vllm", _WORKER), ("vllm", _CORE), ("sglang", _RANK), ("sglang", _SUBPROCESS)]
        for exit_code, code in _CODES.items()
    ],
    ("vllm", _WORKER, -11, Code.CRASHED),
    ("vllm", _WORKER, None, Code.CRASHED),
]


@pytest.mark.parametrize(("engine", "line", "exit_code", "code"), DEATHS)
def test_what_ended_a_process_of_the_engine_is_told_by_its_exit_code(
    engine: str, line: str, exit_code: int | None, code: Code
) -> None:
    line = line.format(exit_code)

    # SGLang kills itself after it; as the first process of a container it cannot. vLLM's server ends with 0.
    for status in [137, 0, 1] if engine == "sglang" else [0, 1]:
        found = ENGINES[engine].diagnose(ExitStatus(code=status), f"{line}\n")
        assert found.code is code, found
        assert found.evidence == line
        assert found.hint


@pytest.mark.parametrize(
    ("engine", "line", "code"),
    [
        ("llama.cpp", "ROCm error: device kernel image is invalid", Code.DEVICE_UNSUPPORTED),
        ("vllm", "RuntimeError: Triton Error [HIP]:  Code: 200, Messsage: device kernel image is invalid",
         Code.DEVICE_UNSUPPORTED),
        ("vllm", "RuntimeError: Failed to infer device type", Code.DEVICE_UNSUPPORTED),
        ("llama.cpp", "E alloc_tensor_range: failed to allocate CUDA_Host buffer of size 4096", Code.HOST_OOM),
        ("llama.cpp", "E alloc_tensor_range: failed to allocate CPU buffer of size 4096", Code.HOST_OOM),
        ("llama.cpp", "ggml_backend_sycl_buffer_type_alloc_buffer: can't allocate 4096 Bytes of memory on host",
         Code.HOST_OOM),
    ],
)  # fmt: skip
def test_what_sounds_like_another_failure_is_not_taken_for_it(engine: str, line: str, code: Code) -> None:
    assert ENGINES[engine].diagnose(ExitStatus(code=1), f"{line}\n").code is code


def test_a_cuda_that_did_not_come_up_is_not_why_an_engine_failed_on_the_cpu() -> None:
    """A build for CUDA says it at every start on a host without, or with an old, driver."""
    start = "ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient for CUDA runtime version\n"

    crash = ENGINES["llama.cpp"].diagnose(ExitStatus(signal=signal.SIGSEGV), f"{start}srv  load_model: loading\n")
    assert crash.code is Code.CRASHED
    assert ENGINES["llama.cpp"].diagnose(ExitStatus(code=1), f"{start}std::bad_alloc\n").code is Code.HOST_OOM
    for engine in ("ollama", "lm-studio"):
        log = f"{start}llama_model_load: error loading model: unable to allocate CPU buffer\n"
        assert ENGINES[engine].diagnose(ExitStatus(code=1), log).code is Code.HOST_OOM


def test_the_end_of_a_long_log_still_tells_that_it_served() -> None:
    """The lines of the start are gone from what is looked at: 64 KiB hold the last minutes of a busy server."""
    request = '(APIServer pid=205) INFO:     127.0.0.1:41820 - "POST /v1/chat/completions HTTP/1.1" 200 OK\n'
    oom = "(EngineCore pid=271) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 786.00 MiB. GPU 0\n"

    assert "while it served" in ENGINES["vllm"].diagnose(ExitStatus(code=0), request * 600 + oom).message
    unknown = ENGINES["vllm"].diagnose(ExitStatus(code=0), "INFO something else\n" + oom)
    assert unknown.message == "the device's memory was exhausted when 786.00 MiB more were asked for"


def test_what_holds_of_vllm_holds_in_nims_container_around_it() -> None:
    for name, text in sections("vllm").items():
        assert ENGINES["nim"].diagnose(ExitStatus(code=1), text).code is FAILURES[kind(name)]
