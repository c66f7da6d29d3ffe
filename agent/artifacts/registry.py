"""How a container registry is asked: its address, tokens that end, and whose credentials.

Protocol: distribution's token authentication (distribution/distribution, `docs/content/spec/auth`: `token.md`, and
`oauth.md` for identity tokens); credentials in the form of ~/.docker/config.json (docker/cli, `cli/config/configfile`).
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from agent.artifacts.access import Carrying, Plain, asking
from agent.artifacts.connections import Answer
from agent.artifacts.errors import ArtifactError, missing, refused, unavailable
from agent.artifacts.job import Job
from agent.artifacts.refusals import Asked, refusal
from agent.frozen import frozen
from agent.origins import Origin, origin_of
from agent.retries import TRANSIENT
from agent.status import DiagnosisCode

_MOST_CREDENTIALS = 1024**2
#: Bytes of a token and what stands around it.
_MOST_TOKEN = 256 * 1024
_HELPER_SECONDS = 20
#: Seconds in which a token that was refused is no token that ended.
_FRESH = 5.0
#: What docker.io is called elsewhere: by its API, and in credentials.
_HUB, _HUB_API, _HUB_KEY = "docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"
#: What credential helpers call the user of an identity token (docker/cli, `cli/config/credentials/native_store.go`).
_IDENTITY = "<token>"
#: Who asks, where identity tokens are shown.
_CLIENT = "llm-node-agent"
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


@frozen
class _Credentials:
    """For one registry: a user with a password, or a token that stands for both."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        pair = f"{self.user}:{self.password}"
        return "Basic " + base64.b64encode(pair.encode()).decode() if self.user and not self.identity else ""


_NOBODY = _Credentials()


class Registry(Plain):
    """The registry of one job."""

    def __init__(self, job: Job) -> None:
        """Raises `ArtifactError` for credentials that cannot be read."""
        self._job = job
        registry = ""
        if job.kind == "ollama":
            self.base, self.path = job.endpoint, job.repo
        else:  # the repository, or where a mirror has it
            registry, _, self.path = job.endpoint.partition("/")
            host = _HUB_API if registry == _HUB else registry
            self.base = f"{'http' if _is_loopback(host) else 'https'}://{host}"
        self.host = urlsplit(self.base).hostname or ""
        self._home = origin_of(urlsplit(self.base))
        self._who = _credentials(job.credentials, registry) if job.credentials else _NOBODY
        self._lock = threading.Lock()
        self._header, self._since = "", 0.0

    @property
    def secrets(self) -> tuple[str, ...]:
        who = self._who
        held = (who.password, who.basic.partition(" ")[2], who.identity, self._header.partition(" ")[2])
        return tuple(filter(None, held))

    def headers(self, origin: Origin) -> Mapping[str, str]:
        header = self._header
        return {"Authorization": header} if header and origin == self._home else {}

    def renew(self, answer: Answer) -> bool:
        """Get another token, unless somebody else did since this one was shown, or it was shown at once."""
        if origin_of(urlsplit(answer.url)) != self._home:
            return False
        with self._lock:
            if self._header != answer.shown:
                return True
            if self._header and time.monotonic() < self._since + _FRESH:
                return False
            kind, _, rest = answer.headers.get("www-authenticate", "").partition(" ")
            before, self._header = self._header, ""
            if kind.lower() == "basic" and self._who.basic and not before:
                self._header = self._who.basic
            elif kind.lower() == "bearer":
                self._header = f"Bearer {self._token(dict(_PARAMETER.findall(rest)))}"
            self._since = time.monotonic()
            return bool(self._header)

    def _token(self, asked: Mapping[str, str]) -> str:
        """For what a registry names. Raises `Again` and `ArtifactError`."""
        realm, subject = urlsplit(asked.get("realm", "")), self._job.source
        if realm.scheme != "https" and not _is_loopback(realm.netloc):
            raise unavailable(f"{subject}: {self.host} sends to {realm.scheme}://{realm.netloc[:80]} for a token", "")
        wanted, who = {name: asked[name] for name in ("service", "scope") if name in asked}, self._who
        url = realm._replace(query="&".join(filter(None, (realm.query, urlencode(wanted))))).geturl()
        with asking(Carrying(url, who.basic), self._job) as connections:
            if who.identity:
                form = {"grant_type": "refresh_token", "client_id": _CLIENT, "refresh_token": who.identity}
                answer = connections.post(realm.geturl(), form | wanted)
            else:
                answer = connections.get(url, {})
            if answer.status in TRANSIENT:
                raise refusal(answer.status, answer.headers, Asked(subject, realm.hostname or "", hub=False))
            if answer.status != 200:
                raise self._denied(subject)
            text = answer.body(_MOST_TOKEN)
        try:
            said = json.loads(text)
            token = said.get("token") or said.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not token.isprintable() or not token:
            raise unavailable(f"{subject}: {realm.hostname} gives no token", "is it a registry?")
        return token

    def refusal(self, status: int, headers: Mapping[str, str], subject: str, host: str) -> Exception:
        if host != self.host or status in TRANSIENT:
            return refusal(status, headers, Asked(subject, host, hub=False))
        if status in {401, 403}:
            return self._denied(subject)
        if status == 404:
            return missing(f"{subject}: {host} has no such model or tag", "are its name and its tag right?")
        return unavailable(f"{subject}: {host} answers with status {status}")

    def _denied(self, subject: str) -> ArtifactError:
        if self._who != _NOBODY:
            message = f"{subject}: {self.host} does not give it to the user of images.credentials, or it is not there"
            what = "identity token" if self._who.identity else "password"
            return refused(DiagnosisCode.MODEL_GATED, message, f"may that user pull it, and is the {what} still good?")
        hint = f"is the name right? a private one needs credentials for {self.host}: images.credentials"
        return refused(DiagnosisCode.MODEL_GATED, f"{subject} does not exist, or may not be seen", hint)


