"""What a repository of ModelScope has, by its plain HTTP API, which publishes the sha256 of every file (modelscope_hub
0.5, `_legacy_api.py` and `_download.py`). Imported in the process that fetches, and only there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from agent.artifacts.access import Plain, asking
from agent.artifacts.cache import is_plain
from agent.artifacts.coming import Listing, Wanted
from agent.artifacts.errors import missing, refused, unavailable
from agent.artifacts.job import Job
from agent.origins import Origin, origin_of
from agent.retries import TRANSIENT
from agent.status import DiagnosisCode

#: Entries behind which the API leaves the others out without a word (modelscope_hub, `REPO_FILES_TRUNCATION_LIMIT`).
_CUT = 3000
_MOST_LISTING = 16 * 1024**2


def connect(job: Job) -> tuple[MsAccess, Callable[[], Listing]]:
    """How files are asked for, and what lists them."""
    access = MsAccess(job)
    return access, lambda: _list(job, access)


class MsAccess(Plain):
    """A token is sent as its own clients do: newer parts of the API read one header, older ones the other."""

    def __init__(self, job: Job) -> None:
        self._token, self._home = job.token, origin_of(urlsplit(job.endpoint))

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self._token,) if self._token else ()

    def headers(self, origin: Origin) -> Mapping[str, str]:
        if not self._token or origin != self._home:
            return {}
        return {"Authorization": f"Bearer {self._token}", "Cookie": f"m_session_id={self._token}"}

    def refusal(self, status: int, headers: Mapping[str, str], subject: str, host: str) -> Exception:
        if status in TRANSIENT:
            return super().refusal(status, headers, subject, host)
        if status in {401, 403}:
            hint = "a private model needs a token that may read it: fetch.ms_token_file"
            return refused(DiagnosisCode.MODEL_GATED, f"{subject}: {host} does not give it (status {status})", hint)
        if status == 404:
            return missing(f"{subject} does not exist, or may not be seen", "are name and revision right?")
        return unavailable(f"{subject}: {host} answers with status {status}")


def _list(job: Job, access: MsAccess) -> Listing:
    """Raises `Again` and `ArtifactError`."""
    host = urlsplit(job.endpoint).hostname or ""
    query = urlencode({"Revision": job.revision, "Recursive": "True"})
    with asking(access, job) as connections:
        answer = connections.get(f"{job.endpoint}/api/v1/models/{job.repo}/repo/files?{query}", {})
        if answer.status != 200:
            raise access.refusal(answer.status, answer.headers, job.source, host)
        said = answer.body(_MOST_LISTING)
    try:
        return Listing("", dict(_files(job, json.loads(said)["Data"]["Files"] or [])))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise unavailable(f"{host} does not answer for {job.source} as ModelScope does", "is it one?") from None


def _files(job: Job, entries: list[dict[str, Any]]) -> Iterator[tuple[str, Wanted]]:
    if len(entries) >= _CUT:
        raise missing(f"{job.source} has {_CUT} files or more, of which ModelScope does not list all")
    for entry in entries:
        name, size, digest = str(entry["Path"]), entry.get("Size"), str(entry.get("Sha256"))
        if entry.get("Type") == "tree" or not is_plain(name):
            continue
        if not isinstance(size, int) or not 0 <= size < 1 << 60 or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise unavailable(f"{job.source}: {name[:80]!r} is listed without a size and a sha256", "")
        query = urlencode({"Revision": job.revision, "FilePath": name})
        url = f"{job.endpoint}/api/v1/models/{job.repo}/repo?{query}"
        yield name, Wanted(name, url, size, f"sha256:{digest}", digest)
