"""oci:registry/repository[:tag][@sha256:HEX]: a model as an artifact in a container registry.

Mirrors, credentials and allowed repositories are those of images; its owner is the path's first part.
"""

from __future__ import annotations

from dataclasses import replace

from agent.artifacts.base import SourcePolicy
from agent.artifacts.errors import refused
from agent.artifacts.images import mirrored
from agent.artifacts.job import Job
from agent.artifacts.source_remote import RemoteSource, allow, basis
from agent.references import OciReference, allowed
from agent.status import DiagnosisCode


def _parsed(rest: str) -> OciReference:
    wanted = OciReference.parse(rest)
    assert wanted is not None  # it was checked
    return wanted


def _job(rest: str, policy: SourcePolicy) -> Job:
    wanted = _parsed(rest)
    allow(wanted.owner, policy)
    images = policy.images
    if not allowed(wanted.repository, images.repositories):
        message = f"the node policy does not allow what is in {wanted.repository}"
        hint = f"images.repositories allows: {', '.join(images.repositories or ()) or 'none'}"
        raise refused(DiagnosisCode.POLICY_DENIED, message, hint)
    return replace(
        basis(f"oci:{rest}", "oci", policy), repo=wanted.repository, revision=wanted.digest or wanted.tag,
        endpoint=mirrored(wanted.repository, images.mirrors), credentials=str(images.credentials or ""),
    )  # fmt: skip


SOURCE = RemoteSource("oci", lambda rest: _parsed(rest).repository, _job)
