"""`python -m agent.artifacts.image_puller`: pulls one image through a container engine's API; lines of JSON in and out.

A process of its own: it carries the Docker SDK, which the daemon does not, and a container engine that hangs in the
middle of an answer is left by killing it. It ends with the daemon, whose end of standard input it watches.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import docker
import docker.auth
import docker.errors
import requests
import urllib3

from agent.artifacts.errors import ArtifactError, refused
from agent.artifacts.image_failures import diagnosed
from agent.artifacts.image_job import ImageJob, Stage
from agent.artifacts.image_progress import Layers
from agent.status import DiagnosisCode

#: An image takes this many times its compressed bytes: unpacked about twice, and the compressed layers meanwhile.
UNPACKED = 3
#: Seconds between two reports, and between two looks at the disk.
_REPORT, _LOOK = 0.2, 0.2
#: Bytes of a credentials file; more is none.
_MOST_CREDENTIALS = 1024**2

#: Seconds that a credential helper may take: one may wait for somebody to type a passphrase.
_HELPER_SECONDS = 20.0

_BROKEN = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, docker.errors.DockerException)


#: Where credential helpers keep their own things.
_HOME = os.environ.get("HOME", "")


def main() -> None:
    os.environ["HOME"] = "/nonexistent"  # where the SDK would look for a configuration of the user's own
    job = ImageJob.decode(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_daemon, daemon=True).start()
    try:
        _say(pulled=Puller(job).pull())
    except ArtifactError as error:
        found = error.diagnosis
        _say(failed={"code": found.code, "message": found.message, "evidence": found.evidence, "hint": found.hint})


def _end_with_the_daemon() -> NoReturn:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(1)


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


class Puller:
    def __init__(self, job: ImageJob) -> None:
        self.job = job
        self._api: Any = None  # the SDK has no types
        self._podman = False
        self._disk = ""  # where the engine keeps images; "": that cannot be seen from here

    def pull(self) -> dict[str, Any]:
        """The image that is here then. Raises `ArtifactError`."""
        _say(stage=Stage.ENGINE)
        with self._engine_errors():
            address = f"unix://{self.job.socket}"
            # Longer than the daemon waits, who asks then whether the engine or the registry is silent.
            self._api = docker.APIClient(base_url=address, version="auto", timeout=2 * self.job.answer_seconds + 60)
            found = self._present()
            if found is None and not self.job.offline:
                self._disk = str(self._api.info().get("DockerRootDir", ""))
                parts = self._api.version().get("Components") or ()
                self._podman = any("podman" in str(part.get("Name", "")).lower() for part in parts)
        if found is not None:
            return self._told(found, present=True)
        if self.job.offline:
            raise refused(
                DiagnosisCode.IMAGE_MISSING,
                f"{self.job.pinned} is not on this node, and images.offline forbids to fetch it",
                f"load it (`docker load`), then it must be named {self.job.name}; or switch images.offline off",
            )
        credentials = self._credentials()
        _say(stage=Stage.REGISTRY)
        if not self.job.digest and not self._podman:  # which cannot say it before a pull
            self._resolve(credentials)
        self._check_disk()
        _say(stage=Stage.PULL)
        self._fetch(credentials)
        _say(stage=Stage.ENGINE)
        with self._engine_errors():
            found = self._present()
            if found is None:
                raise refused(DiagnosisCode.RUNTIME_UNAVAILABLE, f"{self._engine()} says that it pulled "
                              f"{self.job.pinned}, and does not have it")  # fmt: skip
            # An image without a tag is what `docker image prune` removes.
            self._api.tag(found["Id"], self.job.repository, self.job.tag, force=True)
        return self._told(found, present=False)

    def _present(self) -> dict[str, Any] | None:
        """The image, if the engine has it: by its digest where that is pinned."""
        try:
            found: dict[str, Any] = self._api.inspect_image(self.job.pinned)
        except docker.errors.ImageNotFound:
            return None
        architecture = str(found.get("Architecture", ""))
        if self.job.architecture and architecture and architecture != self.job.architecture:
            message = f"{self.job.pinned} is for {architecture}, and this machine is {self.job.architecture}"
            hint = "name an image for this machine in catalog/engines.yaml of the configuration directory"
            raise refused(DiagnosisCode.CPU_UNSUPPORTED, message, hint)
        return found

    def _resolve(self, credentials: dict[str, Any]) -> None:
        """Which content the tag is now, so that exactly this is pulled."""
        with self._engine_errors():
            answer = self._api.inspect_distribution(self.job.name, auth_config=credentials)
        self.job = replace(self.job, digest=str(answer["Descriptor"]["digest"]))

    def _check_disk(self) -> None:
        free = self._free()
        needed = UNPACKED * self.job.expected
        if free is None or needed + self.job.reserve_bytes <= free:
            return
        size = f"about {_gib(needed)} ({_gib(self.job.expected)} compressed)" if needed else "room"
        raise self._full(
            f"{self.job.name} needs {size} in {self._disk}, where {_gib(free)} are free and "
            f"{_gib(self.job.reserve_bytes)} must stay free"
        )

    def _full(self, message: str) -> ArtifactError:
        hint = f"free space on the disk of {self._disk} (`docker system df` tells what takes it)"
        return refused(DiagnosisCode.DISK_FULL, message, hint)

    def _free(self) -> int | None:
        """Bytes on the engine's disk; None where it cannot be seen."""
        try:
            status = os.statvfs(self._disk or "/nonexistent")
        except OSError:
            return None
        return status.f_bavail * status.f_frsize

    def _fetch(self, credentials: dict[str, Any]) -> None:
        layers = Layers(self.job.expected)
        reported = looked = 0.0
        with self._engine_errors():
            messages = self._api.pull(
                self.job.repository,
                tag=self.job.digest or self.job.tag,
                auth_config=credentials,
                stream=True,
                decode=True,
            )
            for message in messages:
                if "error" in message:
                    raise ArtifactError(diagnosed(self.job.pinned, str(message["error"])))
                moved, now = layers.tell(message), time.monotonic()
                if moved and now - reported >= _REPORT:
                    reported = now
                    _say(progress=[layers.step, layers.done, layers.total])
                if now - looked >= _LOOK:
                    looked = now
                    self._check_reserve(layers)
        _say(progress=[layers.step, layers.done, layers.total])

    def _check_reserve(self, layers: Layers) -> None:
        """Sizes are not always known before: a pull that would take what must stay free is broken off."""
        free = self._free()
        if free is not None and free < self.job.reserve_bytes:
            raise self._full(
                f"{self.job.name} does not fit in {self._disk}: {_gib(free)} are free, {_gib(self.job.reserve_bytes)} "
                f"must stay free, and {_gib(layers.done)} of {_gib(layers.total)} are fetched"
            )

    def _credentials(self) -> dict[str, Any]:
        """For the registry; {} without any. Never the user's own ones: those that the operator named, or none."""
        path = self.job.credentials
        if not path:
            return {}
        registry = docker.auth.resolve_index_name(self.job.repository.partition("/")[0])
        try:
            tree = json.loads(Path(path).read_bytes()[:_MOST_CREDENTIALS])
            # An empty one would make the SDK look for the user's own.
            known = docker.auth.load_config(config_dict=tree or {"auths": {}}, credstore_env={"HOME": _HOME})
            # In a thread, which may be left behind: this process is ended when it has answered.
            found = ThreadPoolExecutor(1).submit(known.resolve_authconfig, registry).result(_HELPER_SECONDS)
        except TimeoutError:
            raise _unreadable(f"the credential helper that {path} names for {registry} does not answer") from None
        except OSError as error:
            raise _unreadable(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, AttributeError, TypeError, docker.errors.InvalidConfigFile):
            raise _unreadable(f"{path} is no credentials file in Docker's form") from None
        except docker.errors.DockerException:  # it repeats what a helper printed
            raise _unreadable(f"the credential helper that {path} names for {registry} failed") from None
        return dict(found or {})

    @contextlib.contextmanager
    def _engine_errors(self) -> Iterator[None]:
        try:
            yield
        except docker.errors.APIError as error:
            raise ArtifactError(diagnosed(self.job.pinned, str(error.explanation or error))) from None
        except _BROKEN as error:
            raise self._unreachable(str(error)) from None

    def _unreachable(self, said: str) -> ArtifactError:
        hint = "check that it runs: `systemctl status docker` (or podman.socket)"
        if "PermissionError" in said or "Permission denied" in said:
            hint = "let the user of agentd open the socket: the group is usually docker"
        message = f"{self._engine()} does not answer, or broke off"
        return refused(DiagnosisCode.RUNTIME_UNAVAILABLE, message, hint, " ".join(said.split())[:500])

    def _engine(self) -> str:
        return f"the container engine at {self.job.socket}"

    def _told(self, found: dict[str, Any], *, present: bool) -> dict[str, Any]:
        digest = self.job.digest or _digest(found, self.job.repository)
        return {"digest": digest, "id": str(found["Id"]), "bytes": int(found.get("Size") or 0), "present": present}


def _digest(image: dict[str, Any], repository: str) -> str:
    """What the image is called in its registry; "" for one that came from none (`docker load`, `docker build`)."""
    names = [str(name).partition("@") for name in image.get("RepoDigests") or ()]
    return next((digest for name, _, digest in names if name == repository), "")


def _unreadable(message: str) -> ArtifactError:
    hint = 'images.credentials: a file like ~/.docker/config.json: {"auths": {"registry.example.com": {"auth": "..."}}}'
    return refused(DiagnosisCode.SECRET_MISSING, message, hint)


def _gib(count: int) -> str:
    return f"{count / 1024**3:.2f} GiB" if count >= 1024**3 // 100 else f"{count / 1024**2:.2f} MiB"


if __name__ == "__main__":
    main()
