"""How fetching fails."""

from __future__ import annotations

from agent.status import Diagnosis, DiagnosisCode


class ArtifactError(Exception):
    """The artifact cannot be had; `diagnosis` says why."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis.message)
        self.diagnosis = diagnosis


def refused(code: DiagnosisCode, message: str, hint: str = "", evidence: str = "") -> ArtifactError:
    return ArtifactError(Diagnosis(code, message, evidence, hint))


def missing(message: str, hint: str = "") -> ArtifactError:
    return refused(DiagnosisCode.MODEL_MISSING, message, hint)


def unavailable(message: str, hint: str = "try again later") -> ArtifactError:
    """The source did not answer, or not in its protocol."""
    return refused(DiagnosisCode.SOURCE_UNAVAILABLE, message, hint)


def not_started(what: str, error: OSError) -> ArtifactError:
    """A process of ours could not be made."""
    hint = "the limits of the agent's unit on tasks and memory may be reached"
    return refused(DiagnosisCode.LAUNCH_FAILED, f"{what} cannot be started: {error.strerror}", hint)


def corrupt(message: str, evidence: str = "") -> ArtifactError:
    return refused(DiagnosisCode.MODEL_CORRUPT, message, "fetch it again, or from elsewhere", evidence)
