"""How sources are asked: what their requests carry, and what their refusals mean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Protocol
from urllib.parse import urlsplit

from agent.artifacts.connections import Access, Answer, Connections
from agent.artifacts.errors import unavailable
from agent.artifacts.job import Job
from agent.artifacts.refusals import Asked, refusal
from agent.origins import NotFollowed, Origin, origin_of

#: Seconds without an answer after which a question is asked again.
_SILENCE = 20.0


class SourceAccess(Access, Protocol):
    """What transferring files from a source needs."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """What nobody may be told."""

    def refusal(self, status: int, headers: Mapping[str, str], subject: str, host: str) -> Exception:
        """What an answer means that brings no file: `Again`, `Changed` or `ArtifactError`. Names of headers are lower
        case."""


class Plain:
    """A web server that wants to know nothing."""

    @property
    def secrets(self) -> tuple[str, ...]:
        return ()

    def address(self, url: str) -> str:
        return url

    def headers(self, origin: Origin) -> Mapping[str, str]:
        del origin
        return {}

    def renew(self, answer: Answer) -> bool:
        del answer
        return False

    def refusal(self, status: int, headers: Mapping[str, str], subject: str, host: str) -> Exception:
        return refusal(status, headers, Asked(subject, host, hub=False))


class Carrying(Plain):
    """A header for one place and nobody else."""

    def __init__(self, home: str, authorization: str) -> None:
        self._home, self._authorization = origin_of(urlsplit(home)), authorization

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(filter(None, [self._authorization.partition(" ")[2]]))

    def headers(self, origin: Origin) -> Mapping[str, str]:
        at_home = self._authorization and origin == self._home
        return {"Authorization": self._authorization} if at_home else {}


class HubAccess(Carrying):
    """A Hugging Face hub."""

    def __init__(self, endpoint: str, token: str) -> None:
        super().__init__(endpoint, f"Bearer {token}" if token else "")

    def refusal(self, status: int, headers: Mapping[str, str], subject: str, host: str) -> Exception:
        return refusal(status, headers, Asked(subject, host, has_token=bool(self._authorization)))


@contextlib.contextmanager
def asking(access: Access, job: Job) -> Iterator[Connections]:
    """Connections for questions about files. What does not pass by itself becomes `ArtifactError`."""
    connections = Connections(access, min(_SILENCE, job.stall_seconds))
    try:
        yield connections
    except NotFollowed as error:
        raise unavailable(f"{job.source}: {error}", "") from None
    finally:
        connections.close()
