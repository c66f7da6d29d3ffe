"""What the watcher writes and the daemon reads: one JSON object a line, with the names of `agent.hardware.inventory`.

The other way go lines of words: `sample DEVICE TOKEN` asks for a look that begins after the question, and is answered
by a sample with that token or a later one; `detect` asks to look for devices anew.
"""

from __future__ import annotations

import json

from agent.frozen import frozen
from agent.hardware.inventory import Detection, Fault, Sample

#: Exit status by which a watcher asks for a new one (EX_TEMPFAIL); 0 says that there is nothing to watch.
EXIT_REPLACE = 75
#: Periods between looks for hardware of vendors of which none is here; both ends look. A look takes some milliseconds
#: on a host with hundreds of PCI devices.
PRESENCE_PERIODS = 12


@frozen
class Message:
    """At most one of the four is set. With none it says that the watcher is alive, and has nothing else to say."""

    vendors: tuple[str, ...] | None = None  # first of all: whose detections will follow; (): no devices, it ends
    detected: Detection | None = None
    sampled: Sample | None = None
    token: int = 0  # of a sample: the newest question that it answers; 0 if nobody asked
    fault: Fault | None = None


def encode(message: Message) -> bytes:
    """One line. All fields of the data are named, so that the reader may be of another version."""
    said = {name: value for name, value in _fields(message).items() if value}
    if message.vendors is not None:
        said["vendors"] = message.vendors
    # A process may be called by bytes that are no text, and JSON readers refuse what stands for them.
    return _encode(said).encode("utf-8", "replace") + b"\n"


def _fields(data: object) -> dict[str, object]:
    return {name: getattr(data, name) for name in type(data).__slots__}  # type: ignore[attr-defined]


_encode = json.JSONEncoder(default=_fields, ensure_ascii=False, separators=(",", ":")).encode
