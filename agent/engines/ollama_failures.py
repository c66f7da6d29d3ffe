"""How Ollama's log lines map to diagnoses: its own, from its source, before those of the llama-server below it."""

from __future__ import annotations

import re

from agent.engines.llama_cpp_failures import SIGNATURES as OF_LLAMA_CPP
from agent.engines.llama_cpp_failures import launched
from agent.engines.signatures import CUDA_DRIVER, Signature
from agent.status import Diagnosis, DiagnosisCode, ExitStatus

SIGNATURES: tuple[Signature, ...] = (
    Signature(
        r"listen tcp (\S+): bind: address already in use",
        DiagnosisCode.PORT_TAKEN,
        "{0} is taken by another process",
        "free the port, or let the agent choose one with `port: auto`",
    ),
    Signature(
        r"llama-server binary not found",
        DiagnosisCode.BINARY_MISSING,
        "Ollama's own llama-server is missing: the installation is not complete",
        "install Ollama again",
    ),
    Signature(
        r"model is too large for system memory|model requires more system memory",
        DiagnosisCode.HOST_OOM,
        "Ollama found too little memory for the model",
        "lower limits.max_model_len or limits.max_num_seqs",
    ),
    Signature(
        r"[Nn]o space left on device",
        DiagnosisCode.DISK_FULL,
        "the disk of the instance's directory is full, where its store of links is made",
        "free space below directories.state; the log names the path",
    ),
    *OF_LLAMA_CPP,
    Signature(
        r"may be incompatible with your version of Ollama",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "this version of Ollama cannot load the model",
        "use a newer Ollama, or another model",
    ),
    Signature(
        r"""model \\?["'](.+?)\\?["'] not found""",
        DiagnosisCode.MODEL_MISSING,
        "Ollama does not find the model {0} in the store that was made for it",
        "the file is gone, or this version reads another layout than 0.33",
    ),
    Signature(
        r"invalid model name",
        DiagnosisCode.BAD_FLAG,
        "Ollama takes no such name",
        "give a served_name of letters, digits, '.', '_' and '-', with at most one '/' in front of them",
    ),
    *CUDA_DRIVER,  # with which it goes on on the CPU: what failed there stands above
)
#: The last word of the launcher that ended the server: its exit status then says nothing.
NOT_LOADED = "ollama.sh: the model was not loaded"
_TELLING = re.compile(r"level=ERROR|^Error: |panic: |error|terminate called|GGML_ASSERT", re.IGNORECASE)


def diagnose(exit_status: ExitStatus, log_tail: str) -> Diagnosis:
    """Why it ended unasked."""
    return launched(
        exit_status, log_tail, signatures=SIGNATURES, telling=_TELLING, last_word=NOT_LOADED,
        failed="Ollama could not load the model",
    )  # fmt: skip
