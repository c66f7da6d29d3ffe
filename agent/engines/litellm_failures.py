"""How the LiteLLM proxy's log lines map to diagnoses. Excerpts of real logs: tests/engines/data/litellm-*.log."""

from __future__ import annotations

import re

from agent.engines.signatures import Signature, by_status, find, last_line, unexplained
from agent.status import Diagnosis, DiagnosisCode, ExitStatus

_INSTALL = "install it for the Python that engines.litellm.binary names: pip install 'litellm[proxy]'"

SIGNATURES: tuple[Signature, ...] = (
    Signature(
        r"refused to start: (.*master.?key.*)",
        DiagnosisCode.SECRET_MISSING,
        "LiteLLM does not serve beyond this host without a good key: {0}",
        "give one: `secrets: {LITELLM_MASTER_KEY: {file: /absolute/path}}`, beginning with sk-",
    ),
    Signature(
        r"address already in use|\[Errno 98\]",
        DiagnosisCode.PORT_TAKEN,
        "another process listens on the port",
        "free it, or set `port: auto`",
    ),
    Signature(
        r"ModuleNotFoundError: No module named '([\w.]+)'",
        DiagnosisCode.BINARY_MISSING,
        "the Python of litellm lacks {0}",
        _INSTALL,
    ),
    Signature(
        r"AttributeError: .*(litellm\S*|Router\S*)",
        DiagnosisCode.BINARY_MISSING,
        "this version of litellm is not one that the launcher knows",
        "install litellm 1.106.2, which was tested",
    ),
    Signature(
        r"gateway: nobody wrote (\S+)",
        DiagnosisCode.LAUNCH_FAILED,
        "the agent did not write the gateway's configuration",
        "see the agent's log: the state directory may be full or read-only",
    ),
)
_TELLING = re.compile(r"Error|ERROR|refused|Traceback")


def diagnose(exit: ExitStatus, log_tail: str) -> Diagnosis:
    evidence = last_line(log_tail, _TELLING)
    return by_status(exit, evidence) or find(SIGNATURES, log_tail) or unexplained(exit, evidence)
