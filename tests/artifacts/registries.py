"""Models in a container registry, and how they are fetched from it."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.artifacts.base import ArtifactError, SourcePolicy
from agent.artifacts.cache import Kept
from agent.artifacts.fetcher import Fetcher, diagnosed
from agent.artifacts.sources import REMOTE
from agent.settings import FetchConfig, ImagesConfig
from agent.status import Diagnosis
from tests.docker.parts import PASSWORD
from tests.relay import Relay

DOCKER, CNCF, OLLAMA = "application/vnd.docker.ai", "application/vnd.cncf.model", "application/vnd.ollama.image"
FILEPATH, TITLE = "org.cncf.model.filepath", "org.opencontainers.image.title"


def push(port: int, repo: str, tag: str, layers: list[tuple[str, bytes, Mapping[str, str]]], **rest: Any) -> str:
    """A manifest with these layers: media type, content, annotations. Returns its digest."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    auth = {"Authorization": "Basic " + base64.b64encode(f"reader:{PASSWORD}".encode()).decode()}

    def ask(method: str, path: str, body: bytes = b"", **headers: str) -> http.client.HTTPResponse:
        connection.request(method, path, body, auth | headers)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status < 300, text
        return answer

    def blob(content: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        place = ask("POST", f"/v2/{repo}/blobs/uploads/").headers["Location"]
        path = re.sub(r"^https?://[^/]+", "", place)
        ask("PUT", f"{path}&digest={digest}", content, **{"Content-Type": "application/octet-stream"})
        return digest

    described = [
        {"mediaType": kind, "digest": blob(content), "size": len(content), "annotations": dict(notes)}
        for kind, content, notes in layers
    ]
    kind = "application/vnd.oci.image.manifest.v1+json"
    config = {"mediaType": f"{CNCF}.config.v1+json", "digest": blob(b"{}"), "size": 2}
    what = rest if "manifests" in rest else {"config": config, "layers": described} | rest
    manifest = {"schemaVersion": 2, "mediaType": kind} | what
    body = json.dumps(manifest).encode()
    answer = ask("PUT", f"/v2/{repo}/manifests/{tag}", body, **{"Content-Type": manifest["mediaType"]})
    connection.close()
    return answer.headers["Docker-Content-Digest"]


class Puller:
    """Models of one registry, and how they are fetched."""

    def __init__(self, relay: Relay, root: Path) -> None:
        self.relay, self.root = relay, root
        self.registry = f"127.0.0.1:{relay.port}"

    def push(self, repo: str, layers: list[tuple[str, bytes, Mapping[str, str]]], tag: str = "v1", **rest: Any) -> str:
        return push(self.relay.target, repo, tag, layers, **rest)

    def policy(self, **fields: Any) -> SourcePolicy:
        images = ImagesConfig(**fields.pop("images", {}))
        settings = {"stall_seconds": 3.0, "disk_reserve_bytes": 0, "connections": 2}
        settings |= {"ollama_endpoint": f"http://{self.registry}"}
        organisations = fields.pop("organisations", None)
        fetching = FetchConfig(**settings | fields)
        schemes, cache = frozenset({"oci", "ollama"}), self.root / "cache"
        return SourcePolicy(schemes, None, cache, organisations, fetching=fetching, images=images)

    def fetcher(self, reference: str, **fields: Any) -> Fetcher:
        scheme, _, rest = reference.partition(":")
        return Fetcher(REMOTE[scheme].job(rest.replace("HOST", self.registry), self.policy(**fields)), lambda _: None)

    def run(self, reference: str, **fields: Any) -> Kept:
        return self.fetcher(reference, **fields).run()

    def refused(self, reference: str, **fields: Any) -> Diagnosis:
        running = None
        with pytest.raises(Exception) as caught:
            running = self.fetcher(reference, **fields)
            running.run()
        if running is None:
            assert isinstance(caught.value, ArtifactError)
            return caught.value.diagnosis
        return diagnosed(caught.value, running.job, running.secrets)
