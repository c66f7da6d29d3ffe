"""The process that pulls images, against a container engine that breaks off and a credential helper that hangs."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from agent.artifacts import image_puller
from agent.artifacts.errors import ArtifactError
from agent.artifacts.image_job import ImageJob
from agent.artifacts.image_puller import Puller
from agent.status import DiagnosisCode


class _Engine(BaseHTTPRequestHandler):
    """Docker's, which ends in the middle of a message: it is being restarted."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if "/images/" in self.path:
            self._answer(404, b'{"message": "No such image"}')
        else:
            known = {"ApiVersion": "1.45", "MinAPIVersion": "1.24", "Descriptor": {"digest": f"sha256:{'0' * 64}"}}
            self._answer(200, json.dumps(known).encode())

    def do_POST(self) -> None:
        self._answer(200, b"", {"Transfer-Encoding": "chunked"})
        for piece in (b'{"status": "Pulling fs layer", "id": "a"}\n', b'{"status": "Downl'):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.close_connection = True

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return ""

    def log_message(self, *_: object) -> None:
        pass


class _Listening(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False  # connections are kept


@pytest.fixture
def job(tmp_path: Path) -> Iterator[ImageJob]:
    path = str(tmp_path / "docker.sock")
    with _Listening(path, _Engine) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield ImageJob(path, "registry.example.com/org/x", "v1")
        server.shutdown()
        thread.join()


def test_an_engine_that_ends_in_the_middle_of_a_message_is_told(job: ImageJob) -> None:
    with pytest.raises(ArtifactError) as caught:
        Puller(job).pull()

    assert caught.value.diagnosis.code == DiagnosisCode.RUNTIME_UNAVAILABLE
    assert "broke off" in caught.value.diagnosis.message


def test_a_credential_helper_that_hangs_is_told(job: ImageJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper, ended = tmp_path / "docker-credential-slow", tmp_path / "ended"
    helper.write_text(f"#!/bin/sh\nwhile [ ! -e {ended} ]; do sleep 0.1; done\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(image_puller, "_HELPER_SECONDS", 0.5)
    credentials = tmp_path / "config.json"
    credentials.write_text('{"credHelpers": {"registry.example.com": "slow"}}')

    with pytest.raises(ArtifactError) as caught:
        Puller(ImageJob(job.socket, job.repository, job.tag, credentials=str(credentials))).pull()

    ended.touch()
    assert caught.value.diagnosis.code == DiagnosisCode.SECRET_MISSING
    assert f"the credential helper that {credentials} names" in caught.value.diagnosis.message
