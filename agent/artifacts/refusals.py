"""What the answers of a hub or web server mean that bring no file."""

from __future__ import annotations

from collections.abc import Mapping

from agent.artifacts.errors import ArtifactError, missing, refused, unavailable
from agent.frozen import frozen
from agent.retries import TRANSIENT, Again, told_wait
from agent.status import DiagnosisCode

#: A wait (seconds) that is asked for and obeyed; a longer one is told instead.
LONGEST_WAIT = 300.0


class Changed(Exception):
    """What was listed is not there any more: it must be listed anew."""


@frozen
class Asked:
    """What was asked for, and of whom."""

    subject: str  # for people
    host: str
    hub: bool = True
    has_token: bool = False


def refusal(status: int, headers: Mapping[str, str], asked: Asked) -> Again | ArtifactError:
    """Names of headers are lower case."""
    if status in TRANSIENT:
        return _later(status, headers, asked)
    if asked.hub:
        return _of_hub(status, headers, asked)
    if status in {401, 403, 404, 410}:
        return missing(f"{asked.subject}: {asked.host} does not give it (status {status})")
    return unavailable(f"{asked.subject}: {asked.host} answers with status {status}")


def _later(status: int, headers: Mapping[str, str], asked: Asked) -> Again | ArtifactError:
    said = "too many requests" if status == 429 else f"status {status}"
    wait = told_wait(headers)
    if wait > LONGEST_WAIT:
        return unavailable(f"{asked.subject}: {asked.host} answers with {said} and asks to wait {wait:.0f} s")
    return Again(f"{asked.host} answers with {said}", wait)


def _of_hub(status: int, headers: Mapping[str, str], asked: Asked) -> ArtifactError:
    """Its own codes come first; a 401 may mean that there is nothing (huggingface_hub 2.4, `utils/_http.py`)."""
    code, said, subject = headers.get("x-error-code", ""), headers.get("x-error-message", ""), asked.subject
    if code == "GatedRepo" or (status == 403 and not code):
        return _gated(subject, has_token=asked.has_token)
    if status == 401 and asked.has_token and said.startswith("Invalid"):
        return refused(DiagnosisCode.MODEL_GATED, f"{subject}: the hub does not know the token", "was it revoked?")
    if code in {"RevisionNotFound", "EntryNotFound"}:
        return missing(f"{subject}: the repository has no such {'file' if code == 'EntryNotFound' else 'revision'}")
    if status in {401, 404, 410}:
        hint = "is the name right? a private repository needs a token that may read it: fetch.token_file, or HF_TOKEN"
        return missing(f"{subject} does not exist, or may not be seen", hint)
    return unavailable(f"{subject}: {asked.host} answers with status {status}" + (f" ({said[:120]})" if said else ""))


def _gated(subject: str, *, has_token: bool) -> ArtifactError:
    hint = "ask for access on the model's page, then name that account's token: fetch.token_file, or HF_TOKEN"
    if has_token:
        hint = "ask for access on the model's page, with the token's account; it must be allowed to read gated models"
    message = f"{subject}: its publisher gives it only to who was granted access"
    return refused(DiagnosisCode.MODEL_GATED, message, hint)
