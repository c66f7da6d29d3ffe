"""What a model is, from its headers at its source: nothing is kept, and little comes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agent.artifacts.base import ArtifactError
from agent.artifacts.sources import fetch, look
from agent.models.profiles import Profiles, parsed
from agent.status import DiagnosisCode as Code
from tests.artifacts.registries import CNCF, DOCKER, FILEPATH
from tests.gguf_factory import make_gguf
from tests.hf_factory import make_hf
from tests.hub.server import Fault, Request
from tests.relay import Answer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two MB, of which the header is a hundredth."""
    return make_gguf(tmp_path_factory.mktemp("m") / "m.gguf", hidden=256, vocab=1024, quantization="F16").read_bytes()


async def test_a_gguf_file_is_known_by_its_header_and_by_all_of_it_alike(puller, model: bytes) -> None:
    puller.push("org/m", [(f"{DOCKER}.gguf.v3", model, {})])
    reference, policy = f"oci:{puller.registry}/org/m:v1", puller.policy()

    seen = parsed(await look(reference, policy), reference)

    assert not list(puller.root.glob("cache/oci/*/blobs/*"))
    asked = [each.headers.get("range", "") for each in puller.relay.asked("*/blobs/*")]
    assert sum(int(text.split("-")[1]) - int(text.split("=")[1].split("-")[0]) + 1 for text in asked) < len(model)
    fetched = await fetch(reference, policy, lambda _: None)
    known = await Profiles().profile(fetched.path)
    assert (seen.architecture, seen.quantization, seen.file_bytes) == (
        known.architecture, known.quantization, known.file_bytes,
    )  # fmt: skip
    assert await look(reference, policy) is None  # it is here


async def test_a_server_without_ranges_is_read_from_the_beginning(puller, model: bytes) -> None:
    puller.push("org/m", [(f"{DOCKER}.gguf.v3", model, {})])
    for request in ("*/blobs/*",):
        puller.relay.fail(Fault(request, status=200, headers={"Content-Range": ""}, body=model))

    assert (await look(f"oci:{puller.registry}/org/m:v1", puller.policy()))["quantization"] == "F16"


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", Code.MODEL_CORRUPT), (b"GGUF\x03\0\0\0" + b"\xff" * 64, Code.MODEL_CORRUPT)],
    ids=["empty", "absurd"],
)  # fmt: skip
async def test_a_header_that_is_none_is_refused_before_anything_is_fetched(
    puller, content: bytes, code: Code
) -> None:  # fmt: skip
    puller.push("org/m", [(f"{DOCKER}.gguf.v3", content, {})])

    with pytest.raises(ArtifactError) as caught:
        await look(f"oci:{puller.registry}/org/m:v1", puller.policy())

    assert caught.value.diagnosis.code == code
    assert not list(Path(puller.root).glob("cache/oci/*"))


async def test_a_server_that_asks_to_wait_is_waited_for(puller, model: bytes) -> None:
    puller.push("org/m", [(f"{DOCKER}.gguf.v3", model, {})])
    refused: list[float] = []

    def busy(request: Request) -> Answer | None:
        if "/blobs/" not in request.path or (refused and time.monotonic() > refused[0] + 0.9):
            return None
        refused.append(time.monotonic())
        return 429, {"Retry-After": "1"}, b""

    puller.relay.guard = busy

    assert (await look(f"oci:{puller.registry}/org/m:v1", puller.policy()))["quantization"] == "F16"
    assert refused


async def test_safetensors_are_known_by_their_headers(puller, tmp_path: Path) -> None:
    folder = make_hf(tmp_path / "hf")
    kinds = {".safetensors": f"{CNCF}.weight.v1.raw"}
    puller.push("org/m", [
        (kinds.get(path.suffix, f"{CNCF}.weight.config.v1.raw"), path.read_bytes(), {FILEPATH: path.name})
        for path in sorted(folder.iterdir())
    ])  # fmt: skip
    reference = f"oci:{puller.registry}/org/m:v1"

    seen = parsed(await look(reference, puller.policy()), reference)

    known = await Profiles().profile(folder)
    assert (seen.format, seen.architecture, seen.parameters) == (known.format, known.architecture, known.parameters)
