"""What a container engine says when a pull fails, as diagnoses. Pure.

The words come from registries through moby and containers/image; statuses do not help, because the engine answers 500
for a registry that refused, and 404 for one that wants credentials.
"""

from __future__ import annotations

import re

from agent.frozen import frozen
from agent.status import Diagnosis, DiagnosisCode


@frozen
class _Rule:
    pattern: re.Pattern[str]
    code: DiagnosisCode
    sentence: str  # after "IMAGE cannot be pulled: "
    hint: str


def _rule(pattern: str, code: DiagnosisCode, sentence: str, hint: str) -> _Rule:
    return _Rule(re.compile(pattern, re.IGNORECASE), code, sentence, hint)


_LOGIN = "give the registry's user and password in the file that images.credentials names"
#: The first that fits decides.
_RULES = (
    _rule(
        r"no space left on device",
        DiagnosisCode.DISK_FULL,
        "the container engine's disk is full",
        "free space where the container engine keeps its data (`docker system df` tells what takes it)",
    ),
    _rule(
        r"verification failed|failed to verify|unexpected commit digest|digest did not match|"
        r"does not match (?:expected )?(?:digest|config)|invalid checksum|Digest did not match",
        DiagnosisCode.IMAGE_CORRUPT,
        "what the registry sends is not what the digest promises",
        "somebody between here and the registry changes or truncates it; a mirror that does must be repaired",
    ),
    _rule(
        r"toomanyrequests|too many requests|rate limit|\b429\b",
        DiagnosisCode.SOURCE_UNAVAILABLE,
        "the registry takes no more pulls for now",
        f"{_LOGIN}, or use a mirror (images.mirrors)",
    ),
    _rule(
        r"no matching manifest|no image found in (?:manifest list|image index)|does not match the specified platform",
        DiagnosisCode.CPU_UNSUPPORTED,
        "it is not built for this machine",
        "name an image that is, in catalog/engines.yaml of the configuration directory",
    ),
    _rule(
        r"pull access denied|repository does not exist or may require",
        DiagnosisCode.IMAGE_DENIED,
        "the registry has no such repository, or shows it only to who logs in",
        f"check its name; {_LOGIN}",
    ),
    _rule(
        r"unauthorized|no basic auth credentials|authentication required|access denied|\bdenied\b|forbidden|"
        r"\b40[13]\b",
        DiagnosisCode.IMAGE_DENIED,
        "the registry refuses these credentials, or wants some",
        _LOGIN,
    ),
    _rule(
        r"manifest unknown|manifest for .* not found|name unknown|name_unknown|repository name not known|"
        r"not found|no such image|\b404\b",
        DiagnosisCode.IMAGE_MISSING,
        "the registry has no such image",
        "check repository, tag and digest in catalog/engines.yaml of the configuration directory",
    ),
    _rule(
        r"gave HTTP response to HTTPS client",
        DiagnosisCode.SOURCE_UNAVAILABLE,
        "the registry does not speak TLS",
        "give it a certificate, or tell the container engine that it is insecure (insecure-registries)",
    ),
    _rule(
        r"x509|certificate",
        DiagnosisCode.SOURCE_UNAVAILABLE,
        "the container engine does not trust the registry's certificate",
        "put its authority into the container engine's certs.d, or the system's trust store",
    ),
    _rule(
        r"no such host|name resolution|server misbehaving",
        DiagnosisCode.SOURCE_UNAVAILABLE,
        "the registry's name cannot be resolved",
        "check the name and DNS; or use a mirror (images.mirrors), or images.offline",
    ),
)


def diagnosed(image: str, said: str) -> Diagnosis:
    """What is wrong, from an engine's error message."""
    evidence = " ".join(said.split())[:500]
    for rule in _RULES:
        if rule.pattern.search(said):
            return Diagnosis(rule.code, f"{image} cannot be pulled: {rule.sentence}", evidence, rule.hint)
    hint = "check that the container engine reaches it (proxies are the engine's own setting); or use a mirror"
    message = f"{image} cannot be pulled: the registry cannot be reached, or breaks off"
    return Diagnosis(DiagnosisCode.SOURCE_UNAVAILABLE, message, evidence, hint)
