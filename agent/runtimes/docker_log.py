"""A container's output in the instance's log file: what came since the last look is appended, whoever looked last.

How far it got is kept beside the instance, together with the length that the log had then: an agent that died between
the two writes neither loses a line nor repeats one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from agent.frozen import frozen
from agent.runtimes.docker_engine import Engine
from agent.runtimes.docker_state import nanoseconds

_STATE = "log.json"
#: Before each piece: of which stream it is, and its length.
_HEADER = struct.Struct(">4xL")
#: Bytes that are written at once.
_CHUNK = 256 * 1024


@frozen
class _Reached:
    """The time of the last piece of output, how many pieces in a row had the same (podman tells whole seconds), and the
    length of the log with all of them."""

    at: int = 0  # nanoseconds since the epoch
    pieces: int = 0
    length: int = 0


def gather(engine: Engine, id: str, directory: Path, log: Path) -> None:
    """Raises `OSError`, and what `Engine.ask` raises. For threads; one at a time for an instance."""
    log.parent.mkdir(parents=True, exist_ok=True)
    path = directory / _STATE
    with log.open("ab") as file:
        length = file.seek(0, os.SEEK_END)
        reached = _read(path)
        if reached is None:
            reached = _Reached(length=length)
            _write(path, reached)
        elif length > reached.length:
            file.truncate(reached.length)  # what is beyond comes again
        for data, at, pieces in _news(engine, id, reached):
            file.write(data)
            file.flush()
            _write(path, _Reached(at, pieces, file.tell()))


def go_on(before: Path, directory: Path) -> None:
    """What a container said until now is in the log of the instance `before`; what it says next is of another.

    Raises `OSError`."""
    reached = _read(before / _STATE)
    if reached is not None:
        _write(directory / _STATE, replace(reached, length=0))


def _news(engine: Engine, id: str, reached: _Reached) -> Iterator[tuple[bytes, int, int]]:
    """Output in chunks, each with how far that is: all that stands behind the last known piece, whatever its times are.
    A clock that is set back makes them earlier."""
    since = reached.at if reached.at <= time.time_ns() else 0
    output = engine.ask(lambda api: _output(api, id, since // 10**9))
    last = (reached.at, reached.pieces)
    known = [number for number, (at, pieces, _) in enumerate(_pieces(output), 1) if (at, pieces) == last]
    held, at, pieces = bytearray(), 0, 0
    for at, pieces, text in itertools.islice(_pieces(output), max(known, default=0), None):
        held += text
        if len(held) >= _CHUNK:
            yield bytes(held), at, pieces
            held.clear()
    if held:
        yield bytes(held), at, pieces


def _output(api: Any, id: str, since: int) -> bytes:
    """What was written since some second. (`APIClient.logs` either joins the pieces, which leaves times within long
    lines, or waits for them without a deadline.)"""
    parameters = {"stdout": 1, "stderr": 1, "timestamps": 1, "follow": 0, "since": since}
    answer = api.get(api._url("/containers/{0}/logs", id), params=parameters, timeout=api.timeout)  # noqa: SLF001
    api._raise_for_status(answer)  # noqa: SLF001
    output: bytes = answer.content
    return output


def _pieces(output: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Lines, or parts of very long ones, each with its time and how many in a row have had that."""
    view, place, at, pieces = memoryview(output), 0, 0, 0
    while place + _HEADER.size <= len(view):
        (length,) = _HEADER.unpack_from(view, place)
        place += _HEADER.size
        stamp, _, text = bytes(view[place : place + length]).partition(b" ")
        place += length
        when = nanoseconds(stamp.decode(errors="replace"))
        at, pieces = when, pieces + 1 if when == at else 1
        yield at, pieces, text


def _read(path: Path) -> _Reached | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return _Reached(**json.loads(path.read_text()))
    return None


def _write(path: Path, reached: _Reached) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(reached)))
    fresh.replace(path)
