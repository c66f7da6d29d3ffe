"""What a bucket of Google Cloud Storage has, by its JSON API (cloud.google.com/storage/docs/json_api/v1/objects); who
asks is google-auth's to know. Imported in the process that fetches, and only there.
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from agent.artifacts.access import Plain, asking
from agent.artifacts.cache import MOST_FILES, is_plain
from agent.artifacts.coming import Listing, Wanted
from agent.artifacts.connections import Answer, ConnectionFailed, Connections
from agent.artifacts.errors import ArtifactError, missing, refused, unavailable
from agent.artifacts.job import Job
from agent.artifacts.objects import Place
from agent.artifacts.refusals import Changed
from agent.origins import Origin, origin_of
from agent.status import DiagnosisCode

try:
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
    from google.auth.transport.requests import Request
except ImportError:
    _HOW = "pip install 'llm-node-agent[gs]' into the agent's environment, then try again"
    raise refused(DiagnosisCode.LAUNCH_FAILED, "gs: needs google-auth, which is not installed", _HOW) from None

_ENDPOINT = "https://storage.googleapis.com"
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_only",)
#: Seconds until a token comes.
_DEADLINE = 20.0
#: Bytes of a page of a listing: a thousand objects.
_MOST_PAGE = 16 * 1024**2
_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
_FIELDS = "name,size,md5Hash,generation"
_WHO = "fetch.gs_credentials_file names a file of credentials; without it those of the agent's environment are used"


def connect(job: Job) -> tuple[GsAccess, Callable[[], Listing]]:
    """How objects are asked for, and what lists them. Raises `ArtifactError`."""
    access = GsAccess(job)
    return access, Bucket(job, access).list


class GsAccess(Plain):
    """Who asks: nobody, where there are no credentials."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.endpoint = job.endpoint or _ENDPOINT
        self._home = origin_of(urlsplit(self.endpoint))
        self._lock = threading.Lock()
        if job.credentials:
            os.environ[_VARIABLE] = job.credentials
        self._who: Any = None
        try:
            self._who = google.auth.default(scopes=_SCOPES)[0]
        except DefaultCredentialsError:
            if os.environ.get(_VARIABLE):
                message = f"{job.source}: {job.credentials or _VARIABLE} names no credentials"
                raise refused(DiagnosisCode.SECRET_MISSING, message, _WHO) from None
        except (OSError, ValueError, GoogleAuthError):
            message = f"{job.source}: the credentials in {job.credentials or 'the environment'} cannot be read"
            raise refused(DiagnosisCode.SECRET_MISSING, message, _WHO) from None

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(filter(None, [self._who and self._who.token]))

    def headers(self, origin: Origin) -> Mapping[str, str]:
        """Raises `ConnectionFailed` and `ArtifactError`."""
        if self._who is None or origin != self._home:
            return {}
        with self._lock:
            if not self._who.valid:
                self._refresh()
            return {"Authorization": f"Bearer {self._who.token}"}

    def renew(self, answer: Answer) -> bool:
        """Once: a token that ended before its time."""
        with self._lock:
            if self._who is None or not answer.shown or answer.shown != f"Bearer {self._who.token}":
                return self._who is not None and bool(answer.shown)
            before = self._who.token
            self._refresh()
            return bool(self._who.token != before)

    def _refresh(self) -> None:
        try:
            self._who.refresh(partial(Request(), timeout=_DEADLINE))
        except GoogleAuthError as error:
            if getattr(error, "retryable", False):
                raise ConnectionFailed("Google gives no token at the moment") from None
            message = f"{self._job.source}: Google gives no token for these credentials"
            raise refused(DiagnosisCode.SECRET_MISSING, message, _WHO) from None

    def refusal(self, status: int, headers: Mapping[str, str], subject: str, host: str) -> Exception:
        if status in {401, 403}:
            may = "these credentials may not read it" if self._who else "there are no credentials, and it is not public"
            hint = f"reading needs storage.objects.get, and storage.objects.list for a directory. {_WHO}"
            return refused(DiagnosisCode.MODEL_GATED, f"{subject}: {may}, or it is not there", hint)
        if status == 404:
            return Changed(f"{subject} is not there any more")
        return super().refusal(status, headers, subject, host)


