"""NVIDIA's XID errors, and what each says of the device: nothing, degraded until a reset, or not to be used.

Names and actions are those of NVIDIA's "Xid Catalog" (docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html,
2025-10). Its resolution bucket decides: RESTART_APP and IGNORE are no fault of the device, RESET_GPU and RESTART_BM
quarantine it. Rows that differ from their bucket say why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum

from agent.frozen import frozen


class Effect(StrEnum):
    """What an XID does to the device's condition."""

    NONE = "none"  # the application's own error, the consequence of another error, or a mere note
    UNTIL_RESET = "until-reset"  # usable, but to be reset when convenient
    QUARANTINE = "quarantine"  # not to be used before a person has looked
    LOST = "lost"  # the same, and the driver does not reach it any more


@frozen
class Xid:
    """One error: `what` happened, and what to do about it."""

    number: int
    effect: Effect
    what: str
    advice: str

    @property
    def message(self) -> str:
        return f"XID {self.number}, {self.what}: {self.advice}"


_ADVICE: Mapping[Effect, str] = {
    Effect.NONE: "no fault of the device by itself",
    Effect.UNTIL_RESET: "work may go on; reset the GPU when convenient (`nvidia-smi --gpu-reset`)",
    Effect.QUARANTINE: "reset the GPU (`nvidia-smi --gpu-reset`, or restart the host), then release the device; "
    "if this comes back, replace it",
    Effect.LOST: "check power and seat of the card, restart the host, then release the device",
}


def _rows() -> Iterator[Xid]:
    for effect, rows in _TABLE.items():
        for numbers, what, *advice in rows:
            for number in (numbers,) if isinstance(numbers, int) else numbers:
                yield Xid(number, effect, what, advice[0] if advice else _ADVICE[effect])


_Row = tuple[int | tuple[int, ...], str] | tuple[int | tuple[int, ...], str, str]
_APPLICATION = "the application did something invalid; look at its log"
_CONSEQUENCE = "the consequence of another error; look for the one before it"
_LINK = "the GPU works, but what it shares with others over NVLink may fail; reset it when convenient"

_TABLE: Mapping[Effect, tuple[_Row, ...]] = {
    Effect.NONE: (
        ((8, 60), "the GPU stopped processing for an application", _APPLICATION),
        ((11, 25, 32, 80), "invalid or corrupted commands", _APPLICATION),
        (13, "graphics engine exception", _APPLICATION),
        (31, "GPU memory page fault", _APPLICATION),
        ((37, 38, 66, 67), "error in the driver's firmware", "the driver goes on; update it if this repeats"),
        ((39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136)), "copy engine exception", _APPLICATION),
        ((43, 44), "a channel stopped", _CONSEQUENCE),
        (45, "a channel was removed", _CONSEQUENCE),
        ((68, 83, 84, 88, 89, *range(96, 99)), "video decoder exception", _APPLICATION),
        (69, "graphics engine class error", _APPLICATION),
        (78, "a vGPU did not start", "match the driver versions of guest and host"),
        ((82, *range(99, 106)), "JPEG engine exception", _APPLICATION),
        ((86, 139), "optical flow engine exception", _APPLICATION),
        (93, "the InfoROM was written very often", "tell the vendor if this repeats"),
        ((106, 107), "a test message", "nothing to do"),
        ((108, 137), "invalid access to a peer over NVLink", _APPLICATION),
        (121, "corrected errors on the link to the CPU", "no effect; a reset trains the link again"),
        ((141, 152, 153, 160, 161), "a channel error that the driver handled", "nothing to do"),
        (142, "video encoder exception", _APPLICATION),
        # What is recommended is in the kernel's log only; the error that changed it comes with its own XID.
        (154, "the recommended recovery action changed", "see GPU Recovery Action in `nvidia-smi -q`"),
        ((147, 148, *range(162, 167), 170), "a note of the NVLink or power hardware", "nothing to do"),
    ),
    Effect.UNTIL_RESET: (
        (54, "auxiliary power is not connected", "connect the card's power cables"),
        (61, "internal microcontroller warning"),
        # IGNORE in the catalog: the row is out of use, and the spare one comes into use with a reset.
        (63, "a memory row or page is to be replaced by a spare one"),
        # Its registers, which NVML does not hand over, say whether it was corrected: not enough for a quarantine.
        ((74, 136, *range(144, 147), 149, 150, 155), "NVLink error", _LINK),
        # IGNORE in the catalog: the errors are corrected. But memory that ages is worth knowing.
        (92, "many corrected memory errors"),
        # RESTART_APP in the catalog, whose text recommends a reset when convenient.
        (
            94,
            "contained memory error",
            "what ran there has to restart, others may go on; reset the GPU when convenient",
        ),
        # RESET_GPU in the catalog; NVIDIA's Kubernetes device plugin takes it for the application's.
        (109, "context switch timeout"),
        (156, "a part of the GPU is to be replaced by a spare one"),
        (157, "a part of the GPU could not be replaced by a spare one", "plan to replace the GPU"),
        (159, "error on the link to the CPU"),
        (168, "the GPU has less memory than it should"),
        (169, "the security processor halted"),
        # They tell where the error of an accompanying XID was.
        (171, "uncorrectable error in DRAM"),
        (172, "uncorrectable error in SRAM"),
    ),
    Effect.QUARANTINE: (
        (46, "the GPU stopped processing"),
        (48, "double-bit ECC error"),
        (62, "internal microcontroller halt"),
        (64, "a bad memory row or page could not be replaced by a spare one", "replace the GPU"),
        (95, "uncontained memory error"),
        (110, "security fault"),
        (119, "timeout of a call to the GPU's system processor (GSP)"),
        (120, "error of the GPU's system processor (GSP)"),
        (140, "unrecovered ECC error"),
        (143, "the GPU could not be initialized"),
        (151, "key rotation error", "restart the virtual machine, then release the device"),
        (158, "fatal timeout"),
        (167, "fatal PCIe timeout"),
    ),
    Effect.LOST: ((79, "the GPU has fallen off the bus"),),
}

#: By number.
XIDS: Mapping[int, Xid] = {xid.number: xid for xid in sorted(_rows(), key=lambda xid: xid.number)}


def xid(number: int) -> Xid:
    """What is known of an XID. One that this version does not know changes no condition."""
    return XIDS.get(number) or Xid(number, Effect.NONE, "not known to this version", "look it up in NVIDIA's catalog")
