"""Images of engines in a listing: what a container engine says, and what is known where it says nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.planning.plan import Image
from agent.supervision import images
from agent.supervision.images import Want
from agent.supervision.service import ArtifactState

DIGEST = f"sha256:{'d' * 64}"
VLLM = Image("docker.io/vllm/vllm-openai", "v1", digest=DIGEST, id="sha256:1")
LLAMA = "ghcr.io/ggml-org/llama.cpp"
#: As dockerd lists them: its own registry is left out, and what has no name is called so.
LISTED = [
    {"Id": "sha256:1", "RepoTags": ["vllm/vllm-openai:v1"], "RepoDigests": [f"vllm/vllm-openai@{DIGEST}"], "Size": 9},
    {"Id": "sha256:2", "RepoTags": ["localhost:5000/own/engine:v2"], "RepoDigests": None, "Size": 7},
    {"Id": "sha256:3", "RepoTags": ["busybox:latest"], "RepoDigests": ["busybox@sha256:3"], "Size": 1},
    {
        "Id": "sha256:4",
        "RepoTags": ["<none>:<none>"],
        "RepoDigests": [f"ghcr.io/ggml-org/llama.cpp@{DIGEST}"],
        "Size": 5,
    },
]


@asynccontextmanager
async def engine(path: Path, answer: bytes | None) -> AsyncIterator[str]:
    """One that answers this, or nothing at all."""
    asked = set[asyncio.Task[None] | None]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.add(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()  # until it hangs up
        else:
            writer.write(answer)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield str(path)
        await asyncio.gather(*filter(None, asked))


def ok(body: object) -> bytes:
    return b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + json.dumps(body).encode()


async def test_images_of_the_catalogs_repositories_and_those_in_use_are_listed(tmp_path: Path) -> None:
    repositories = frozenset({"docker.io/vllm/vllm-openai", LLAMA})
    own = Image("localhost:5000/own/engine", "v2", id="sha256:2")
    wants = [
        Want("a", VLLM, live=True),
        Want("a", VLLM, live=False),
        Want("b", VLLM, live=False),
        Want("c", own, False),
    ]
    async with engine(tmp_path / "s", ok(LISTED)) as socket:
        found = {one.source: one for one in await images.held(socket, repositories, wants)}

    assert list(found) == [VLLM.name, own.name, LLAMA]
    vllm = found[VLLM.name]
    assert (vllm.state, vllm.format, vllm.size, vllm.digest) == (ArtifactState.EXTERNAL, "image", 9, DIGEST)
    assert (vllm.used_by, vllm.desired_by, vllm.path) == (("a",), ("a", "b"), "sha256:1")
    assert (found[own.name].used_by, found[own.name].desired_by) == ((), ("c",))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "does not answer within"),
        (b"HTTP/1.0 500 Internal Server Error\r\n\r\n{}", "500 Internal Server Error"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "Expecting value"),
        (b"", "it answers ''"),
        (ok({"Id": 1}), "cannot be asked"),
    ],
)
async def test_an_engine_that_cannot_be_asked_leaves_what_deployments_want_with_the_reason(
    answer: bytes | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_DEADLINE", 0.3)
    async with engine(tmp_path / "s", answer) as socket:
        (one,) = await images.held(socket, frozenset(), [Want("a", VLLM, live=True)])
        (nothing_known,) = await images.held(socket, frozenset(), [])

    assert (one.source, one.state, one.used_by, one.digest) == (VLLM.name, ArtifactState.UNKNOWN, ("a",), DIGEST)
    assert words in one.kept_for
    assert (nothing_known.source, nothing_known.state) == ("images", ArtifactState.UNKNOWN)


async def test_an_engine_that_is_not_there_is_told(tmp_path: Path) -> None:
    (one,) = await images.held(str(tmp_path / "none"), frozenset(), [])

    assert "No such file" in one.kept_for
