"""Fetching models from container registries: Debian's docker-registry, and Ollama's manifests in it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from agent.artifacts import fetcher, partial, registry
from agent.artifacts.cache import Kept
from agent.artifacts.sources import fetch, resolve
from agent.status import DiagnosisCode as Code
from tests.artifacts.registries import CNCF, DOCKER, FILEPATH, OLLAMA, TITLE, Puller, push
from tests.docker.parts import PASSWORD, Registry, wait
from tests.hub.server import Fault
from tests.relay import Relay

MIB = 1024**2
BIG = random.Random(1).randbytes(4 * MIB + 123)

pytestmark = pytest.mark.skipif(shutil.which("docker-registry") is None, reason="no docker-registry is installed")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "PART", MIB)
    monkeypatch.setattr(fetcher, "_FIRST_PAUSE", 0.05)


def contents(kept: Kept) -> dict[str, bytes]:
    root = kept.path if kept.path.is_dir() else kept.path.parent
    return {file.name: (root / file.name).read_bytes() for file in kept.files}


# What is fetched


def test_a_model_of_dockers_is_one_gguf_file(puller):
    digest = puller.push("ai/smol", [
        (f"{DOCKER}.gguf.v3", BIG, {}), (f"{DOCKER}.license", b"MIT", {}), (f"{DOCKER}.mmproj", b"GGUF vision", {}),
    ])  # fmt: skip

    kept = puller.run("oci:HOST/ai/smol:v1")

    assert contents(kept) == {"model.gguf": BIG}
    assert kept.path.parent.name == digest.removeprefix("sha256:")
    assert kept.digest == f"sha256:{hashlib.sha256(BIG).hexdigest()}"
    assert sorted(puller.relay.starts("*/blobs/*")) == [n * MIB for n in range(5)]


def test_several_layers_of_gguf_are_parts_of_one_file(puller):
    puller.push("ai/split", [(f"{DOCKER}.gguf.v3", b"GGUF%d" % n, {}) for n in range(3)])

    kept = puller.run("oci:HOST/ai/split:v1")

    assert kept.path.name == "model-00001-of-00003.gguf"
    assert [content for _, content in sorted(contents(kept).items())] == [b"GGUF0", b"GGUF1", b"GGUF2"]


def test_a_modelpack_is_its_files_by_their_paths(puller):
    puller.push("org/pack", [
        (f"{CNCF}.weight.v1.raw", BIG, {FILEPATH: "model.safetensors"}),
        (f"{CNCF}.weight.config.v1.raw", b"{}", {FILEPATH: "config.json"}),
        (f"{CNCF}.weight.config.v1.raw", b"", {FILEPATH: "empty.json"}),
        (f"{CNCF}.doc.v1.tar", b"packed", {FILEPATH: "README.md"}),
        (f"{CNCF}.code.v1.raw", b"import os", {FILEPATH: "modeling.py"}),
        (f"{CNCF}.weight.config.v1.raw", b"root", {FILEPATH: "../../x.json"}),
        (f"{CNCF}.weight.config.v1.raw", b"root", {FILEPATH: "/etc/x.json"}),
    ], artifactType=f"{CNCF}.manifest.v1+json")  # fmt: skip

    kept = puller.run("oci:HOST/org/pack:v1")

    assert contents(kept) == {"config.json": b"{}", "empty.json": b"", "model.safetensors": BIG}
    assert kept.path.is_dir()
    assert not list(puller.root.rglob("x.json"))


def test_an_artifact_of_podman_or_oras_is_its_titles(puller):
    puller.push("org/art", [("application/octet-stream", b"GGUF8", {TITLE: "m-Q8_0.gguf"})])

    assert contents(puller.run("oci:HOST/org/art:v1")) == {"m-Q8_0.gguf": b"GGUF8"}


def test_an_index_of_one_manifest_is_followed_and_one_of_several_is_not(puller):
    inner = puller.push("org/many", [(f"{DOCKER}.gguf.v3", b"GGUF8", {})])
    index = "application/vnd.oci.image.index.v1+json"
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": inner, "size": 1}
    for tag, entries in (("one", [entry]), ("two", [entry, entry])):
        push(puller.relay.target, "org/many", tag, [], mediaType=index, manifests=entries)

    assert contents(puller.run("oci:HOST/org/many:one")) == {"model.gguf": b"GGUF8"}
    assert "2 manifests" in puller.refused("oci:HOST/org/many:two").message
    assert contents(puller.run(f"oci:HOST/org/many@{inner}")) == {"model.gguf": b"GGUF8"}


def test_a_model_of_ollamas_is_its_gguf_file(puller):
    puller.push("library/llama3.2", [
        (f"{OLLAMA}.model", BIG, {}), (f"{OLLAMA}.template", b"{{ .Prompt }}", {}), (f"{OLLAMA}.params", b"{}", {}),
    ], tag="1b")  # fmt: skip
    puller.push("somebody/tiny", [(f"{OLLAMA}.model", b"GGUF tiny", {})], tag="latest")

    assert contents(puller.run("ollama:llama3.2:1b")) == {"model.gguf": BIG}
    assert contents(puller.run("ollama:somebody/tiny")) == {"model.gguf": b"GGUF tiny"}


async def test_a_tag_that_goes_on_does_not_change_what_is_served_and_contents_are_shared(puller):
    puller.push("org/tag", [(f"{DOCKER}.gguf.v3", BIG, {})])
    reference = f"oci:{puller.registry}/org/tag:v1"
    first = await fetch(reference, puller.policy(), lambda _: None)
    second = puller.push("org/tag", [(f"{DOCKER}.gguf.v3", BIG, {}), (f"{DOCKER}.license", b"x", {})])
    asked = len(puller.relay.requests)

    assert await fetch(reference, puller.policy(), lambda _: None) == first
    assert (await resolve(reference, puller.policy())).path == first.path
    assert len(puller.relay.requests) == asked
    again = puller.run(f"oci:HOST/org/tag@{second}")
    assert again.path != first.path
    assert not [each for each in puller.relay.requests[asked:] if "/blobs/" in each.path]
    for pin in (f"@{second}", f":{'4' * 40}"):  # a digest; a tag that looks like a commit
        puller.push("org/tag", [(f"{DOCKER}.gguf.v3", BIG, {})], tag="4" * 40)
        kept = puller.run(f"oci:HOST/org/tag{pin}")
        assert (await resolve(f"oci:{puller.registry}/org/tag{pin}", puller.policy())).path == kept.path


# What is refused


@pytest.mark.parametrize(
    ("layers", "code", "words"),
    [
        ([(f"{CNCF}.weight.v1.tar", b"t", {FILEPATH: "m.gguf"})], Code.MODEL_UNSUPPORTED, "packed"),
        ([("application/vnd.oci.image.layer.v1.tar+gzip", b"t", {})], Code.MODEL_UNSUPPORTED, "container image"),
        ([(f"{OLLAMA}.model", b"G", {}), (f"{OLLAMA}.adapter", b"A", {})], Code.MODEL_UNSUPPORTED, "adapter"),
        ([(f"{DOCKER}.license", b"MIT", {})], Code.MODEL_MISSING, "neither config.json nor a GGUF"),
        ([], Code.MODEL_MISSING, "no list of layers"),
    ],
)
def test_what_is_no_model_file_by_file_is_refused(puller, layers, code, words):
    puller.push("org/other", layers)

    found = puller.refused("oci:HOST/org/other:v1")

    assert (found.code, found.fatal) == (code, True)
    assert words in found.message


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b'{"layers": [{"mediaType": "x", "digest": "md5:1", "size": 3}]}', b'{"layers": [7]}',
     b'{"layers": [{"digest": "sha256:' + b"0" * 64 + b'", "size": -1}]}'],
)  # fmt: skip
def test_a_manifest_that_is_none_is_told(puller, body):
    puller.relay.fail(Fault("*/manifests/*", status=200, body=body))

    assert puller.refused("oci:HOST/org/m:v1").code == Code.SOURCE_UNAVAILABLE


def test_a_manifest_or_blob_that_is_another_one_is_corrupt(puller):
    digest = puller.push("org/flip", [(f"{DOCKER}.gguf.v3", BIG, {})])
    puller.relay.fail(Fault("*/blobs/*", flip_at=3_000_000))
    assert puller.refused("oci:HOST/org/flip:v1").code == Code.MODEL_CORRUPT
    puller.relay.heal()
    puller.relay.fail(Fault("*/manifests/*", status=200, body=b"{}"))
    assert puller.refused(f"oci:HOST/org/flip@{digest}").code == Code.MODEL_CORRUPT
    assert not [*puller.root.glob("cache/oci/*/blobs/*")]


def test_what_is_not_there_is_missing(puller):
    puller.push("org/there", [(f"{DOCKER}.gguf.v3", b"GGUF", {})])

    for reference in ("oci:HOST/org/there:v2", "oci:HOST/org/none:v1", "ollama:none"):
        found = puller.refused(reference)
        assert (found.code, found.fatal) == (Code.MODEL_MISSING, True)
        assert "tag" in found.message


def test_owners_and_repositories_are_bounded_by_the_policy(puller):
    for reference in ("oci:HOST/evil/m:v1", "ollama:evil/m"):
        found = puller.refused(reference, organisations=frozenset({"ai", "library"}))
        assert (found.code, "evil" in found.message) == (Code.POLICY_DENIED, True)
    found = puller.refused("oci:HOST/ai/m:v1", images={"repositories": ["docker.io/ai"]})
    assert (found.code, "docker.io/ai" in found.hint) == (Code.POLICY_DENIED, True)
    assert not puller.relay.requests


# Faults


@pytest.mark.parametrize("fault", [{"reset_at": MIB + 700_001}, {"cut_at": MIB + 700_001}, {"stall_at": MIB + 700_001}])
def test_a_connection_that_breaks_or_falls_silent_is_taken_up_where_it_was(puller, fault):
    puller.push("org/m", [(f"{DOCKER}.gguf.v3", BIG, {})])
    puller.relay.fail(Fault("*/blobs/*", times=1, after=1, **fault))

    assert puller.run("oci:HOST/org/m:v1", connections=1).path.read_bytes() == BIG
    taken_up = {*puller.relay.starts("*/blobs/*")} - {n * MIB for n in range(5)}
    assert "reset_at" in fault or taken_up == {MIB + 700_001}


def test_a_registry_that_is_busy_is_asked_again(puller):
    puller.push("org/m", [(f"{DOCKER}.gguf.v3", BIG, {})])
    puller.relay.fail(Fault("*", times=2, status=429, headers={"Retry-After": "0"}, body=b""))

    assert puller.run("oci:HOST/org/m:v1").path.read_bytes() == BIG


def test_a_registry_that_is_not_there_is_told(puller):
    found = puller.refused("oci:127.0.0.1:1/org/m:v1", stall_seconds=1.0)

    assert found.code == Code.SOURCE_UNAVAILABLE
    assert "127.0.0.1" in found.message


def test_a_registry_that_dies_while_it_comes_is_waited_for(puller, tmp_path):
    server = Registry(tmp_path / "mortal")
    server.start()
    push(server.port, "org/m", "v1", [(f"{DOCKER}.gguf.v3", BIG, {})])
    running = puller.fetcher(f"oci:127.0.0.1:{server.port}/org/m:v1", bytes_per_second=2 * MIB, stall_seconds=20.0)
    found = []
    thread = threading.Thread(target=lambda: found.append(running.run()))
    thread.start()
    try:
        blobs = running.job.folder.blobs
        wait(lambda: any(path.stat().st_blocks for path in blobs.glob("*.incomplete")), "begun")
        server.kill()
        assert not found
        server.start()
        thread.join(30)
    finally:
        server.kill()

    assert found[0].path.read_bytes() == BIG


# Who may read


def mirrored_by(puller: Puller, name: str) -> dict[str, Any]:
    return {"mirrors": {name: f"{puller.registry}/mirror"}}


def test_a_mirror_is_asked_instead_and_the_model_keeps_its_name(puller):
    puller.push("mirror/ai/smol", [(f"{DOCKER}.gguf.v3", b"GGUF8", {})])

    kept = puller.run("oci:docker.io/ai/smol:v1", images=mirrored_by(puller, "docker.io"))

    assert (contents(kept), kept.repo) == ({"model.gguf": b"GGUF8"}, "oci:docker.io/ai/smol:v1")


def test_a_registry_with_users_is_read_with_the_credentials_of_images(puller, tmp_path):
    private = Registry(tmp_path / "private", users=True)
    pair = base64.b64encode(f"reader:{PASSWORD}".encode()).decode()
    wrong = base64.b64encode(b"reader:canary-wrong").decode()
    try:
        private.start()
        push(private.port, "org/secret", "v1", [(f"{DOCKER}.gguf.v3", BIG, {})])
        reference = f"oci:127.0.0.1:{private.port}/org/secret:v1"
        for auth, words in (("", "images.credentials"), (wrong, "password")):
            path = _config(tmp_path / "config.json", f"127.0.0.1:{private.port}", auth)
            found = puller.refused(reference, images={"credentials": path})
            assert (found.code, words in found.hint) == (Code.MODEL_GATED, True)
        path = _config(tmp_path / "config.json", f"127.0.0.1:{private.port}", pair)
        kept = puller.run(reference, images={"credentials": path})
    finally:
        private.kill()

    assert kept.path.read_bytes() == BIG
    for file in (puller.root / "cache").rglob("*"):
        assert not file.is_file() or not [each for each in (PASSWORD, pair) if each.encode() in file.read_bytes()]


def _config(path: Path, registry: str, auth: str) -> Path:
    path.write_text(json.dumps({"auths": {registry: {"auth": auth}} if auth else {}}))
    return path


class Tokens:
    """The guard of a registry that wants tokens, each good for `uses` requests; who asks for one shows `pair`."""

    def __init__(self, puller: Puller, uses: int, pair: str = "") -> None:
        self.puller, self.uses, self.pair = puller, uses, pair
        self.given: list[str] = []
        self.left = 0

    def __call__(self, request: Any) -> Any:
        shown = request.headers.get("authorization", "")
        if request.path == "/token":
            if self.pair and shown != f"Basic {self.pair}":
                return 401, {}, b'{"details": "canary-token-server"}'
            assert "scope=repository%3Aorg%2Fm%3Apull" in request.query
            self.given.append(f"canary-token-{len(self.given)}")
            self.left = self.uses
            return 200, {}, json.dumps({"token": self.given[-1], "expires_in": 300}).encode()
        if self.given and shown == f"Bearer {self.given[-1]}" and self.left > 0:
            self.left -= 1
            return None
        realm = f'Bearer realm="http://{self.puller.registry}/token",service="test",scope="repository:org/m:pull"'
        return 401, {"WWW-Authenticate": realm}, b"{}"


def test_tokens_are_asked_for_and_renewed_when_they_end(puller, monkeypatch):
    monkeypatch.setattr(registry, "_FRESH", 0.0)  # these end at once
    puller.push("org/m", [(f"{DOCKER}.gguf.v3", BIG, {})])
    puller.relay.guard = tokens = Tokens(puller, uses=2)

    kept = puller.run("oci:HOST/org/m:v1")

    assert kept.path.read_bytes() == BIG
    assert 3 <= len(tokens.given) <= 6
    assert not [
        path for path in (puller.root / "cache").rglob("*") if path.is_file() and b"canary" in path.read_bytes()
    ]


def test_a_token_goes_to_the_registry_only_and_a_password_to_who_gives_tokens_only(puller):
    puller.push("org/m", [(f"{DOCKER}.gguf.v3", b"GGUF8", {})])
    pair = base64.b64encode(b"reader:canary-password").decode()
    path = _config(puller.root / "config.json", puller.registry, pair)
    puller.relay.guard = Tokens(puller, uses=99, pair=pair)
    with Relay(puller.relay.target) as cdn:
        for blob in ("*/blobs/*",):
            elsewhere = f"http://127.0.0.1:{cdn.port}/v2/org/m/blobs/sha256:{hashlib.sha256(b'GGUF8').hexdigest()}"
            puller.relay.fail(Fault(blob, status=307, headers={"Location": elsewhere}, body=b""))
        kept = puller.run("oci:HOST/org/m:v1", images={"credentials": path})
        assert not [each for each in cdn.requests if "authorization" in each.headers]
        assert len(cdn.requests) == 1

    assert contents(kept) == {"model.gguf": b"GGUF8"}
    shown = {each.path: each.headers.get("authorization", "")[:6] for each in puller.relay.requests}
    assert shown.pop("/token") == "Basic "
    assert set(shown.values()) == {"Bearer"}


def test_a_token_that_is_refused_or_not_given_ends_the_pull(puller):
    puller.push("org/m", [(f"{DOCKER}.gguf.v3", b"GGUF8", {})])
    puller.relay.guard = Tokens(puller, uses=0)
    assert puller.refused("oci:HOST/org/m:v1").code == Code.MODEL_GATED
    puller.relay.guard = Tokens(puller, uses=9, pair="somebody")
    found = puller.refused("oci:HOST/org/m:v1")
    assert found.code == Code.MODEL_GATED
    assert "canary" not in repr(found)


IDENTITY = "canary-identity-token"


def _in_the_file(root: Path, registry: str) -> dict[str, Any]:
    """As `az acr login` writes it."""
    nobody = base64.b64encode(b"00000000-0000-0000-0000-000000000000:").decode()
    return {"auths": {registry: {"auth": nobody, "identitytoken": IDENTITY}}}


def _by_a_helper(root: Path, registry: str) -> dict[str, Any]:
    helper = root / "docker-credential-mine"
    said = json.dumps({"ServerURL": registry, "Username": "<token>", "Secret": IDENTITY})
    helper.write_text(f"#!/bin/sh\n[ \"$(cat)\" = {registry} ] && echo '{said}'\n")
    helper.chmod(0o755)
    return {"credHelpers": {registry: "mine"}}


class IdentityTokens(Tokens):
    """Whose tokens only come for an identity token, in a form."""

    def __call__(self, request: Any) -> Any:
        if request.path != "/token":
            return super().__call__(request)
        form = dict(parse_qsl(request.body.decode()))
        if (request.method, form.get("grant_type"), form.get("refresh_token")) != ("POST", "refresh_token", IDENTITY):
            return 401, {}, b'{"details": "canary-token-server"}'
        assert (form["service"], form["scope"]) == ("test", "repository:org/m:pull")
        assert form["client_id"]
        self.given.append(f"canary-token-{len(self.given)}")
        self.left = self.uses
        return 200, {}, json.dumps({"access_token": self.given[-1], "refresh_token": "canary-other"}).encode()


@pytest.mark.parametrize("config", [_in_the_file, _by_a_helper])
def test_an_identity_token_is_shown_to_who_gives_tokens_and_nobody_else(puller, monkeypatch, config):
    puller.push("org/m", [(f"{DOCKER}.gguf.v3", BIG, {})])
    path = puller.root / "config.json"
    path.write_text(json.dumps(config(puller.root, puller.registry)))
    monkeypatch.setenv("PATH", f"{puller.root}:{os.environ['PATH']}")
    puller.relay.guard = IdentityTokens(puller, uses=99)

    kept = puller.run("oci:HOST/org/m:v1", images={"credentials": path})

    assert kept.path.read_bytes() == BIG
    shown = [each for each in puller.relay.requests if IDENTITY in repr(each)]
    assert [(each.method, each.path, each.query) for each in shown] == [("POST", "/token", "")]
    assert not any(IDENTITY in value for value in shown[0].headers.values())
    for file in (puller.root / "cache").rglob("*"):
        assert not file.is_file() or b"canary" not in file.read_bytes()


def test_an_identity_token_that_is_not_good_any_more_is_told_without_it(puller):
    puller.push("org/m", [(f"{DOCKER}.gguf.v3", b"GGUF8", {})])
    path = puller.root / "config.json"
    path.write_text(json.dumps({"auths": {puller.registry: {"identitytoken": "canary-old"}}}))
    puller.relay.guard = IdentityTokens(puller, uses=99)

    found = puller.refused("oci:HOST/org/m:v1", images={"credentials": path})

    assert (found.code, "identity token" in found.hint) == (Code.MODEL_GATED, True)
    assert "canary" not in repr(found)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"auths": {"HOST": {"auth": "?"}}}', b'{"auths": 7}'])
def test_a_file_of_credentials_that_is_none_is_told(puller, content):
    path = puller.root / "config.json"
    path.write_bytes(content.replace(b"HOST", puller.registry.encode()))

    found = puller.refused("oci:HOST/org/m:v1", images={"credentials": path})

    assert found.code == Code.SECRET_MISSING
    assert "images.credentials" in found.hint
