"""What the part of one vendor must do. Adding a vendor is adding one file, and naming it in `agent.hardware.VENDORS`.

A vendor's methods call into a driver, and any such call may hang for ever: they run in the watcher's process only
(`agent.hardware.watcher`), each device in a thread of its own, and never in the daemon. They may block; they raise
nothing: what goes wrong is data (`Problem`).
"""

from __future__ import annotations

from typing import Protocol

from agent.hardware.inventory import Detection, Fault, Sample


class Vendor(Protocol):
    """One vendor's devices on this host. Import of the module must be cheap; libraries are loaded by `detect`."""

    name: str

    def present(self) -> bool:
        """Whether hardware or a driver of this vendor seems to be here: a look at a few paths, no driver call."""

    def detect(self) -> Detection:
        """Look at everything anew. Safe to repeat after a failure; devices may have come, gone or changed."""

    def sample(self, device: str) -> Sample:
        """One look at one device that `detect` found. A device that is gone or does not answer has a `problem`."""

    def faults(self, timeout: float) -> tuple[Fault, ...]:
        """Wait for what the driver tells by itself, at most `timeout` seconds. One without such a
        stream sleeps."""

    def close(self) -> None:
        """Let go of the driver."""
