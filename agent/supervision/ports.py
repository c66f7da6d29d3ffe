"""Ports of engines: out of the node's range or as the spec says, stable over restarts, never a stranger's."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping

from agent.settings import PortRange
from agent.status import Diagnosis, DiagnosisCode
from agent.supervision.preparation import PreparationError


class Ports:
    """Which deployment holds which port is derived from the actors; here is only the choice."""

    def __init__(self, host: str, allowed: PortRange, held: Callable[[], Mapping[int, str]]) -> None:
        self._host = host
        self._range = allowed
        self._held = held

    def take(self, deployment: str, wanted: int | str, preferred: int, *, releasing: bool = False) -> int:
        """A port that nobody listens on. `preferred` (0: none) is the last one, kept if possible. `releasing`: it was a
        container's, whose engine lets go of it a moment after the end; the start of the next one waits for that.

        Raises `PreparationError`: port_taken when the named port, or the whole range, is in use; launch_failed when the
        address is none of this host's, which an interface that comes up later may mend.
        """
        if releasing and wanted in {"auto", preferred} and self._held().get(preferred, deployment) == deployment:
            return preferred
        if isinstance(wanted, int):
            self._refuse_taken(deployment, wanted)
            return wanted
        others = {port for port, owner in self._held().items() if owner != deployment}
        candidates = [preferred] if self._range.first <= preferred <= self._range.last else []
        candidates += range(self._range.first, self._range.last + 1)
        for port in candidates:
            if port not in others and _free(self._host, port):
                return port
        raise PreparationError(
            Diagnosis(
                DiagnosisCode.PORT_TAKEN,
                f"no free port in {self._range.first}-{self._range.last}",
                hint="Widen policy.ports in the node configuration, or delete a deployment.",
            )
        )

    def _refuse_taken(self, deployment: str, port: int) -> None:
        owner = self._held().get(port, deployment)
        by = f"deployment {owner}" if owner != deployment else "another process"
        if owner != deployment or not _free(self._host, port):
            raise PreparationError(
                Diagnosis(
                    DiagnosisCode.PORT_TAKEN,
                    f"port {port} on {self._host} is taken by {by}",
                    hint=f"Set `port: auto`, or free it (`ss -ltnp 'sport = :{port}'` shows who listens).",
                )
            )


def _free(host: str, port: int) -> bool:
    """Whether a server could listen there now. SO_REUSEADDR: our own last engine's TIME_WAIT does not count. Raises
    `PreparationError` where it could on no port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                message = f"policy.bind is {host}, and that is no address of this host"
                hint = "Set policy.bind in the node configuration to an address that `ip -brief address` lists."
                raise PreparationError(Diagnosis(DiagnosisCode.LAUNCH_FAILED, message, hint=hint)) from error
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True
