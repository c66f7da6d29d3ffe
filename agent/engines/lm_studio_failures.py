"""How LM Studio's lines, and those of its launcher, map to diagnoses: before those of the llama.cpp that it runs."""

from __future__ import annotations

import re

from agent.engines.llama_cpp_failures import SIGNATURES as OF_LLAMA_CPP
from agent.engines.llama_cpp_failures import launched
from agent.engines.signatures import CUDA_DRIVER, Signature
from agent.status import Diagnosis, DiagnosisCode, ExitStatus

SIGNATURES: tuple[Signature, ...] = (
    Signature(
        r"lm_studio\.sh: lms (?:looks for any|reached another) LM Studio",
        DiagnosisCode.BINARY_MISSING,
        "`lms` cannot be kept from other LM Studios on this host, so nothing was loaded",
        "update LM Studio's daemon with its lms (`lms daemon update`): it must be of July 2026 or newer",
    ),
    Signature(
        r"lm_studio\.sh: LM Studio has no engine for (\S+)",
        DiagnosisCode.BINARY_MISSING,
        "LM Studio has no engine that computes on {0}",
        "install one (`lms runtime get`), or say `devices: cpu`",
    ),
    Signature(
        r"LM Studio and llmster cannot run at the same time",
        DiagnosisCode.LAUNCH_FAILED,
        "llmster refuses to run beside the LM Studio that already runs on this host",
        "end that one, or use llama.cpp, which serves the same file",
    ),
    Signature(
        r"EADDRINUSE: address already in use (\S+)",
        DiagnosisCode.PORT_TAKEN,
        "{0} is taken by another process",
        "free the port, or let the agent choose one with `port: auto`",
    ),
    Signature(
        r"loading was stopped due to insufficient system resources",
        DiagnosisCode.HOST_OOM,
        "LM Studio found too little memory for the model",
        "lower limits.max_model_len or limits.max_num_seqs",
    ),
    *OF_LLAMA_CPP,
    Signature(
        r"lm_studio\.sh: `lms ls --json` does not say|No model found with path being exactly",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "LM Studio does not list the model file that was given to it",
        "this version cannot read it, or wants its files in another place: use llama.cpp",
    ),
    *CUDA_DRIVER,  # with which it may go on on the CPU: what failed there stands above
)
#: How the last word of a launcher begins that ended the daemon: its exit status then says nothing.
ENDED_BY_LAUNCHER = "lm_studio.sh: "
_TELLING = re.compile(r"^Error|error|Failed to|terminate called|GGML_ASSERT", re.IGNORECASE)


def diagnose(exit_status: ExitStatus, log_tail: str) -> Diagnosis:
    """Why it ended unasked."""
    return launched(
        exit_status, log_tail, signatures=SIGNATURES, telling=_TELLING, last_word=ENDED_BY_LAUNCHER,
        failed="LM Studio could not be made to serve the model",
    )  # fmt: skip