class Bucket:
    """The bucket of one reference."""

    def __init__(self, job: Job, access: GsAccess) -> None:
        self.job, self.place, self._access = job, Place.of(job), access
        place = f"storage/v1/b/{quote(self.place.bucket, safe='')}/o"
        self._base, self._media = f"{access.endpoint}/{place}", f"{access.endpoint}/download/{place}"

    def list(self) -> Listing:
        """Raises `Again` and `ArtifactError`."""
        try:
            with asking(self._access, self.job) as connections:
                found = [self._wanted(entry) for entry in self._entries(connections)]
        except (AttributeError, TypeError):  # lists and objects where others must be
            raise self._no_storage() from None
        return Listing("", {each.name: each for each in found if each is not None})

    def _entries(self, connections: Connections) -> Iterator[dict[str, Any]]:
        if keys := self.place.parts():
            for key in keys:
                yield self._ask(connections, f"{self._base}/{quote(key, safe='')}?fields={_FIELDS}", f"object {key}")
            return
        asked, count = {"prefix": self.place.directory, "fields": f"nextPageToken,items({_FIELDS})"}, 0
        while True:
            page = self._ask(connections, f"{self._base}?{urlencode(asked)}", "bucket of this name")
            for entry in page.get("items") or ():
                count += 1
                yield entry
            if count > MOST_FILES:
                raise missing(f"{self.job.source} has more than {MOST_FILES} objects; a model has less")
            if not page.get("nextPageToken"):
                break
            asked["pageToken"] = page["nextPageToken"]
        if not count:
            hint = "is the path right? a directory is named without a slash at its end, a GGUF file with its whole name"
            raise missing(f"{self.job.source}: there is nothing below {self.place.directory or 'the bucket'}", hint)

    def _ask(self, connections: Connections, url: str, what: str) -> dict[str, Any]:
        answer = connections.get(url, {})
        host = urlsplit(url).hostname or ""
        if answer.status == 404:
            raise missing(f"{self.job.source}: there is no {what}", "are its name and its path right?")
        if answer.status != 200:
            raise self._access.refusal(answer.status, answer.headers, self.job.source, host)
        try:
            found = json.loads(answer.body(_MOST_PAGE))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self._no_storage()
        return found

    def _no_storage(self) -> ArtifactError:
        host = urlsplit(self._base).hostname
        return unavailable(f"{host} does not answer for {self.job.source} as Cloud Storage does", "is it one?")

    def _wanted(self, said: Mapping[str, Any]) -> Wanted | None:
        """None for an object whose name cannot be a file's: it is not seen."""
        key, size, generation = (str(said.get(field)) for field in ("name", "size", "generation"))
        name = key.removeprefix(self.place.directory)
        if not is_plain(name):
            return None
        if not re.fullmatch(r"\d{1,18}", size) or not re.fullmatch(r"\d{1,20}", generation):
            raise unavailable(f"{self.job.source}: {name[:80]!r} is listed without a size and a generation", "")
        digest = self._digest(said)
        url = f"{self._media}/{quote(key, safe='')}?alt=media&generation={generation}"
        return Wanted(name, url, int(size), digest, digest.removeprefix("sha256:").replace(":", "-"))

    def _digest(self, said: Mapping[str, Any]) -> str:
        """The reference's own, or the MD5 that all objects have but those that were composed of parts."""
        if self.job.sha256 and self.place.parts() == (self.place.key,):
            return f"sha256:{self.job.sha256}"
        text = str(said.get("md5Hash") or "")
        return f"md5:{base64.b64decode(text).hex()}" if re.fullmatch(r"[A-Za-z0-9+/]{22}==", text) else ""
