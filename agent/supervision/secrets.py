"""Secret references become values at launch, in memory only: never stored, logged or put on a command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from agent.spec import SecretRef
from agent.status import Diagnosis, DiagnosisCode
from agent.supervision.preparation import PreparationError

#: A key or token is short; more than this is a mistaken file.
MAX_BYTES = 64 * 1024


def resolve(references: Mapping[str, SecretRef]) -> dict[str, str]:
    """Environment variable -> value. Raises `PreparationError` that names the reference, never the value."""
    return {name: _read(name, reference) for name, reference in references.items()}


def _read(name: str, reference: SecretRef) -> str:
    if reference.env is not None:
        value = os.environ.get(reference.env)
        if value is None:
            raise _missing(name, f"the daemon's environment has no variable {reference.env}")
        return value
    path = Path(str(reference.file))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _missing(name, f"{path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise _missing(name, f"{path} is longer than {MAX_BYTES} bytes; that is not a secret")
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
