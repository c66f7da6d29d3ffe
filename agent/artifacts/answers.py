"""Asks for the rest of a part, and says whether what answers is that part of that file."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from agent.artifacts.access import SourceAccess
from agent.artifacts.coming import ComingFile, StartOver, Task
from agent.artifacts.connections import Answer, Connections
from agent.artifacts.errors import corrupt, unavailable
from agent.retries import Again


def asked(connections: Connections, file: ComingFile, task: Task, access: SourceAccess, subject: str) -> Answer:
    """An answer whose body is the rest of the part. Raises `Again`, `StartOver`, and what is final."""
    start, end, etag, url = file.span(task)
    ranged = start > 0 or end < file.wanted.size
    headers = {"Range": f"bytes={start}-{end - 1}"} if ranged else {}
    if ranged and etag and not etag.startswith("W/"):
        headers["If-Range"] = etag
    answer = connections.get(url, headers)
    try:
        host = urlsplit(answer.url).hostname or ""
        if answer.status in {401, 403} and file.forget_target():
            raise Again(f"{host} no longer gives it at the address that the hub named")
        if answer.status == 416 or (answer.status == 200 and ranged):
            raise StartOver("it is not what it was, or cannot be had in parts", parts=answer.status == 416)
        if answer.status not in {200, 206}:
            raise access.refusal(answer.status, answer.headers, f"{file.wanted.name} of {subject}", host)
        _check(answer, file, start)
        file.identify(task, answer.headers.get("etag", ""), answer.url if answer.linked else "")
    except BaseException:
        answer.close()
        raise
    return answer


def _check(answer: Answer, file: ComingFile, start: int) -> None:
    """Whether it is the file that was listed. Raises `ArtifactError`."""
    wanted = file.wanted
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise unavailable(f"{wanted.name}: the answer is compressed though nobody asked for that", "")
    size = _total(answer, start)
    if size not in {None, wanted.size}:
        raise unavailable(f"{wanted.name}: it is listed with {wanted.size} bytes, and served with {size}", "")
    linked = (answer.linked or answer.headers).get("x-linked-etag", "").strip('"').removeprefix("sha256:")
    if linked and wanted.digest.startswith("sha256:") and f"sha256:{linked}" != wanted.digest:
        raise corrupt(f"{wanted.name}: the hub lists it as {wanted.digest}, and serves sha256:{linked}")


def _total(answer: Answer, start: int) -> int | None:
    """Bytes of the whole file, as the answer says. Raises `ArtifactError` for another range than was asked for."""
    if answer.status == 200:
        return answer.length
    said = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", answer.headers.get("content-range", ""))
    if said is None or int(said[1]) != start:
        raise unavailable("another range came back than was asked for", "")
    return int(said[2])
