"""Reads from a Hugging Face hub or a mirror of it: what a repository has, and ranges of its files, never whole weights.

Only the short-lived subprocess of `agent.models.inspect` does this. What the other side may do is bounded: time, bytes,
redirects and where they lead, waits that it asks for. Protocol: huggingface_hub's `hf_api.py` (`model_info`),
`file_download.py` (`get_hf_file_metadata`) and `utils/_http.py` (`hf_raise_for_status`), version 2.4.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, Self
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from agent.models.config import MAX_JSON
from agent.models.errors import ProfileError, corrupt, missing
from agent.models.repository import Bounds
from agent.origins import (
    REDIRECTING,
    REDIRECTS,
    NotFollowed,
    Origin,
    asked,
    connection,
    followed,
    origin_of,
    parsed,
    redirected,
    said,
)
from agent.retries import TRANSIENT, Again, patiently, told_wait
from agent.status import Diagnosis, DiagnosisCode

#: Seconds without a byte after which a connection is given up.
SILENCE = 10.0
#: Seconds before the second try, and before the third.
_PAUSES = (0.5, 1.0)
_CHUNK = 64 * 1024
_NO_HUB = "is the endpoint the address of a hub, or of a mirror that has its API too?"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a request."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


#: What to look at when nobody answers.
_REACH = "try again later; fetch.endpoint or HF_ENDPOINT names the hub or a mirror, HTTPS_PROXY a proxy"


def unavailable(message: str, hint: str = "") -> ProfileError:
    """The hub did not answer, or not as a hub does."""
    return ProfileError(Diagnosis(DiagnosisCode.SOURCE_UNAVAILABLE, message, hint=hint))


def checked_endpoint(endpoint: str) -> str:
    """The endpoint without a slash at its end. Raises `ProfileError` for what is no address of a hub."""
    text = endpoint.strip().rstrip("/")
    parts = parsed(text)
    if parts is None or " " in text or parts.query or parts.fragment:
        rule = "must be http:// or https://, a host and perhaps a path, without user, query or fragment"
        raise unavailable(f"the hub's endpoint {rule}", hint="the default is https://huggingface.co")
    return text


class Hub:
    """A hub, asked by several threads. Raises `ProfileError` for everything that goes wrong."""

    def __init__(self, endpoint: str, token: str, bounds: Bounds) -> None:
        self.endpoint = checked_endpoint(endpoint)
        self._token, self._bounds = token, bounds
        self._deadline = time.monotonic() + bounds.seconds
        self.received, self._lock = 0, threading.Lock()
        self._idle: dict[Origin, list[http.client.HTTPConnection]] = {}
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for several in self._idle.values():
                for each in several:
                    each.close()

    def info(self, repo: str, revision: str) -> dict[str, object]:
        """The model's description with all of its files. Raises `ProfileError`."""
        path = f"/api/models/{quote(repo)}/revision/{quote(revision, safe='')}?blobs=true"
        subject = f"hf:{repo}" + (f"@{revision}" if revision != "main" else "")
        found = self._json(path, subject)
        if not isinstance(found, dict):
            raise unavailable(f"{self.endpoint} answers for {subject} with what is no JSON object", _NO_HUB)
        return found

    def quantized(self, repo: str, most: int) -> list[object]:
        """Models whose cards name `repo` as what they are a quantized form of, most downloaded first (huggingface_hub
        2.4, `list_models`). Raises `ProfileError`."""
        asked = {"filter": f"base_model:quantized:{repo}", "sort": "downloads", "limit": most}
        subject = f"the quantized forms of hf:{repo}"
        # Of what can be asked for beyond names, tags say the format in the fewest bytes.
        found = self._json(f"/api/models?{urlencode(asked)}&expand=downloads&expand=tags", subject)
        if not isinstance(found, list):
            raise unavailable(f"{self.endpoint} answers for {subject} with what is no JSON list", _NO_HUB)
        return found

    def half_way(self) -> bool:
        """Whether half of the time, or of the bytes, is used up."""
        late = time.monotonic() > self._deadline - self._bounds.seconds / 2
        return late or self.received > self._bounds.bytes // 2

    def _json(self, path: str, subject: str) -> object:
        """What an address of the API answers; None for what is no JSON. Raises `ProfileError`."""
        answer = self._get(self.endpoint + path, subject, most=MAX_JSON)
        if len(answer.body) >= MAX_JSON:
            raise unavailable(f"{self.endpoint} answers for {subject} with more than {MAX_JSON} bytes")
        try:
            found: object = json.loads(answer.body)
        except (ValueError, RecursionError):
            return None
        return found

    def read(self, repo: str, commit: str, name: str, offset: int, length: int) -> Answer:
        """At most `length` bytes of a file from `offset`; with status 200 they are those at its start."""
        url = f"{self.endpoint}/{quote(repo)}/resolve/{quote(commit, safe='')}/{quote(name)}"
        span = f"bytes={offset}-{offset + length - 1}"
        return self._get(url, f"{name} of hf:{repo}", most=length, span=span)

    def _get(self, url: str, subject: str, *, most: int, span: str = "") -> Answer:
        try:
            return patiently(lambda: self._follow(url, subject, most, span), _PAUSES, self._deadline)
        except Again as error:
            after = f"; it asks to wait {error.wait:.0f} s" if error.wait else ""
            hint = "try again later" if after else _REACH
            raise unavailable(f"{subject}: {error}{after}", hint) from None
        except NotFollowed as error:
            raise unavailable(f"{subject}: {error}") from None

    def _follow(self, url: str, subject: str, most: int, span: str) -> Answer:
        """One try, with its redirects."""
        for _ in range(REDIRECTS + 1):
            parts = followed(url)
            answer = self._exchange(parts, subject, most, span)
            if answer.status not in REDIRECTING:
                self._check(answer, subject, parts)
                return answer
            url = redirected(parts, answer.headers.get("location", ""))
        raise unavailable(f"{subject}: redirected more than {REDIRECTS} times", hint="does the mirror point at itself?")

    def _exchange(self, parts: SplitResult, subject: str, most: int, span: str) -> Answer:
        """One request on a kept connection or a new one."""
        origin = origin_of(parts)
        target, headers = asked(parts)
        if span:
            headers["Range"] = span
        if self._token and origin == origin_of(urlsplit(self.endpoint)):
            headers["Authorization"] = f"Bearer {self._token}"
        used = self._connection(origin, subject)
        whole = False
        try:
            used.timeout = self._remaining(subject, SILENCE)
            if used.sock is not None:
                used.sock.settimeout(used.timeout)
            used.request("GET", target, headers=headers)
            response = used.getresponse()
            named = {key.lower(): value for key, value in response.getheaders()}
            body, whole = self._body(response, named, subject, most if response.status in {200, 206} else _CHUNK)
            whole = whole and not response.will_close
            return Answer(response.status, named, body)
        except TimeoutError:
            raise Again(f"{parts.hostname} was silent for {SILENCE:g} s") from None
        except ssl.SSLCertVerificationError as error:
            hint = "a mirror's own authority is named by SSL_CERT_FILE"
            raise unavailable(f"{subject}: {parts.hostname} is not trusted ({error.verify_message})", hint) from None
        except (OSError, http.client.HTTPException) as error:
            raise Again(f"{parts.hostname} cannot be read ({said(error)})") from None
        finally:
            with self._lock:
                if whole and not self._closed:
                    self._idle.setdefault(origin, []).append(used)
                else:
                    used.close()

    def _body(
        self, response: http.client.HTTPResponse, headers: Mapping[str, str], subject: str, most: int
    ) -> tuple[bytes, bool]:
        """At most `most` bytes, and whether that was all, so that the connection can be used again."""
        promised = response.length
        parts, room = list[bytes](), most
        while room > 0 and (part := response.read1(min(_CHUNK, room))):
            parts.append(part)
            room -= len(part)
            self._account(len(part), subject)
        body = b"".join(parts)
        if promised is not None and len(body) < min(promised, most):
            raise Again(f"the connection ended after {len(body)} of {promised} bytes")
        if promised == len(body):
            response.close()  # it waits for a read that finds nothing
        if headers.get("content-encoding", "identity") != "identity":
            raise unavailable(f"{subject}: the answer is compressed though nobody asked for that")
        return body, response.isclosed()

    def _account(self, received: int, subject: str) -> None:
        with self._lock:
            self.received += received
            if self.received > self._bounds.bytes:
                limit = f"{self._bounds.bytes >> 20} MiB"
                raise corrupt(f"{subject}: its headers have more than {limit}; those of real models have less")
        self._remaining(subject)

    def _remaining(self, subject: str, most: float = float("inf")) -> float:
        """Seconds until the deadline. Raises `ProfileError` behind it."""
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise unavailable(f"{subject}: {self.endpoint} did not finish within {self._bounds.seconds:g} s")
        return min(remaining, most)

    def _connection(self, origin: Origin, subject: str) -> http.client.HTTPConnection:
        """An idle connection, or a new one: to the origin, or to the proxy that the environment names for it."""
        with self._lock:
            if idle := self._idle.get(origin):
                return idle.pop()
        return connection(origin, self._remaining(subject, SILENCE))

    # Refusals

    def _check(self, answer: Answer, subject: str, parts: SplitResult) -> None:
        if answer.status in {200, 206}:
            return
        if answer.status in TRANSIENT:
            what = "too many requests" if answer.status == 429 else f"status {answer.status}"
            raise Again(f"{parts.hostname} answers with {what}", told_wait(answer.headers))
        if origin_of(parts) != origin_of(urlsplit(self.endpoint)):
            raise unavailable(f"{subject}: {parts.hostname}, to which the hub redirects, answers with {answer.status}")
        _refuse(answer, subject, has_token=bool(self._token))


