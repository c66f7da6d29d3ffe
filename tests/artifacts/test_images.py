"""Pulling images: what is decided before a container engine is asked, and how its words are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.artifacts import images
from agent.artifacts.errors import ArtifactError
from agent.artifacts.image_failures import diagnosed
from agent.artifacts.image_job import ImageJob
from agent.artifacts.image_progress import Layers
from agent.artifacts.images import ImagePolicy, mirrored, pull
from agent.errors import InvalidArgument
from agent.references import ImageReference
from agent.settings import ImagesConfig
from agent.status import DiagnosisCode
from agent.strict import validate

IMAGE = ImageReference("docker.io/vllm/vllm-openai", "v1")

# Policy


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"repositories": ["docker.io/vllm/vllm"]}, "images.repositories allows: docker.io/vllm/vllm"),
        ({"repositories": []}, "images.repositories allows: none"),
        ({"require_digest": True}, "give its digest in catalog/engines.yaml"),
    ],
)
async def test_what_policy_refuses_asks_no_container_engine(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        await pull(IMAGE, ImagePolicy(tmp_path / "none.sock", ImagesConfig(**config)), lambda _: None)

    assert caught.value.diagnosis.code == DiagnosisCode.POLICY_DENIED
    assert said in caught.value.diagnosis.hint


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("docker.io/vllm/vllm-openai", "mirror.example.com/hub/vllm/vllm-openai"),
        ("ghcr.io/ggml-org/llama.cpp", "all.example.com:5000/ghcr.io/ggml-org/llama.cpp"),
    ],
)
def test_a_mirror_stands_for_its_registry_and_that_of_all_others_keeps_their_names(
    repository: str, expected: str
) -> None:
    mirrors = {"docker.io": "mirror.example.com/hub", "*": "all.example.com:5000"}

    assert mirrored(repository, mirrors) == expected
    assert mirrored(repository, {}) == repository


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("mirrors", {"docker.io": "https://mirror"}, "must be a registry and perhaps a path"),
        ("mirrors", {"https://docker.io": "mirror"}, "must be a registry such as docker.io"),
        ("repositories", ["docker.io/*"], "must be a registry and perhaps a path"),
        ("credentials", "~/.docker/config.json", "must be an absolute path"),
        ("tries", 0, "must be at least 1"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_with_its_rule(field: str, value: object, rule: str) -> None:
    with pytest.raises(InvalidArgument, match=rule) as caught:
        validate(ImagesConfig, {field: value}, "images")

    assert caught.value.violations[0].field.startswith(field)


def test_a_job_is_the_same_after_its_way_to_the_child() -> None:
    job = ImageJob("/run/docker.sock", "docker.io/org/x", "v1", digest=f"sha256:{'0' * 64}", expected=3, offline=True)

    assert ImageJob.decode(job.encode()) == job


def test_the_daemon_does_not_carry_the_docker_sdk() -> None:
    code = (
        "import sys, agent.daemon, agent.artifacts.images, agent.engines.images\n"
        "print([name for name in ('docker', 'requests', 'urllib3') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout == "[]\n"


async def test_a_process_that_cannot_be_started_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.sys, "executable", "/nonexistent")
    policy = ImagePolicy(tmp_path / "docker.sock", ImagesConfig(tries=1))

    with pytest.raises(ArtifactError) as caught:
        await pull(IMAGE, policy, lambda _: None)

    assert caught.value.diagnosis.code == DiagnosisCode.LAUNCH_FAILED
    assert "cannot be started: No such file or directory" in caught.value.diagnosis.message


# Progress


def layer(name: str, status: str, current: int = 0, total: int = 0) -> dict[str, Any]:
    detail = {"current": current, "total": total} if total else {}
    return {"id": name, "status": status, "progressDetail": detail}


def told(layers: Layers, *messages: dict[str, Any]) -> Layers:
    for message in messages:
        layers.tell(message)
    return layers


def seen(layers: Layers) -> tuple[str, int, int]:
    return layers.step, layers.done, layers.total


def test_bytes_are_those_of_all_layers_and_their_sum_is_known_when_each_has_told_its_own() -> None:
    layers = told(Layers(), layer("a", "Pulling fs layer"), layer("b", "Pulling fs layer"), layer("b", "Waiting"),
                  layer("a", "Downloading", 10, 100))  # fmt: skip

    assert seen(layers) == ("fetching the image", 10, 0)
    told(layers, layer("b", "Downloading", 5, 50))
    assert seen(layers) == ("fetching the image", 15, 150)


def test_until_then_the_catalogs_size_stands_for_it() -> None:
    layers = told(Layers(expected=1000), layer("a", "Pulling fs layer"), layer("b", "Downloading", 1, 400))
    assert layers.total == 1000

    told(layers, layer("a", "Downloading", 1, 900))
    assert layers.total == 1300


def test_a_download_that_was_broken_off_goes_on_where_it_was() -> None:
    layers = told(Layers(), layer("a", "Downloading", 60, 100))

    moved = [layers.tell(layer("a", f"Retrying in {seconds} seconds")) for seconds in (2, 1)]
    told(layers, layer("a", "Downloading", 5, 40))  # of the 40 that were left

    assert moved == [False, False]
    assert seen(layers) == ("fetching the image", 65, 100)


def test_layers_that_are_here_already_count_for_nothing() -> None:
    layers = told(Layers(expected=1000), layer("a", "Already exists"), layer("b", "Downloading", 20, 30))

    assert seen(layers) == ("fetching the image", 20, 30)


def test_once_all_is_here_it_is_unpacked() -> None:
    layers = told(Layers(), layer("a", "Downloading", 1, 100), layer("b", "Downloading", 1, 50),
                  layer("a", "Download complete"), layer("a", "Extracting", 30, 100))  # fmt: skip
    assert seen(layers) == ("fetching the image", 101, 150)

    told(layers, layer("b", "Verifying Checksum"))
    assert seen(layers) == ("unpacking the image", 30, 150)
    told(layers, layer("a", "Pull complete"), layer("b", "Extracting", 20, 50))
    assert seen(layers) == ("unpacking the image", 120, 150)
    told(layers, layer("b", "Pull complete"))
    assert seen(layers) == ("unpacking the image", 150, 150)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"status": "Status: Downloaded newer image"},
        {"id": "v1", "status": "Pulling from org/x"},
        {"id": "a", "status": "Downloading", "progressDetail": {"current": "x", "total": -5}},
        {"id": "a", "status": "Downloading", "progressDetail": None},
        {"id": 3, "status": None},
    ],
)
def test_messages_that_say_nothing_of_bytes_are_harmless(message: dict[str, Any]) -> None:
    layers = told(Layers(), layer("a", "Downloading", 7, 9), message)

    assert (layers.done, layers.step) == (7, "fetching the image")


# Failures, in the words of engines and registries


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("manifest for docker.io/org/x:v2 not found: manifest unknown: manifest unknown", DiagnosisCode.IMAGE_MISSING),
        ("name unknown: repository name not known to registry", DiagnosisCode.IMAGE_MISSING),
        ("pull access denied for org/x, repository does not exist or may require 'docker login': denied",
         DiagnosisCode.IMAGE_DENIED),
        ('Head "https://r/v2/org/x/manifests/v1": no basic auth credentials', DiagnosisCode.IMAGE_DENIED),
        ("unauthorized: authentication required", DiagnosisCode.IMAGE_DENIED),
        ('error parsing HTTP 403 response body: "Forbidden"', DiagnosisCode.IMAGE_DENIED),
        ("toomanyrequests: You have reached your pull rate limit.", DiagnosisCode.SOURCE_UNAVAILABLE),
        ("filesystem layer verification failed for digest sha256:ad61", DiagnosisCode.IMAGE_CORRUPT),
        ("manifest verification failed for digest sha256:ad61", DiagnosisCode.IMAGE_CORRUPT),
        ("write /var/lib/docker/tmp/GetImageBlob1: no space left on device", DiagnosisCode.DISK_FULL),
        ("no matching manifest for linux/arm64/v8 in the manifest list entries", DiagnosisCode.CPU_UNSUPPORTED),
        ('Get "https://r/v2/": dial tcp 10.0.0.1:443: connect: connection refused', DiagnosisCode.SOURCE_UNAVAILABLE),
        ('Get "https://r/v2/": dial tcp: lookup r on 10.0.0.2:53: no such host', DiagnosisCode.SOURCE_UNAVAILABLE),
        ('Get "https://r/v2/": x509: certificate signed by unknown authority', DiagnosisCode.SOURCE_UNAVAILABLE),
        ('Get "https://r/v2/": http: server gave HTTP response to HTTPS client', DiagnosisCode.SOURCE_UNAVAILABLE),
        ("received unexpected HTTP status: 503 Service Unavailable", DiagnosisCode.SOURCE_UNAVAILABLE),
        ("unexpected EOF", DiagnosisCode.SOURCE_UNAVAILABLE),
        ("", DiagnosisCode.SOURCE_UNAVAILABLE),
    ],
)  # fmt: skip
def test_an_engines_words_become_a_diagnosis_with_a_hint(said: str, code: DiagnosisCode) -> None:
    found = diagnosed("docker.io/org/x:v1", said)

    assert found.code == code
    assert found.message.startswith("docker.io/org/x:v1 cannot be pulled: ")
    assert found.hint
    assert found.evidence == said
