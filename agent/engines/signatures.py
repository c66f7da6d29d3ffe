"""From an exit status and the end of a log to a diagnosis: what all adapters share.

An adapter brings its own signatures (a pattern in a log line, and what it means); what an exit status says is the
same for every native engine.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from agent.status import Diagnosis, DiagnosisCode, ExitStatus

#: Evidence is shown in tables and stored with each instance: longer lines are cut.
EVIDENCE_CHARACTERS = 300
#: Lines before the end in which an error is looked for: more than a stack trace has.
EVIDENCE_LINES = 50

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Signature:
    """A log line that names the cause. `message` may hold the pattern's groups as {0}, {1} ..."""

    pattern: str  # a regular expression, compiled when a log is first read: the start of the agent needs none
    code: DiagnosisCode
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """What an engine was doing when it failed, by what only a log of that stage, or of a later one, holds."""

    pattern: str
    words: str  # how a message ends: "while it served"
    hint: str


_OLDER_CUDA = "a build or image of an older CUDA (`image` in the spec, or catalog/engines.yaml)"
#: CUDA's own words (`cudaGetErrorString`) for a driver that cannot run what a build brings, whatever an engine puts
#: before them: errors 803; and 35, 36, 200, 222 and 804. What follows in a log (no device, a CPU) is a consequence.
CUDA_DRIVER: tuple[Signature, ...] = (
    Signature(
        r"(system has unsupported display driver ?/ ?cuda driver combination)",
        DiagnosisCode.DRIVER_UNSUPPORTED,
        "the driver and the libraries of CUDA that the engine loads do not belong together: {0}",
        "CUDA's compatibility libraries in the image are older or newer than the driver: install a newer driver, or "
        f"use {_OLDER_CUDA}; after an upgrade of the driver, reboot",
    ),
    Signature(
        r"(forward compatibility was attempted on non supported HW"
        r"|(?:CUDA )?driver version is insufficient for (?:CUDA )?runtime version"
        r"|API call is not supported in the installed CUDA driver"
        r"|PTX was compiled with an unsupported toolchain"
        r"|CUDA.*device kernel image is invalid)",  # AMD's runtime says the same of code for another architecture
        DiagnosisCode.DRIVER_UNSUPPORTED,
        "the driver is too old for this build of the engine: {0}",
        f"install a newer driver, or use {_OLDER_CUDA}; `agentctl doctor` names both versions. The compatibility "
        "libraries that an image brings against this run on data-centre devices only",
    ),
)


def staged(found: Diagnosis, log_tail: str, stages: Sequence[Stage]) -> Diagnosis:
    """The same diagnosis with the stage, which decides what helps. The last stage stands first; where the log holds
    none of them, as the end of a long one may, nothing is said.
    """
    for stage in stages:
        if re.search(stage.pattern, log_tail, re.MULTILINE):
            return replace(found, message=f"{found.message}, {stage.words}", hint=stage.hint)
    return found


def find(signatures: Sequence[Signature], log_tail: str) -> Diagnosis | None:
    """The diagnosis of the first signature, in their order, that the log holds; its last such line is the evidence."""
    lines = [_COLOURS.sub("", line).strip() for line in log_tail.splitlines()]
    for signature in signatures:
        for line in reversed(lines):
            if match := re.search(signature.pattern, line):
                message = signature.message.format(*match.groups())
                return Diagnosis(signature.code, message, line[:EVIDENCE_CHARACTERS], signature.hint)
    return None


def last_line(log_tail: str, telling: re.Pattern[str]) -> str:
    """The last line that matches `telling` (an engine's mark of an error), else the last one with any text. An error
    long before the end is no evidence of it."""
    end = _COLOURS.sub("", "\n".join(log_tail.splitlines()[-EVIDENCE_LINES:]))
    lines = [text for line in end.splitlines() if (text := line.strip())]
    marked = next((line for line in reversed(lines) if telling.search(line)), "")
    return (marked or (lines or [""])[-1])[:EVIDENCE_CHARACTERS]


def ending_signal(exit_status: ExitStatus) -> int | None:
    """The signal that ended the process. A shell in between reports it as the status 128 + n."""
    if exit_status.signal is not None:
        return exit_status.signal
    if exit_status.code is not None and exit_status.code > 128:
        return exit_status.code - 128
    return None


def by_status(exit_status: ExitStatus, evidence: str) -> Diagnosis | None:
    """What the exit status alone proves, whatever the log says; None where the log must be read."""
    if exit_status.oom_killed:
        return Diagnosis(
            DiagnosisCode.HOST_OOM,
            "the kernel killed the engine because host memory, or its memory limit, was exhausted",
            evidence,
            "lower limits.max_model_len or limits.max_num_seqs, or raise limits.memory_bytes",
        )
    if (ended_by := ending_signal(exit_status)) in _SIGNALS:
        code, message, hint = _SIGNALS[ended_by]
        return Diagnosis(code, message, evidence, hint)
    if exit_status.code == 0:
        return Diagnosis(DiagnosisCode.EXITED, "the engine exited with status 0 though nobody asked it to", evidence)
    return None


def unexplained(exit_status: ExitStatus, evidence: str) -> Diagnosis:
    """The diagnosis when the log holds no known line."""
    if exit_status.code in _STATUSES:  # what a shell says of a command that it could not run
        code, message, hint = _STATUSES[exit_status.code]
        return Diagnosis(code, message, evidence, hint)
    hint = ""
    if ending_signal(exit_status) == signal.SIGBUS:
        hint = "a model file that is shortened while it is mapped into memory ends an engine like this"
    return Diagnosis(DiagnosisCode.CRASHED, f"the engine ended by itself: {exit_status}", evidence, hint)


_Meaning = tuple[DiagnosisCode, str, str]
_OUTSIDE = "something other than this agent sent the signal: an operator, or another supervisor"

_SIGNALS: Mapping[int | None, _Meaning] = {
    signal.SIGILL: (
        DiagnosisCode.CPU_UNSUPPORTED,
        "the engine's binary uses instructions that this CPU lacks (SIGILL)",
        "use a build for this CPU: set engines.<name>.binary, or install the embedded engine",
    ),
    signal.SIGKILL: (DiagnosisCode.KILLED, "the engine was killed from outside (SIGKILL)", _OUTSIDE),
    signal.SIGTERM: (DiagnosisCode.KILLED, "the engine was ended from outside (SIGTERM)", _OUTSIDE),
    signal.SIGINT: (DiagnosisCode.KILLED, "the engine was ended from outside (SIGINT)", _OUTSIDE),
    signal.SIGHUP: (DiagnosisCode.KILLED, "the engine was ended from outside (SIGHUP)", _OUTSIDE),
}
_STATUSES: Mapping[int | None, _Meaning] = {
    126: (DiagnosisCode.BINARY_MISSING, "the engine's file is not executable", "check engines.<name>.binary"),
    127: (DiagnosisCode.BINARY_MISSING, "the engine's executable was not found", "check engines.<name>.binary"),
}
