"""What a model in a container registry is made of: ModelPack, Docker's and podman's artifacts, and Ollama's models.

A manifest names blobs by their sha256, so everything that comes is verified. Protocol: opencontainers/distribution-spec
1.1 and distribution's token authentication. Media types: modelpack/model-spec (`specs-go/v1/mediatype.go`),
docker/model-runner (`pkg/distribution/types/config.go`), ollama/ollama (`server/images.go`). Imported in the process
that fetches, and only there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from agent.artifacts.access import asking
from agent.artifacts.cache import is_plain
from agent.artifacts.coming import Listing, Wanted
from agent.artifacts.connections import Connections
from agent.artifacts.errors import corrupt, missing, refused, unavailable
from agent.artifacts.job import Job
from agent.artifacts.registry import Registry
from agent.status import DiagnosisCode

#: Bytes of a manifest: registries take no larger ones (distribution-spec, "Pushing Manifests").
_MOST_MANIFEST = 4 * 1024**2
_MOST_LAYERS = 10_000
_ACCEPT = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
#: Where a layer says which file it is (model-spec; oras and podman).
_NAMES = ("org.cncf.model.filepath", "org.opencontainers.image.title")
#: Layers without a name, by what they are: Docker's of one file each, and Ollama's.
_GGUF = frozenset({"application/vnd.docker.ai.gguf.v3", "application/vnd.ollama.image.model"})
_SAFETENSORS = "application/vnd.docker.ai.safetensors"
_OTHERS = {
    "application/vnd.docker.ai.mmproj": "mmproj.gguf",
    "application/vnd.docker.ai.chat.template.jinja": "chat_template.jinja",
}
#: Without which a model is another one.
_ADAPTER = "application/vnd.ollama.image.adapter"
_ARCHIVE = re.compile(r".*[.+](tar|gzip|zstd)(\+(gzip|zstd))?")
_IMAGE = re.compile(r"application/vnd\.(oci\.image\.layer|docker\.image\.rootfs)\..*")


def connect(job: Job) -> tuple[Registry, Callable[[], Listing]]:
    """How blobs are asked for, and what lists them. Raises `ArtifactError`."""
    registry = Registry(job)
    return registry, lambda: _list(job, registry)


def _list(job: Job, registry: Registry) -> Listing:
    """Raises `Again` and `ArtifactError`."""
    digest, manifest = _manifest(job, registry)
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not layers or len(layers) > _MOST_LAYERS:
        raise missing(f"{job.source} is no model: its manifest has no list of layers", _KINDS)
    files: dict[str, Wanted] = {}
    for name, layer in _named(job, [_Layer(job, each) for each in layers]):
        if is_plain(name):  # others are not seen: no engine asks for a file of such a name
            url = f"{registry.base}/v2/{registry.path}/blobs/{layer.digest}"
            files[name] = Wanted(name, url, layer.size, layer.digest, layer.digest.removeprefix("sha256:"))
    return Listing(digest.removeprefix("sha256:"), files)


class _Layer:
    """What a manifest says of one blob, checked."""

    def __init__(self, job: Job, said: object) -> None:
        data: dict[str, Any] = said if isinstance(said, dict) else {}
        self.kind, self.digest, size = str(data.get("mediaType")), str(data.get("digest")), data.get("size")
        if not isinstance(size, int) or not 0 <= size < 1 << 60 or not _DIGEST.fullmatch(self.digest):
            raise unavailable(
                f"{job.source}: its manifest has a layer without a size and a sha256: {str(said)[:80]}", ""
            )
        self.size = size
        notes = data.get("annotations")
        names: list[Any] = [notes.get(key) for key in _NAMES] if isinstance(notes, dict) else []
        self.name: str = next((name for name in names if isinstance(name, str) and name), "")


def _named(job: Job, layers: list[_Layer]) -> Iterator[tuple[str, _Layer]]:
    """The layers that are files. What is packed is refused: it would need its room twice."""
    if any(layer.kind == _ADAPTER for layer in layers):
        raise refused(
            DiagnosisCode.MODEL_UNSUPPORTED, f"{job.source} is a model with an adapter in a file of its own (LoRA)",
            "serve the model that it was made from, or one with the adapter merged into it",
        )  # fmt: skip
    if packed := next((layer for layer in layers if _ARCHIVE.fullmatch(layer.kind) and _matters(layer)), None):
        image = _IMAGE.fullmatch(packed.kind)
        what = "is a container image" if image else f"has files that are packed ({packed.kind})"
        hint = "push it as an artifact: `ramalama push --type artifact`, `docker model push`, `modctl build --raw`"
        raise refused(DiagnosisCode.MODEL_UNSUPPORTED, f"{job.source} {what}, not a model file by file", hint)
    yield from _numbered([layer for layer in layers if not layer.name and layer.kind in _GGUF], "gguf")
    yield from _numbered([layer for layer in layers if not layer.name and layer.kind == _SAFETENSORS], "safetensors")
    for layer in layers:
        if name := layer.name or _OTHERS.get(layer.kind, ""):
            yield name, layer


def _matters(layer: _Layer) -> bool:
    """Whether an engine would need it: documentation, code and data sets it does not."""
    return not layer.kind.startswith(
        tuple(f"application/vnd.cncf.model.{kind}." for kind in ("doc", "code", "dataset"))
    )


def _numbered(layers: list[_Layer], suffix: str) -> Iterator[tuple[str, _Layer]]:
    """Of one file, or of parts in order, named as engines find them."""
    for number, layer in enumerate(layers, 1):
        yield f"model-{number:05}-of-{len(layers):05}.{suffix}" if len(layers) > 1 else f"model.{suffix}", layer


_KINDS = "what is served are ModelPack, Docker and podman artifacts with GGUF or safetensors files, and Ollama's models"


def _manifest(job: Job, registry: Registry) -> tuple[str, dict[str, Any]]:
    """Of one model; of an index with several, the only one in it. Raises `Again` and `ArtifactError`."""
    with asking(registry, job) as connections:
        digest, found = _ask(job, registry, connections, job.revision)
        entries: Any = found.get("manifests")
        if isinstance(entries, list):
            inner = [str(each.get("digest")) for each in entries if isinstance(each, dict)]
            if len(inner) != 1 or not _DIGEST.fullmatch(inner[0]):
                message = f"{job.source} names {len(inner)} manifests for different platforms"
                raise missing(message, "name the one that you want by its digest: @sha256:...")
            digest, found = _ask(job, registry, connections, inner[0])
        return digest, found


def _ask(job: Job, registry: Registry, connections: Connections, name: str) -> tuple[str, dict[str, Any]]:
    answer = connections.get(f"{registry.base}/v2/{registry.path}/manifests/{name}", {"Accept": _ACCEPT})
    if answer.status != 200:
        raise registry.refusal(answer.status, answer.headers, job.source, registry.host)
    body = answer.body(_MOST_MANIFEST)
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    if _DIGEST.fullmatch(name) and name != digest:
        raise corrupt(f"{job.source}: its registry sends another manifest", f"{digest}, asked for {name}")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise unavailable(f"{registry.host} does not answer for {job.source} as a registry does", "is it one?")
    return digest, found
