"""Unix sockets whose owner, group and mode decide who may connect.

gRPC replaces whatever socket it finds, a live one too, and gives the new one the permissions of the umask. So a
live one is looked for first, the socket is bound when nobody but the owner could open it, and opened to others last.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import grpc

from agent.api.reach import check_length, listens
from agent.errors import AgentError, FailedPrecondition, FieldViolation, InvalidArgument
from agent.frozen import frozen


class SocketSettings(Protocol):
    """Where a socket is and who may connect to it; `agent.config.Socket` is one."""

    @property
    def path(self) -> Path: ...
    @property
    def owner(self) -> str | None: ...
    @property
    def group(self) -> str | None: ...
    @property
    def mode(self) -> int: ...


@frozen
class BoundSocket:
    """A socket file that is ours, by inode: a later agent's file at the same path is not."""

    path: Path
    inode: int

    def remove(self) -> None:
        """Remove the file, if it is still there and still ours."""
        try:
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()
        except FileNotFoundError:
            pass


def bind(server: grpc.aio.Server, settings: SocketSettings, field: str) -> BoundSocket:
    """Let `server` listen at the socket. Call it before `server.start()`.

    `field` is the dotted path of the settings, for the violations of the InvalidArgument that this raises for a
    wrong path, owner or group. Raises FailedPrecondition where the node does not allow it.
    """
    path = settings.path
    uid = _id(settings.owner, lambda name: pwd.getpwnam(name).pw_uid, f"{field}.owner", "user")
    gid = _id(settings.group, lambda name: grp.getgrnam(name).gr_gid, f"{field}.group", "group")
    check_length(path, f"{field}.path")
    _clear(path)
    _listen(server, path)
    bound = BoundSocket(path, path.lstat().st_ino)
    try:
        os.chown(path, uid, gid, follow_symlinks=False)
        path.chmod(settings.mode)  # last: until here only the agent itself may connect
    except OSError as error:
        bound.remove()
        raise FailedPrecondition(
            f"cannot give {path} to {settings.owner or 'its owner'}:{settings.group or 'its group'}: {error.strerror}",
            hint="only root may give files away; others may only choose a group that they are in",
        ) from error
    return bound


def _id(name: str | None, find: Callable[[str], int], field: str, what: str) -> int:
    """The numeric id of a user or group; -1, which changes nothing, for none."""
    if name is None:
        return -1
    if name.isdecimal():
        return int(name)
    try:
        return find(name)
    except KeyError:
        rule = f"{name!r} is no {what} on this node; name an existing one, or give its number"
        raise InvalidArgument(f"{field}: {rule}", violations=(FieldViolation(field, rule),)) from None


def _clear(path: Path) -> None:
    """Remove the stale socket that an agent left behind when it was killed; refuse to remove anything else."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FailedPrecondition(f"{path} is there and is no socket", hint="move it away, or choose another path")
        if listens(path):
            raise FailedPrecondition(f"another process listens at {path}", hint="is an agent running already?")
        path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_listen(path, error.strerror) from error


def _listen(server: grpc.aio.Server, path: Path) -> None:
    umask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:  # gRPC tells the errno only in its own log
        raise _cannot_listen(path, "the directory must exist and be writable") from error
    finally:
        os.umask(umask)


def _cannot_listen(path: Path, cause: str | None) -> AgentError:
    return FailedPrecondition(f"cannot listen at {path}: {cause}", hint="look at the directory's owner and mode")
