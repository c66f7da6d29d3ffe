"""A Hugging Face hub on loopback: the real protocol, so that real clients work with it, and faults to be switched on.

Two servers, as in reality: the hub itself, and beside it the CDN that it redirects to for large files. What is spoken:
`/api/models` (the listing), `/api/models/...` (info, tree, refs), `/owner/name/resolve/revision/path` with ETag,
X-Repo-Commit, X-Linked-Size and X-Linked-Etag, ranges, refusals with X-Error-Code. Sources: huggingface_hub 2.4,
`hf_api.py`, `file_download.py` and `utils/_http.py`. There is no xet: files are announced without its hash, and clients
then use plain HTTP.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from tests.hub.repos import CHUNK, File, Repo, entry_of, info_of, listed_of, refs_of, tags_of


@dataclass
class Fault:
    """What goes wrong with requests whose path matches: all that is given, at once. Positions are bytes of the body."""

    path: str = "*"  # a pattern: /api/models/*, */resolve/*/config.json, /cdn/*
    times: int = 1 << 30  # requests that it happens to ...
    after: int = 0  # ... once that many others have matched
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)  # added, or replacing what would be sent
    body: bytes | None = None  # sent instead
    reset_at: int = -1  # the connection is reset
    cut_at: int = -1  # the connection is closed in the usual way
    stall_at: int = -1  # silence, until the server stops
    drip_seconds: float = 0.0  # between single bytes, the head's among them
    flip_at: int = -1  # one bit of this byte of the file is another
    etag: str = ""  # announced instead
    endless: bool = False  # the body goes on for ever
    ignore_range: bool = False

    def __post_init__(self) -> None:
        self.seen = 0

    def strikes(self, path: str) -> bool:
        if not fnmatch.fnmatchcase(path, self.path):
            return False
        self.seen += 1
        return self.after < self.seen <= self.after + self.times


def gated() -> Fault:
    return Fault("*/resolve/*", status=403, headers={"X-Error-Code": "GatedRepo"}, body=b"{}")


def too_many(seconds: int, *, path: str = "*", times: int = 1) -> Fault:
    return Fault(path, times, status=429, headers={"Retry-After": str(seconds)}, body=b'{"error": "rate limited"}')


def redirect(location: str, *, path: str = "*") -> Fault:
    return Fault(path, status=302, headers={"Location": location}, body=b"")


@dataclass(frozen=True)
class Request:
    """What was asked. `origin` is hub or cdn; header names are lower case."""

    origin: str
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = b""


class Hub:
    """Both servers, each with a thread a connection. `tokens` are those that the hub knows; with `tls` it is https."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tokens: set[str] = set()
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.sent = 0  # bytes of bodies
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self._servers = {origin: _Server(self, origin, tls) for origin in ("hub", "cdn")}
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.01,)) for server in self._servers.values()
        ]

    @property
    def endpoint(self) -> str:
        return self._servers["hub"].url

    @property
    def cdn(self) -> str:
        return self._servers["cdn"].url

    def repo(self, name: str, files: Mapping[str, bytes | Path | File], **rest: Any) -> Repo:
        """A new repository with one commit."""
        found = self.repos[name] = Repo(name, **rest)
        found.commit(files)
        return found

    def fail(self, fault: Fault) -> Fault:
        with self.lock:
            self.faults.append(fault)
        return fault

    def heal(self) -> None:
        with self.lock:
            self.faults.clear()

    def asked(self, pattern: str) -> list[Request]:
        """Requests whose path matches."""
        with self.lock:
            return [request for request in self.requests if fnmatch.fnmatchcase(request.path, pattern)]

    def struck(self, path: str) -> Fault | None:
        with self.lock:
            return next((fault for fault in self.faults if fault.strikes(path)), None)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stopping.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, hub: Hub, origin: str, tls: ssl.SSLContext | None) -> None:
        self.hub, self.origin, self.scheme = hub, origin, "https" if tls else "http"
        super().__init__(("127.0.0.1", 0), _Handler)
        if tls:  # hands are shaken by each connection's own thread
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up: that is theirs to do."""


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: dict[str, str]
    file: File  # the body


class _Refusal(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 60.0
    disable_nagle_algorithm = True  # head and body are written one after the other

    def log_message(self, format: str, *args: Any) -> None:
        """Tests print what they find."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def _serve(self) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        path = unquote(parts.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        with hub.lock:
            hub.requests.append(Request(self.server.origin, self.command, path, parts.query, headers))
        fault = hub.struck(path) or Fault()
        try:
            answer = self._cdn(path) if self.server.origin == "cdn" else self._hub(path, parse_qs(parts.query))
        except _Refusal as refusal:
            answer = _refused(refusal)
        if fault.body is not None:
            answer = _Answer(fault.status or answer.status, {"Content-Type": "text/plain"}, File(fault.body))
        headers = answer.headers | ({"ETag": f'"{fault.etag}"'} if fault.etag else {}) | dict(fault.headers)
        self._send(fault.status or answer.status, headers, answer.file, fault)

    # What is answered

    def _hub(self, path: str, query: Mapping[str, list[str]]) -> _Answer:
        if path == "/api/models":
            return self._listing(query)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|refs)(?:/(.*))?)?", path):
            if new := self.server.hub.renamed.get(match[1]):
                return _Answer(307, {"Location": path.replace(match[1], new, 1)}, File(b""))
            return self._described(self._repo(match[1]), match[2], match[3], query)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if new := self.server.hub.renamed.get(match[1]):
                return _Answer(307, {"Location": path.replace(match[1], new, 1)}, File(b""))
            return self._resolve(self._repo(match[1], for_files=True), match[2], match[3])
        raise _Refusal(404, "", "Sorry, we can't find the page you are looking for.")

    def _described(self, repo: Repo, what: str, rest: str, query: Mapping[str, list[str]]) -> _Answer:
        if what == "refs":
            return _json(refs_of(repo))
        if what == "tree":
            return self._tree(repo, rest, query)
        sha, files = _at(repo, rest or "main")
        return _json(info_of(repo, sha, files, blobs="blobs" in query))

    def _token(self) -> str:
        found = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if found and found not in self.server.hub.tokens:
            raise _Refusal(401, "", "Invalid credentials in Authorization header")
        return found

    def _repo(self, name: str, *, for_files: bool = False) -> Repo:
        """401 where nobody said who they are, as the hub does for what is not there, too."""
        token, repo = self._token(), self.server.hub.repos.get(name)
        if repo is None or (repo.private and token not in repo.granted):
            raise _Refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        if repo.gated and for_files and token not in repo.granted:
            message = f"Access to model {name} is restricted and you are not in the authorized list."
            raise _Refusal(403 if token else 401, "GatedRepo", message)
        return repo

    def _resolve(self, repo: Repo, revision: str, path: str) -> _Answer:
        sha, files = _at(repo, revision)
        if path not in files:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        file, common = files[path], {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if not file.lfs:
            return _Answer(200, common | {"ETag": f'"{file.oid}"', "Content-Type": "text/plain"}, file)
        linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"', "ETag": f'"{file.oid}"'}
        target = f"{self.server.hub.cdn}/cdn/{repo.name}/{sha}/{path}?Signature=none"
        return _Answer(302, common | linked | {"Location": target}, File(f"Found. Redirecting to {target}".encode()))

    def _cdn(self, path: str) -> _Answer:
        match = re.fullmatch(r"/cdn/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path)
        repo = self.server.hub.repos.get(match[1]) if match else None
        file = repo.commits.get(match[2], {}).get(match[3]) if match and repo else None
        if file is None:
            raise _Refusal(403, "", "AccessDenied")
        return _Answer(200, {"ETag": f'"{file.sha256}"', "Accept-Ranges": "bytes"}, file)

    def _tree(self, repo: Repo, rest: str, query: Mapping[str, list[str]]) -> _Answer:
        revision, _, below = rest.partition("/")
        _, files = _at(repo, revision)
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        prefix, found = f"{below}/" if below else "", dict[str, dict[str, Any]]()
        for path, file in files.items():
            name, deeper, _ = path.removeprefix(prefix).partition("/")
            if not path.startswith(prefix):
                continue
            if deeper:
                oid = hashlib.sha1((prefix + name).encode()).hexdigest()
                found[prefix + name] = {"type": "directory", "oid": oid, "size": 0, "path": prefix + name}
            if recursive or not deeper:
                found[path] = entry_of(path, file)
        start, limit = int(query.get("cursor", ["0"])[0]), min(1000, int(query.get("limit", ["1000"])[0]))
        answer = _json(list(found.values())[start : start + limit])
        if start + limit < len(found):
            more = f"recursive={recursive}&limit={limit}&cursor={start + limit}"
            url = f"{self.server.url}{urlsplit(self.path).path}?{more}"
            answer.headers["Link"] = f'<{url}>; rel="next"'
        return answer

    def _listing(self, query: Mapping[str, list[str]]) -> _Answer:
        """Models with all of the tags that are asked for; of other ways to ask only those by which it is sorted."""
        token, hub = self._token(), self.server.hub
        with hub.lock:
            repos = [repo for repo in hub.repos.values() if not repo.private or token in repo.granted]
        wanted = set(query.get("filter", []))
        repos = [repo for repo in repos if wanted <= set(tags_of(repo, repo.commits[repo.refs["main"]]))]
        if query.get("sort") == ["downloads"]:
            repos.sort(key=lambda repo: -repo.downloads)
        start, limit = int(query.get("cursor", ["0"])[0]), int(query.get("limit", ["1000"])[0])
        answer = _json([listed_of(repo, query.get("expand", [])) for repo in repos[start : start + limit]])
        if start + limit < len(repos):
            more = urlencode({**query, "cursor": [start + limit]}, doseq=True)
            answer.headers["Link"] = f'<{self.server.url}/api/models?{more}>; rel="next"'
        return answer

    # How it is sent

    def _send(self, status: int, headers: dict[str, str], file: File, fault: Fault) -> None:
        start, end = 0, file.size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if status == 200 and asked and not fault.ignore_range:
            start, end = int(asked[1]), min(end, int(asked[2]) + 1) if asked[2] else end
            if start >= file.size:
                status, start, end = 416, 0, 0
                headers["Content-Range"] = f"bytes */{file.size}"
            else:
                status, headers = (
                    206,
                    headers | {"Content-Range": f"bytes {start}-{end - 1}/{file.size}"} | dict(fault.headers),
                )
        if fault.drip_seconds:
            self._drip(status, fault.drip_seconds)
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault.endless:
            self.send_header("Connection", "close")
        elif "Content-Length" not in headers:
            self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command != "HEAD":
            self._write(file, start, end, fault)

    def _write(self, file: File, start: int, end: int, fault: Fault) -> None:
        at = start
        for piece in file.pieces(start, end):
            if at <= fault.flip_at < at + len(piece):
                place = fault.flip_at - at
                piece = piece[:place] + bytes([piece[place] ^ 1]) + piece[place + 1 :]  # noqa: PLW2901
            stops = [stop - (at - start) for stop in (fault.reset_at, fault.cut_at, fault.stall_at) if stop >= 0]
            if any(stop < len(piece) for stop in stops):
                self._put(piece[: max(0, min(stops))])
                self._stop(fault)
                return
            self._put(piece)
            at += len(piece)
        while fault.endless and not self.server.hub.stopping.is_set():
            self._put(b" " * CHUNK)
        self.close_connection = self.close_connection or fault.endless

    def _put(self, data: bytes) -> None:
        self.wfile.write(data)
        with self.server.hub.lock:
            self.server.hub.sent += len(data)

    def _stop(self, fault: Fault) -> None:
        self.wfile.flush()
        self.close_connection = True
        if fault.stall_at >= 0:
            self.server.hub.stopping.wait()
        if fault.reset_at >= 0:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _drip(self, status: int, seconds: float) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            for byte in f"HTTP/1.1 {status} OK\r\nX-Filler: {'x' * 10_000}".encode():
                self.wfile.write(bytes([byte]))
                if self.server.hub.stopping.wait(seconds):
                    return


def _at(repo: Repo, revision: str) -> tuple[str, dict[str, File]]:
    found = repo.files(revision)
    if found is None:
        raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return found


def _json(data: object) -> _Answer:
    return _Answer(200, {"Content-Type": "application/json; charset=utf-8"}, File(json.dumps(data).encode()))


def _refused(refusal: _Refusal) -> _Answer:
    headers = {"X-Error-Message": refusal.message, "Content-Type": "application/json"}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return _Answer(refusal.status, headers, File(json.dumps({"error": refusal.message}).encode()))
