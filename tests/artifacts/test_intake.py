"""How bytes get from a connection into a file: through a pipe where the kernel can, through memory where not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.artifacts.access import Plain
from agent.artifacts.connections import Answer, ConnectionFailed, Connections
from agent.artifacts.intake import BUFFER, InMemory, InPipe, Intake

BODY = random.Random(3).randbytes(3 * BUFFER + 4711)


@contextlib.contextmanager
def answered(head: str, *pieces: bytes, hold: bool = False) -> Iterator[Answer]:
    """One answer of a server that sends just this; with `hold` it then stays silent."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client, contextlib.suppress(OSError):
                client.recv(65536)
                client.sendall(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + pieces[0])
                for piece in pieces[1:]:
                    client.sendall(piece)
                done.wait(30 if hold else 0)

        thread = threading.Thread(target=serve)
        thread.start()
        connections = Connections(Plain(), 1.5 if hold else 30.0)
        try:
            yield connections.get(f"http://127.0.0.1:{server.getsockname()[1]}/x", {})
        finally:
            done.set()
            connections.close()
            thread.join()


def received(answer: Answer, came: Intake, path: Path, most: int = BUFFER) -> bytes:
    """All of it, by way of a file."""
    at, descriptor = 0, os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        while came.take(answer, most):
            if came.full or came.size >= most:
                count = came.size
                came.write(descriptor, at)
                assert came.size == 0
                at += count
        count = came.size
        came.write(descriptor, at)
        return os.pread(descriptor, at + count, 0)
    finally:
        os.close(descriptor)
        came.close()


@pytest.mark.parametrize("way", [InMemory, InPipe])
@pytest.mark.parametrize("most", [BUFFER, 1000])
def test_both_ways_bring_the_same_with_what_came_beside_the_head(way: type[Intake], most: int, tmp_path: Path) -> None:
    body = BODY if most == BUFFER else BODY[:20_000]
    with answered(f"Content-Length: {len(body)}", body[:900], body[900:]) as answer:
        assert received(answer, way(), tmp_path / "file", most) == body
        assert answer.length == 0


def test_a_body_in_chunks_comes_through_memory(tmp_path: Path) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (BODY[:5000], BODY[5000:9000])) + b"0\r\n\r\n"
    with answered("Transfer-Encoding: chunked", chunks) as answer:
        assert not answer.spliceable
        assert received(answer, InMemory(), tmp_path / "file") == BODY[:9000]


def test_a_file_that_takes_nothing_from_pipes_is_written_all_the_same(tmp_path: Path) -> None:
    """As some file systems; here because it is open for appending."""
    with answered(f"Content-Length: {len(BODY)}", BODY) as answer:
        came, descriptor = InPipe(), os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        while came.take(answer, BUFFER):
            if came.full:
                came.write(descriptor, 0)
        came.write(descriptor, 0)
        came.close()
        os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_full_pipe_is_written_before_more_is_taken(tmp_path: Path) -> None:
    with answered(f"Content-Length: {len(BODY)}", BODY) as answer:
        came = InPipe()
        fcntl.fcntl(came._in, fcntl.F_SETPIPE_SZ, 4096)  # a single page, as where a user has many pipes
        while not came.full:
            assert came.take(answer, BUFFER)
        assert 0 < came.size < BUFFER
        descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        begun = came.size
        came.write(descriptor, 0)
        assert (came.size, came.full) == (0, False)
        assert os.pread(descriptor, begun, 0) + received(answer, came, tmp_path / "rest") == BODY
        os.close(descriptor)


@pytest.mark.parametrize("way", [InMemory, InPipe])
def test_silence_and_an_end_are_told_apart_and_what_came_is_kept(way: type[Intake], tmp_path: Path) -> None:
    came = way()
    with answered("Content-Length: 5000", BODY[:1000], hold=True) as answer:
        assert came.take(answer, 5000)
        with pytest.raises(ConnectionFailed, match="silent"):
            while came.take(answer, 5000 - came.size):
                pass
    assert came.size == 1000
    came.drop()
    with answered("Content-Length: 5000", BODY[:1000]) as answer:
        while came.take(answer, 5000 - came.size):
            pass
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    came.write(descriptor, 0)
    os.close(descriptor)
    came.close()
    assert path.read_bytes() == BODY[:1000]
