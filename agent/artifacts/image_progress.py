"""Bytes of a pull, out of what a container engine tells about each layer. Pure.

The words are the Docker Engine's (moby, daemon/internal/distribution/pull_v2.go and xfer/download.go); podman's
compatible API uses the same ones for less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_DONE = frozenset({"Verifying Checksum", "Download complete", "Extracting", "Pull complete"})


@dataclass(slots=True)
class _Layer:
    done: int = 0  # bytes downloaded
    total: int = 0  # compressed; 0: not known
    unpacked: int = 0  # of the compressed bytes
    state: str = ""


@dataclass(slots=True)
class Layers:
    """All layers of one pull. `expected` bytes stand for their sum until each has told its own; 0: not known."""

    expected: int = 0
    _layers: dict[str, _Layer] = field(default_factory=dict)

    def tell(self, message: Mapping[str, Any]) -> bool:
        """Take in one message. Returns whether anything moved: a retry that is announced does not."""
        name, state = str(message.get("id", "")), str(message.get("status", ""))
        if not name or state.startswith(("Pulling from", "Retrying in", "Waiting")):
            if state.startswith("Waiting"):
                self._layers.setdefault(name, _Layer())
            return False
        layer = self._layers.setdefault(name, _Layer())
        before = (layer.done, layer.unpacked, layer.state)
        detail = message.get("progressDetail") or {}
        current, total = _count(detail.get("current")), _count(detail.get("total"))
        if state == "Downloading" and total:
            # A download that was broken off goes on, and is counted from there: 0 of what was left.
            layer.total = max(layer.total, total)
            layer.done = layer.total - total + current
        elif state == "Extracting":
            layer.total, layer.unpacked = max(layer.total, total), current
        if state in _DONE:
            layer.done = layer.total
        layer.state = state
        return before != (layer.done, layer.unpacked, layer.state)

    @property
    def step(self) -> str:
        wanted = [layer for layer in self._layers.values() if layer.state != "Already exists"]
        fetched = bool(wanted) and all(layer.state in _DONE for layer in wanted)
        return "unpacking the image" if fetched else "fetching the image"

    @property
    def done(self) -> int:
        """Bytes here; once all are, bytes unpacked."""
        if self.step.startswith("unpacking"):
            done = (each.total if each.state == "Pull complete" else each.unpacked for each in self._layers.values())
            return sum(done)
        return sum(layer.done for layer in self._layers.values())

    @property
    def total(self) -> int:
        """Bytes of all layers that were not here before; 0 where that is not known yet."""
        known = sum(layer.total for layer in self._layers.values())
        present = any(layer.state == "Already exists" for layer in self._layers.values())
        complete = bool(self._layers) and all(
            layer.total or layer.state in _DONE or layer.state == "Already exists" for layer in self._layers.values()
        )
        if complete:
            return known
        return 0 if present else max(known, self.expected) if self.expected else 0


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
