"""Fetching from Google Cloud Storage and from ModelScope: servers of ours that speak what their clients read."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from agent.artifacts import fetcher, partial
from agent.artifacts.base import ArtifactError, SourcePolicy
from agent.artifacts.cache import Kept
from agent.artifacts.fetcher import Fetcher, diagnosed
from agent.artifacts.sources import REMOTE
from agent.settings import FetchConfig
from agent.status import Diagnosis
from agent.status import DiagnosisCode as Code
from tests.hub.server import Fault, Request
from tests.relay import Answer, Relay

MIB = 1024**2
BIG = random.Random(1).randbytes(3 * MIB + 123)
MODEL = {"config.json": b"{}", "model.safetensors": BIG, "README.md": b"x", "empty.json": b"", "../x.json": b"no"}
TOKEN = "canary-bearer-77"


def ranged(request: Request, content: bytes) -> Answer:
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
    if asked is None:
        return 200, {}, content
    start, end = int(asked[1]), min(int(asked[2]) + 1, len(content))
    return 206, {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}, content[start:end]


class CloudStorage:
    """Objects of one bucket, by the JSON API as google-cloud-storage 3 asks it; and Google's place for tokens."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.composed: set[str] = set()  # without an MD5
        self.generation = 1
        self.private = False
        self.tokens = 0

    def __call__(self, request: Request) -> Answer:
        query, shown = parse_qs(request.query), request.headers.get("authorization", "")
        if request.path == "/token":
            self.tokens += 1
            return _json({"access_token": f"{TOKEN}-{self.tokens}", "expires_in": 3600, "token_type": "Bearer"})
        if self.private and shown != f"Bearer {TOKEN}-{self.tokens}":
            return 401 if shown else 403, {}, b'{"error": {"code": 401}}'
        if request.path == "/storage/v1/b/bucket/o":
            below = [name for name in sorted(self.objects) if name.startswith(query["prefix"][0])]
            start = int(query.get("pageToken", ["0"])[0])
            more = {"nextPageToken": str(start + 2)} if start + 2 < len(below) else {}
            return _json({"items": [self._said(name) for name in below[start : start + 2]]} | more)
        name = request.path.partition("/storage/v1/b/bucket/o/")[2]
        if name not in self.objects or query.get("generation", [str(self.generation)]) != [str(self.generation)]:
            return 404, {}, b"{}"
        if query.get("alt") == ["media"] and request.path.startswith("/download/"):
            return ranged(request, self.objects[name])
        return _json(self._said(name))

    def _said(self, name: str) -> dict[str, str]:
        content = self.objects[name]
        digest = {} if name in self.composed else {"md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode()}
        return {"name": name, "size": str(len(content)), "generation": str(self.generation)} | digest


class ModelScope:
    """One repository, as modelscope-hub 0.5 asks for it; with a token where it is private."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.private = False
        self.more: list[dict[str, Any]] = []

    def __call__(self, request: Request) -> Answer:
        query = parse_qs(request.query)
        if self.private and request.headers.get("cookie") != f"m_session_id={TOKEN}":
            return 403, {}, b"{}"
        if request.path == "/api/v1/models/org/m/repo/files" and query["Revision"] == ["master"]:
            listed = [
                {"Path": name, "Name": name, "Type": "blob", "Size": len(content), "Sha256": _sha256(content)}
                for name, content in self.files.items()
            ]
            return _json({"Code": 200, "Data": {"Files": [{"Path": "folder", "Type": "tree"}, *listed, *self.more]}})
        if request.path == "/api/v1/models/org/m/repo" and query["FilePath"][0] in self.files:
            return ranged(request, self.files[query["FilePath"][0]])
        return 404, {}, b'{"Code": 10010205001}'


def _json(data: object) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(data).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Puller:
    """One of the two servers, and how its models are fetched."""

    def __init__(self, relay: Relay, root: Path) -> None:
        self.relay, self.root = relay, root
        self.endpoint = f"http://127.0.0.1:{relay.port}"

    def fetcher(self, reference: str, **fields: Any) -> Fetcher:
        settings = {"stall_seconds": 3.0, "disk_reserve_bytes": 0, "connections": 2}
        settings |= {"gs_endpoint": self.endpoint, "ms_endpoint": self.endpoint}
        organisations = fields.pop("organisations", None)
        config = FetchConfig(**settings | fields)
        policy = SourcePolicy(frozenset(), None, self.root / "cache", organisations, fetching=config)
        scheme, _, rest = reference.partition(":")
        return Fetcher(REMOTE[scheme].job(rest, policy), lambda _: None)

    def run(self, reference: str, **fields: Any) -> Kept:
        return self.fetcher(reference, **fields).run()

    def refused(self, reference: str, **fields: Any) -> Diagnosis:
        running = self.fetcher(reference, **fields)
        with pytest.raises(Exception) as caught:
            running.run()
        return diagnosed(caught.value, running.job, running.secrets)


@pytest.fixture(scope="module")
def running() -> Iterator[Relay]:
    with Relay(1) as relay:
        yield relay


@pytest.fixture
def puller(running: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Puller:
    running.heal()
    monkeypatch.setattr(partial, "PART", MIB)
    monkeypatch.setattr(fetcher, "_FIRST_PAUSE", 0.05)
    for name in [name for name in os.environ if name.startswith(("GOOGLE_", "CLOUDSDK_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")  # restored behind who sets it
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    return Puller(running, tmp_path)


@pytest.fixture
def storage(puller: Puller) -> CloudStorage:
    puller.relay.guard = made = CloudStorage()
    return made


@pytest.fixture
def scope(puller: Puller) -> ModelScope:
    puller.relay.guard = made = ModelScope()
    return made


@pytest.fixture(scope="module")
def key() -> str:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    forms = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return private.private_bytes(*forms).decode()


def account(puller: Puller, key: str) -> Path:
    """A service account whose tokens our server gives."""
    said = {
        "type": "service_account", "project_id": "p", "private_key_id": "k", "private_key": key,
        "client_email": "agent@example.com", "token_uri": f"{puller.endpoint}/token",
    }  # fmt: skip
    path = puller.root / "account.json"
    path.write_text(json.dumps(said))
    return path


def contents(kept: Kept) -> dict[str, bytes]:
    root = kept.path if kept.path.is_dir() else kept.path.parent
    return {file.name: (root / file.name).read_bytes() for file in kept.files}


def of_cache(puller: Puller) -> str:
    files = [path for path in (puller.root / "cache").rglob("*") if path.is_file()]
    return "".join(path.read_bytes().decode("latin-1") for path in files)


# Google Cloud Storage


def test_a_gguf_file_is_fetched_in_parts_and_verified_by_its_md5(puller, storage):
    storage.objects["a b/m.gguf"] = BIG

    kept = puller.run("gs://bucket/a b/m.gguf")

    assert kept.path.read_bytes() == BIG
    assert kept.digest == f"md5:{hashlib.md5(BIG).hexdigest()}"
    puller.relay.fail(Fault("*m.gguf", flip_at=2_000_000))
    assert puller.fetcher("gs://bucket/a b/m.gguf").run().path == kept.path  # it is here
    storage.objects["n.gguf"] = BIG[::-1]
    puller.relay.fail(Fault("*n.gguf", flip_at=2_000_000))
    assert puller.refused("gs://bucket/n.gguf").code == Code.MODEL_CORRUPT


def test_a_directory_is_listed_page_by_page_and_names_that_lead_elsewhere_are_not_seen(puller, storage):
    storage.objects |= {f"m/{name}": content for name, content in MODEL.items()} | {"mm/config.json": b"no"}

    kept = puller.run("gs://bucket/m")

    assert contents(kept) == {name: MODEL[name] for name in ("config.json", "model.safetensors", "empty.json")}
    assert not list(puller.root.rglob("x.json"))


def test_an_object_without_an_md5_is_named_by_what_came_and_verified_where_the_reference_says(puller, storage):
    storage.objects["m.gguf"] = BIG
    storage.composed.add("m.gguf")

    assert puller.run("gs://bucket/m.gguf").digest == f"sha256:{_sha256(BIG)}"
    assert puller.refused(f"gs://bucket/m.gguf#sha256={'0' * 64}").code == Code.MODEL_CORRUPT


def test_an_object_that_is_replaced_while_it_comes_is_listed_anew(puller, storage):
    storage.objects["m.gguf"], other = BIG, BIG[::-1]
    inner = puller.relay.guard

    def replacing(request: Request) -> Answer:
        if len(puller.relay.starts("*m.gguf")) == 3 and storage.generation == 1:
            storage.objects["m.gguf"], storage.generation = other, 2
        return inner(request)

    puller.relay.guard = replacing

    assert puller.run("gs://bucket/m.gguf", connections=1).path.read_bytes() == other


def test_a_private_bucket_is_read_with_a_service_account_whose_tokens_end(puller, storage, key):
    storage.objects["m.gguf"], storage.private = BIG, True
    inner = puller.relay.guard

    def ending(request: Request) -> Answer:
        if len(puller.relay.starts("*m.gguf")) == 3 and storage.tokens == 1:
            storage.tokens += 1  # the one that was given is none any more
        return inner(request)

    puller.relay.guard = ending
    kept = puller.run("gs://bucket/m.gguf", gs_credentials_file=account(puller, key), connections=1)

    assert kept.path.read_bytes() == BIG
    assert storage.tokens == 3
    assert TOKEN not in of_cache(puller)


def test_what_google_refuses_says_what_to_do(puller, storage, key, monkeypatch):
    storage.objects["m.gguf"], storage.private = BIG, True
    found = puller.refused("gs://bucket/m.gguf")
    assert (found.code, "fetch.gs_credentials_file" in found.hint) == (Code.MODEL_GATED, True)
    puller.relay.fail(Fault("/token", status=400, body=b'{"error": "invalid_grant"}'))
    found = puller.refused("gs://bucket/m.gguf", gs_credentials_file=account(puller, key))
    assert (found.code, "gives no token" in found.message) == (Code.SECRET_MISSING, True)
    (puller.root / "bad.json").write_text('{"type": "canary"}')
    with pytest.raises(ArtifactError) as caught:
        puller.fetcher("gs://bucket/m.gguf", gs_credentials_file=puller.root / "bad.json").run()
    assert caught.value.diagnosis.code == Code.SECRET_MISSING
    storage.private = False
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")  # a process of its own has only its job's
    assert puller.refused("gs://bucket/none.gguf").code == Code.MODEL_MISSING
    assert puller.refused("gs://bucket/none").code == Code.MODEL_MISSING
    puller.relay.fail(Fault("*", status=503, body=b""))
    assert puller.refused("gs://bucket/m.gguf", stall_seconds=1.0).code == Code.SOURCE_UNAVAILABLE


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"items": ["m.gguf"]}', b'{"items": 3}'])
def test_a_server_that_is_no_cloud_storage_is_told(puller, storage, body):
    puller.relay.fail(Fault("*", status=200, body=body))

    found = puller.refused("gs://bucket/m")

    assert found.code == Code.SOURCE_UNAVAILABLE
    assert "as Cloud Storage does" in found.message


# ModelScope


def test_a_model_of_modelscope_is_fetched_and_each_file_verified(puller, scope):
    scope.files = dict(MODEL)

    kept = puller.run("ms:org/m")

    assert contents(kept) == {name: MODEL[name] for name in ("config.json", "model.safetensors", "empty.json")}
    assert not list(puller.root.rglob("x.json"))
    scope.files["config.json"] = b"[]"
    puller.relay.fail(Fault("/api/v1/models/org/m/repo", flip_at=0))
    again = Puller(puller.relay, puller.root / "again")
    assert again.refused("ms:org/m").code == Code.MODEL_CORRUPT


def test_a_level_of_modelscope_is_chosen_by_its_name(puller, scope):
    scope.files = {"m-Q4_K_M.gguf": BIG, "m-Q8_0.gguf": b"GGUF8"}

    assert contents(puller.run("ms:org/m:Q8_0")) == {"m-Q8_0.gguf": b"GGUF8"}


def test_a_connection_to_modelscope_that_breaks_is_taken_up_where_it_was(puller, scope):
    scope.files = {"m-Q8_0.gguf": BIG}
    puller.relay.fail(Fault("/api/v1/models/org/m/repo", times=1, after=1, cut_at=MIB + 300_001))

    assert puller.run("ms:org/m", connections=1).path.read_bytes() == BIG
    assert MIB + 300_001 in puller.relay.starts("*/repo")


def test_what_modelscope_refuses_says_what_to_do(puller, scope):
    scope.files = {"m-Q8_0.gguf": b"GGUF8"}
    assert puller.refused("ms:org/none").code == Code.MODEL_MISSING
    assert puller.refused("ms:org/m@other").code == Code.MODEL_MISSING
    with pytest.raises(ArtifactError) as caught:
        puller.fetcher("ms:evil/m", organisations=frozenset({"org"}))
    assert caught.value.diagnosis.code == Code.POLICY_DENIED
    scope.private = True
    found = puller.refused("ms:org/m")
    assert (found.code, "fetch.ms_token_file" in found.hint) == (Code.MODEL_GATED, True)
    (puller.root / "token").write_text(TOKEN + "\n")
    assert contents(puller.run("ms:org/m", ms_token_file=puller.root / "token")) == {"m-Q8_0.gguf": b"GGUF8"}
    assert TOKEN not in of_cache(puller)


def test_a_listing_that_modelscope_cut_or_spoiled_is_not_believed(puller, scope):
    scope.more = [{"Path": f"{n}.txt", "Size": 1, "Sha256": "0" * 64} for n in range(3000)]
    assert "does not list all" in puller.refused("ms:org/m").message
    for bad in ({"Path": "a.json", "Size": -1, "Sha256": "0" * 64}, {"Path": "a.json", "Size": 1}, {"Size": 1}):
        scope.more = [bad]
        assert puller.refused("ms:org/m").code == Code.SOURCE_UNAVAILABLE
