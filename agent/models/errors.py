"""Why a model's files cannot be used, as a diagnosis."""

from __future__ import annotations

from agent.status import Diagnosis, DiagnosisCode


class ProfileError(Exception):
    """The model cannot be served; `diagnosis` says why."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis.message)
        self.diagnosis = diagnosis


def corrupt(message: str) -> ProfileError:
    """The files contradict their format or each other."""
    return ProfileError(Diagnosis(DiagnosisCode.MODEL_CORRUPT, message, hint="fetch the model again"))


def unsupported(message: str, hint: str = "") -> ProfileError:
    """The files are whole, but nothing here can serve them."""
    return ProfileError(Diagnosis(DiagnosisCode.MODEL_UNSUPPORTED, message, hint=hint))


def missing(message: str, hint: str = "") -> ProfileError:
    """A file that must be there is not, or cannot be read."""
    return ProfileError(Diagnosis(DiagnosisCode.MODEL_MISSING, message, hint=hint))