def _refuse(answer: Answer, subject: str, *, has_token: bool) -> NoReturn:
    """What the hub's refusals mean: its own codes first, then the status. 401 may mean that there is nothing."""
    code, said = answer.headers.get("x-error-code", ""), answer.headers.get("x-error-message", "")
    status = answer.status
    if code == "GatedRepo":
        hint = "ask for access on the model's page, then name that account's token: fetch.token_file, or HF_TOKEN"
        if has_token:
            hint = (
                "ask for access on the model's page, with the token's account; it must be allowed to read gated models"
            )
        raise _diagnosed(
            DiagnosisCode.MODEL_GATED, f"{subject}: its publisher gives it only to who was granted access", hint
        )
    if status == 401 and has_token and said.startswith("Invalid"):
        raise _diagnosed(DiagnosisCode.MODEL_GATED, f"{subject}: the hub does not know the token", "was it revoked?")
    if code == "RevisionNotFound":
        raise missing(f"{subject}: the repository has no such revision")
    if code == "EntryNotFound":
        raise missing(f"{subject}: the repository has no such file")
    if status == 403:
        raise missing(f"{subject}: the hub refuses it" + (f" ({said[:120]})" if said else ""))
    if status in {401, 404}:
        hint = "is the name right? a private repository needs a token that may read it: fetch.token_file, or HF_TOKEN"
        raise missing(f"{subject} does not exist, or may not be seen", hint=hint)
    raise unavailable(f"{subject}: the hub answers with status {status}" + (f" ({said[:120]})" if said else ""))


def _diagnosed(code: DiagnosisCode, message: str, hint: str) -> ProfileError:
    return ProfileError(Diagnosis(code, message, hint=hint))
