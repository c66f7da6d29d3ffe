"""Artifacts, pulls and what was removed, to the messages of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.api.mapping import progress, timestamp
from agent.api.names import artifact_name, deployment_name
from agent.api.requests import Listing
from agent.supervision.service import ArtifactState, ArtifactStatus, CacheDisk, Collection, Deleted, Pulling
from agent.v1 import agent_pb2 as pb

#: Built from the names at import, so that a value that the proto lacks is found at once.
STATES: Final[Mapping[ArtifactState, pb.ArtifactState]] = {
    state: getattr(pb, f"ARTIFACT_STATE_{state.name}") for state in ArtifactState
}
LISTING: Listing[ArtifactStatus] = Listing(
    "artifacts",
    lambda item: (item.state is ArtifactState.EXTERNAL, -(item.used_at or 0.0), item.id),  # last used first
    (bool, float, str),
)


def artifact(value: ArtifactStatus) -> pb.Artifact:
    return pb.Artifact(
        name=artifact_name(value.id),
        source=value.source,
        path=value.path,
        format=value.format,
        quantization=value.quantization,
        size_bytes=value.size,
        digest=value.digest,
        used_by=[deployment_name(name) for name in value.used_by],
        architecture=value.architecture,
        state=STATES[value.state],
        revision=value.revision,
        variant=value.variant,
        file_count=value.files,
        disk_bytes=value.disk,
        free_bytes=value.frees,
        pinned=value.pinned,
        desired_by=[deployment_name(name) for name in value.desired_by],
        use_time=timestamp(value.used_at),
        verify_time=timestamp(value.verified_at),
        kept_for=value.kept_for,
    )


def disk(value: CacheDisk) -> pb.CacheDisk:
    return pb.CacheDisk(path=value.path, total_bytes=value.total, free_bytes=value.free, high=value.high, low=value.low)


def pulling(value: Pulling) -> pb.PullArtifactResponse:
    return pb.PullArtifactResponse(
        reference=value.reference,
        progress=progress(value.progress) if value.progress else None,
        artifact=artifact(value.artifact) if value.artifact else None,
    )


def deleted(value: Deleted) -> pb.DeleteArtifactResponse:
    name = artifact_name(value.artifact) if value.artifact else ""
    return pb.DeleteArtifactResponse(name=name, source=value.source, freed_bytes=value.freed)


def collection(value: Collection) -> pb.CollectArtifactsResponse:
    return pb.CollectArtifactsResponse(
        removed=[
            pb.CollectedArtifact(artifact=artifact(item.artifact), freed_bytes=item.freed, reason=item.reason)
            for item in value.removed
        ],
        freed_bytes=sum(item.freed for item in value.removed),
        disk=disk(value.disk),
        message=value.message,
    )
