"""Secret references become values at launch, in memory only: never stored, logged or put on a command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from agent.artifacts import secret_files
from agent.spec import SecretRef
from agent.status import Diagnosis, DiagnosisCode
from agent.supervision.preparation import PreparationError


def resolve(references: Mapping[str, SecretRef]) -> dict[str, str]:
    """Environment variable -> value. Not for the event loop: it waits for storage, within a deadline. Raises
    `PreparationError` that names the reference, never the value."""
    return {name: _read(name, reference) for name, reference in references.items()}


def _read(name: str, reference: SecretRef) -> str:
    if reference.env is not None:
        value = os.environ.get(reference.env)
        if value is None:
            raise _missing(name, f"the daemon's environment has no variable {reference.env}")
        return value
    path = Path(str(reference.file))
    try:
        data = secret_files.read(path)
    except OSError as error:
        raise _missing(name, f"{path}: {error.strerror}") from error
    if len(data) > secret_files.MAX_BYTES:
        raise _missing(name, f"{path} is longer than {secret_files.MAX_BYTES} bytes; that is not a secret")
    try:
        return data.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise _missing(name, f"{path} is not UTF-8 text") from error


def _missing(name: str, problem: str) -> PreparationError:
    return PreparationError(
        Diagnosis(
            DiagnosisCode.SECRET_MISSING,
            f"secrets.{name}: {problem}",
            hint="Create it, or change the reference; then `agentctl restart`.",
        )
    )
