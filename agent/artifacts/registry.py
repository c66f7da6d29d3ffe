"""How a container registry is asked: its address, tokens that end, and whose credentials.

Protocol: distribution's token authentication (distribution/distribution, `docs/content/spec/auth`); credentials in the
form of ~/.docker/config.json (docker/cli, `cli/config/configfile`).
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from agent.artifacts.access import Carrying, Plain
from agent.artifacts.connections import Answer, ConnectionFailed, Connections, NotFollowed, Origin, origin_of
from agent.artifacts.errors import ArtifactError, missing, refused, unavailable
from agent.artifacts.job import Job
from agent.artifacts.refusals import TRANSIENT, Asked, refusal
from agent.status import DiagnosisCode

_MOST_CREDENTIALS = 1024**2
#: Bytes of a token and what stands around it.
_MOST_TOKEN = 256 * 1024
_HELPER_SECONDS = 20
#: Seconds in which a token that was refused is no token that ended.
_FRESH = 5.0
#: What docker.io is called elsewhere: by its API, and in credentials.
_HUB, _HUB_API, _HUB_KEY = "docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


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
        self._pair = _credentials(job.credentials, registry) if job.credentials else ""
        self._lock = threading.Lock()
        self._header, self._since = "", 0.0

    @property
    def secrets(self) -> tuple[str, ...]:
        word = base64.b64encode(self._pair.encode()).decode()
        return tuple(filter(None, (self._pair.partition(":")[2], self._pair and word, self._header.partition(" ")[2])))

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
            if kind.lower() == "basic" and self._pair and not before:
                self._header = _basic(self._pair)
            elif kind.lower() == "bearer":
                self._header = f"Bearer {self._token(dict(_PARAMETER.findall(rest)))}"
            self._since = time.monotonic()
            return bool(self._header)

    def _token(self, asked: Mapping[str, str]) -> str:
        """For what a registry names. Raises `ConnectionFailed` and `ArtifactError`."""
        realm, subject = urlsplit(asked.get("realm", "")), self._job.source
        if realm.scheme != "https" and not _is_loopback(realm.netloc):
            raise unavailable(f"{subject}: {self.host} sends to {realm.scheme}://{realm.netloc[:80]} for a token", "")
        query = urlencode({name: asked[name] for name in ("service", "scope") if name in asked})
        url = realm._replace(query="&".join(filter(None, (realm.query, query)))).geturl()
        who = Carrying(url, _basic(self._pair) if self._pair else "")
        connections = Connections(who, min(20.0, self._job.stall_seconds))
        try:
            answer = connections.get(url, {})
            if answer.status in TRANSIENT:
                raise ConnectionFailed(f"{realm.hostname} answers with status {answer.status}")
            if answer.status != 200:
                raise self._denied(subject)
            said = json.loads(answer.body(_MOST_TOKEN))
            token = said.get("token") or said.get("access_token")
        except NotFollowed as error:
            raise unavailable(f"{subject}: {error}", "") from None
        except (ValueError, AttributeError, RecursionError):
            token = None
        finally:
            connections.close()
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
        if self._pair:
            message = f"{subject}: {self.host} does not give it to the user of images.credentials, or it is not there"
            return refused(DiagnosisCode.MODEL_GATED, message, "may that user pull it, and is the password still good?")
        hint = f"is the name right? a private one needs credentials for {self.host}: images.credentials"
        return refused(DiagnosisCode.MODEL_GATED, f"{subject} does not exist, or may not be seen", hint)


def _basic(pair: str) -> str:
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _is_loopback(host: str) -> bool:
    """Whose registries speak HTTP, as container engines have it."""
    return re.fullmatch(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", host) is not None


def _credentials(path: str, registry: str) -> str:
    """`user:password`, "" for none. Raises `ArtifactError`."""
    keys = (_HUB_KEY, _HUB, "index.docker.io", _HUB_API) if registry == _HUB else (registry,)
    keys = (*keys, *(f"https://{key}" for key in keys))
    try:
        tree: dict[str, Any] = json.loads(Path(path).read_bytes()[:_MOST_CREDENTIALS])
        helpers, auths = tree.get("credHelpers") or {}, tree.get("auths") or {}
        if helper := next((helpers[key] for key in keys if key in helpers), tree.get("credsStore")):
            return _helped(path, str(helper), keys[0])
        entry: Any = next((auths[key] for key in keys if key in auths), {})
        if entry.get("auth"):
            return base64.b64decode(entry["auth"], validate=True).decode()
        return f"{entry['username']}:{entry['password']}" if entry.get("username") else ""
    except OSError as error:
        raise _unreadable(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        raise _unreadable(f"{path} is no credentials file in Docker's form") from None


def _helped(path: str, helper: str, registry: str) -> str:
    """What a credential helper says (docker/docker-credential-helpers); "" where it knows none."""
    if not re.fullmatch(r"[\w.-]+", helper, re.ASCII):
        raise ValueError(helper)
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=registry, capture_output=True, text=True, timeout=_HELPER_SECONDS, check=False,
        )  # fmt: skip
        if "not found" in done.stdout:
            return ""
        said = json.loads(done.stdout)
        return f"{said['Username']}:{said['Secret']}"
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired):
        raise _unreadable(f"the credential helper that {path} names for {registry} failed") from None


def _unreadable(message: str) -> ArtifactError:
    hint = 'images.credentials: a file like ~/.docker/config.json: {"auths": {"registry.example.com": {"auth": "..."}}}'
    return refused(DiagnosisCode.SECRET_MISSING, message, hint)
