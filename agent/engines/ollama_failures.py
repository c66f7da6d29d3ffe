"""How Ollama's log lines map to diagnoses: its own, from its source, before those of the llama-server below it."""

from __future__ import annotations

import re

from agent.engines.llama_cpp_failures import SIGNATURES as OF_LLAMA_CPP
from agent.engines.signatures import Signature, by_status, find, last_line, unexplained
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
        r"(?:cudaMalloc|hipMalloc) failed|out of device memory",
        DiagnosisCode.DEVICE_OOM,
        "the device's memory was exhausted",
        "lower limits.max_model_len or limits.max_num_seqs",
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
        "Ollama has no model {0}",
        "it must be created in its store first",
    ),
)
_TELLING = re.compile(r"level=ERROR|^Error: |panic: |error|terminate called|GGML_ASSERT", re.IGNORECASE)


def diagnose(exit_status: ExitStatus, log_tail: str) -> Diagnosis:
    """Why it ended unasked."""
    evidence = last_line(log_tail, _TELLING)
    return by_status(exit_status, evidence) or find(SIGNATURES, log_tail) or unexplained(exit_status, evidence)
