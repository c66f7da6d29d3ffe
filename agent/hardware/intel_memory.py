"""How much memory an Intel card has: a question to its driver, since mainline i915 and xe do not show it in sysfs.

The questions are DRM_IOCTL_I915_QUERY (memory regions) and DRM_IOCTL_XE_DEVICE_QUERY; numbers and layouts are those of
include/uapi/drm/i915_drm.h and xe_drm.h, which are promised never to change. Only a process that may look at
performance (CAP_PERFMON) is told how much is in use.
"""

from __future__ import annotations

import fcntl
import os
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path

from agent.frozen import frozen

_I915_QUERY = 0xC0106479
_I915_QUERY_MEMORY_REGIONS = 4
_XE_DEVICE_QUERY = 0xC0286440
_XE_QUERY_MEM_REGIONS = 1
#: Regions that are on the card: I915_MEMORY_CLASS_DEVICE and DRM_XE_MEM_REGION_CLASS_VRAM.
_ON_CARD = 1
#: More than any driver has regions for; a size beyond it is no size.
_LONGEST_ANSWER = 64 * 1024

_I915_REQUEST = struct.Struct("=IIQ")  # number of items, flags, address of the item
_I915_ITEM = struct.Struct("=QiIQ")  # question, length of the answer, flags, address of the answer
_XE_REQUEST = struct.Struct("=QIIQ16x")  # extensions, question, length of the answer, address of the answer
#: Class, instance, -, size, and then: i915: what is free of it; xe: what is used of it.
_REGION = struct.Struct("=HHIQQ")
_REGION_LENGTH = 88


@frozen
class CardMemory:
    """Bytes. `used` is None when the driver does not tell us."""

    total: int
    used: int | None


def ask(path: Path, driver: str) -> CardMemory | None:
    """The memory of the card behind a render node; `driver` is "i915" or "xe". None if it has none of its own, the case
    of graphics inside of a processor. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        answer = _ask_i915(descriptor) if driver == "i915" else _ask_xe(descriptor)
    finally:
        os.close(descriptor)
    first = 16 if driver == "i915" else 8  # where the regions begin
    regions = [(size, rest) for kind, size, rest in _regions(answer, first) if kind == _ON_CARD]
    total = sum(size for size, _ in regions)
    used = sum(size - rest if driver == "i915" else rest for size, rest in regions)
    # Both drivers answer "nothing is used" to who may not know; their own tables are always there, so it is never true.
    return CardMemory(total, used if 0 < used <= total else None) if total > 0 else None


def _ask_i915(descriptor: int) -> bytes:
    answer = array("B")
    for _ in range(2):  # the first answer is the length
        item = array("B", _I915_ITEM.pack(_I915_QUERY_MEMORY_REGIONS, len(answer), 0, answer.buffer_info()[0]))
        fcntl.ioctl(descriptor, _I915_QUERY, bytearray(_I915_REQUEST.pack(1, 0, item.buffer_info()[0])))
        length = _I915_ITEM.unpack(item)[1]
        if not answer:
            answer = array("B", bytes(min(max(length, 0), _LONGEST_ANSWER)))
    return answer.tobytes()


def _ask_xe(descriptor: int) -> bytes:
    answer = array("B")
    for _ in range(2):
        request = bytearray(_XE_REQUEST.pack(0, _XE_QUERY_MEM_REGIONS, len(answer), answer.buffer_info()[0]))
        fcntl.ioctl(descriptor, _XE_DEVICE_QUERY, request)
        length = _XE_REQUEST.unpack(request)[2]
        if not answer:
            answer = array("B", bytes(min(length, _LONGEST_ANSWER)))
    return answer.tobytes()


def _regions(answer: bytes, first: int) -> Iterator[tuple[int, int, int]]:
    """(class, size, free or used) of each region that lies in the answer as a whole."""
    (count,) = struct.unpack_from("=I", answer) if len(answer) >= first else (0,)
    for index in range(count):
        start = first + index * _REGION_LENGTH
        if start + _REGION_LENGTH > len(answer):
            return
        kind, _, _, size, rest = _REGION.unpack_from(answer, start)
        yield kind, size, rest
