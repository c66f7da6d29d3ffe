"""Making and starting a container; every refusal in people's words. Synchronous: for the engine's threads."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from operator import methodcaller
from pathlib import Path
from typing import Any

from agent.runtimes import docker_config, docker_refusals
from agent.runtimes.base import Container, LaunchError, LaunchRequest
from agent.runtimes.docker_config import NETWORK
from agent.runtimes.docker_engine import ACT_SECONDS, ASK_SECONDS, GREET_SECONDS, Engine, Refused, Silent
from agent.status import DiagnosisCode

#: How long the port of an instance that has just ended may stay taken: podman holds it until it has tidied up.
PORT_SECONDS = 3.0
_PORT_PAUSE = 0.02
#: After it there is time left to see whether the engine hangs, or only this start: hooks ask the driver of a sick GPU.
START_SECONDS = ACT_SECONDS - GREET_SECONDS
#: What podman calls a container that has ended and still has its network; without it, it is "exited".
_ENDED_CONNECTED = "stopped"


class Severed(LaunchError):
    """The network that the container was made on is gone: it cannot be started, a new one can."""


class Maker:
    """Remembers what need not be asked again. Methods raise `LaunchError`, or `Silent`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._networked = -1  # the engine's `broken` when the network was looked at
        self._executables: set[tuple[str, str]] = set()  # (image's id, path): what an image holds never changes

    def config(self, request: LaunchRequest, container: Container) -> dict[str, Any]:
        """How it would be made now."""
        _check_mounts(container)
        facts = self._engine.facts(devices=bool(container.gpus))
        around = docker_config.Surroundings(facts, _groups(container.device_files))
        return docker_config.created(request, container, around)

    def create(self, request: LaunchRequest, container: Container) -> str:
        """The id of a container that is made, and not started."""
        config = self.config(request, container)
        try:
            self._make_network()
            try:
                id = self._create(config, request.identity.instance)
            except Refused as refusal:
                if not docker_refusals.lacks_network(str(refusal)):
                    raise
                self._make_network(again=True)  # somebody removed it
                id = self._create(config, request.identity.instance)
        except Refused as refusal:
            raise docker_refusals.launch_error(str(refusal), container) from refusal
        if not container.own_entrypoint:
            self._check_executable(id, container.image, request.argv[0])
        return id

    def free(self, request: LaunchRequest, container: Container) -> None:
        """See that no ended container of this node takes away what is published at the port of the one to be started.

        podman tears a container's network down some time after its end. Its rules for the port are the same as those of
        the next container there, which would be left without them and could not be reached from this host. Removing
        the ended one does it now.
        """
        if not self._engine.facts(devices=False).podman:
            return
        filters = {"label": [f"{docker_config.NODE}={request.identity.node}"]}
        for each in self._engine.ask(lambda api: api.containers(all=True, filters=filters)):
            ports = {port.get("PublicPort") for port in each.get("Ports") or ()}
            if each.get("State") == _ENDED_CONNECTED and container.port in ports:
                self.remove(str(each["Id"]))

    def start(self, id: str, container: Container) -> dict[str, Any]:
        """What the engine says of it right after its start."""
        until = time.monotonic() + PORT_SECONDS
        remade = False
        while True:
            try:
                self._make_network()
                self._engine.ask(lambda api: api.start(id), START_SECONDS)
                found: dict[str, Any] = self._engine.ask(lambda api: api.inspect_container(id))
            except Refused as refusal:
                said = str(refusal)
                if docker_refusals.network_gone(said):
                    raise Severed(f"the container's network is gone: {said}") from refusal
                if docker_refusals.lacks_network(said) and not remade:
                    remade = True
                    self._make_network(again=True)
                elif docker_refusals.port_taken(said) and time.monotonic() < until:
                    time.sleep(_PORT_PAUSE)
                else:
                    raise docker_refusals.launch_error(said, container) from refusal
            except Silent:
                self._engine.greet()
                raise docker_refusals.never_started(START_SECONDS, container) from None
            else:
                return found

    def remove(self, id: str) -> None:
        """Raises `Refused`, but not for one that is not there."""
        try:
            self._engine.ask(lambda api: api.remove_container(id, v=True, force=True), ACT_SECONDS)
        except Refused as refusal:
            if not refusal.missing:
                raise

    def _create(self, config: dict[str, Any], name: str) -> str:
        made = self._engine.ask(lambda api: api.create_container_from_config(config, name), ACT_SECONDS)
        return str(made["Id"])

    def _make_network(self, *, again: bool = False) -> None:
        """A bridge of ours, without IPv6: whatever is set as default for others does not reach engines. Once for each
        start of the engine, or `again`."""
        labels = {docker_config.LABEL: "network"}
        with self._lock:  # dockerd makes two of the same name if it is asked twice at once
            broken = self._engine.broken
            if self._networked == broken and not again:
                return
            known = [each for each in self._engine.ask(lambda api: api.networks(names=[NETWORK])) if _is_ours(each)]
            for extra in known[1:]:  # two agents, at the same instant
                with contextlib.suppress(Refused):  # in use
                    self._engine.ask(methodcaller("remove_network", extra["Id"]))
            if known and self._haunted(known[0]["Id"]):
                with contextlib.suppress(Refused):  # in use
                    self._engine.ask(methodcaller("remove_network", known[0]["Id"]), ACT_SECONDS)
                    known = []
            if not known:
                try:
                    self._engine.ask(
                        lambda api: api.create_network(
                            NETWORK, driver="bridge", enable_ipv6=False, check_duplicate=True, labels=labels
                        ),
                        ACT_SECONDS,
                    )
                except Refused as refusal:
                    if not docker_refusals.already(str(refusal)):
                        raise
            self._networked = broken

    def _haunted(self, id: str) -> bool:
        """Whether more is connected than containers: dockerd, killed while it starts one, leaves that one's end of the
        network behind, and later gives its address to another, which nobody can reach then. Not known (no) where the
        bridge is none of this host's."""
        try:
            connected = os.listdir(f"/sys/class/net/br-{id[:12]}/brif")  # noqa: PTH208 - names are enough
        except OSError:
            return False
        found = self._engine.ask(methodcaller("inspect_network", id))
        return len(connected) > len(found.get("Containers") or ())

    def _check_executable(self, id: str, image: str, path: str) -> None:
        """The init, not the engine, is what the container's start executes: it would only end with status 127."""
        if not path.startswith("/") or (image, path) in self._executables:
            return
        answer = self._engine.ask(
            lambda api: api.head(
                api._url("/containers/{0}/archive", id),  # noqa: SLF001 - the SDK fetches the file with it
                params={"path": path},
                timeout=ASK_SECONDS,
            )
        )
        if answer.status_code == 404:
            self.remove(id)
            raise LaunchError(f"the engine's binary {path} does not exist in the image")
        self._executables.add((image, path))


def _check_mounts(container: Container) -> None:
    """Podman makes what is missing: an engine would find an empty folder."""
    for mount in container.mounts:
        if not Path(mount.source).exists():
            raise LaunchError(f"{mount.source}, to be mounted at {mount.target}, is not on this host")


def _is_ours(network: Mapping[str, Any]) -> bool:
    return network.get("Name") == NETWORK  # the engine finds by parts of names


def _groups(files: tuple[str, ...]) -> tuple[int, ...]:
    """Which own the device files: so an engine that is not root may open them."""
    try:
        return tuple(sorted({Path(file).stat().st_gid for file in files}))
    except OSError as error:
        message = f"the device file {error.filename}, which a device of the plan needs, is not on this host"
        hint = "`agentctl devices` shows what the driver says of the device"
        raise LaunchError(message, DiagnosisCode.DEVICE_FAILED, hint) from error