def _is_loopback(host: str) -> bool:
    """Whose registries speak HTTP, as container engines have it."""
    return re.fullmatch(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", host) is not None


def _credentials(path: str, registry: str) -> _Credentials:
    """Raises `ArtifactError`."""
    keys = (_HUB_KEY, _HUB, "index.docker.io", _HUB_API) if registry == _HUB else (registry,)
    keys = (*keys, *(f"https://{key}" for key in keys))
    try:
        tree: dict[str, Any] = json.loads(Path(path).read_bytes()[:_MOST_CREDENTIALS])
        helpers, auths = tree.get("credHelpers") or {}, tree.get("auths") or {}
        if helper := next((helpers[key] for key in keys if key in helpers), tree.get("credsStore")):
            return _helped(path, str(helper), keys[0])
        entry: Any = next((auths[key] for key in keys if key in auths), {})
        if identity := entry.get("identitytoken"):
            return _Credentials(identity=str(identity))
        if entry.get("auth"):
            user, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
            return _Credentials(user, password)
        return _Credentials(entry["username"], entry["password"]) if entry.get("username") else _NOBODY
    except OSError as error:
        raise _unreadable(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        raise _unreadable(f"{path} is no credentials file in Docker's form") from None


def _helped(path: str, helper: str, registry: str) -> _Credentials:
    """What a credential helper says (docker/docker-credential-helpers)."""
    if not re.fullmatch(r"[\w.-]+", helper, re.ASCII):
        raise ValueError(helper)
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=registry, capture_output=True, text=True, timeout=_HELPER_SECONDS, check=False,
        )  # fmt: skip
        if "not found" in done.stdout:
            return _NOBODY
        said = json.loads(done.stdout)
        user, secret = str(said["Username"]), str(said["Secret"])
        return _Credentials(identity=secret) if user == _IDENTITY else _Credentials(user, secret)
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired):
        raise _unreadable(f"the credential helper that {path} names for {registry} failed") from None


def _unreadable(message: str) -> ArtifactError:
    hint = 'images.credentials: a file like ~/.docker/config.json: {"auths": {"registry.example.com": {"auth": "..."}}}'
    return refused(DiagnosisCode.SECRET_MISSING, message, hint)
