"""Settings of the host that engines stumble over. Everything is read; nothing is opened that would wake a device."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from agent.hardware import processes, sysfs
from agent.hardware.inventory import System

#: Device files through which engines reach GPUs.
_DEVICE_FILES = ("nvidiactl", "nvidia[0-9]*", "nvidia-uvm", "kfd", "dri/renderD*", "dxg")
#: What container engines leave inside of a container: Docker, podman, and systemd for whatever it was started by.
_MARKS = (".dockerenv", "run/.containerenv", "run/systemd/container")
#: struct timex of adjtimex(2) on 64 bit: where `status` is, how much it takes at most, and the bit "not synchronized".
_STATUS_OFFSET, _TIMEX_SIZE, _STA_UNSYNC = 40, 256, 0x0040


def system(root: Path = Path("/")) -> System:
    """`root` is where /proc, /sys and /dev are found."""
    return System(
        nouveau_loaded=_nouveau(root),
        shm_bytes=_shm(root),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        locked_memory=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        clock_synchronized=_clock(),
        in_container=_in_container(root),
        device_cgroup_denies=tuple(_denied(root)),
    )


def _nouveau(root: Path) -> bool | None:
    modules = root / "sys/module"  # also of what is built into the kernel, which /proc/modules does not list
    return (modules / "nouveau").is_dir() if modules.is_dir() else None


def _shm(root: Path) -> int | None:
    try:
        size = os.statvfs(root / "dev/shm")
    except OSError:
        return None
    return size.f_blocks * size.f_frsize


def _clock() -> bool | None:
    """Whether the kernel's clock follows another (NTP, PTP, the host): what `timedatectl` says too."""
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_long) != 8:
        return None
    timex = ctypes.create_string_buffer(_TIMEX_SIZE)  # all zero: a question, which everybody may ask
    try:
        answer = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    except (OSError, AttributeError):
        return None
    if answer < 0:  # refused by a seccomp filter
        return None
    return not ctypes.c_int.from_buffer(timex, _STATUS_OFFSET).value & _STA_UNSYNC


def _in_container(root: Path) -> bool | None:
    if any((root / mark).exists() for mark in _MARKS):
        return True
    if not sysfs.link(root / "proc/self/ns/pid"):
        return None
    return not processes.sees_all(root)


def _denied(root: Path) -> Iterator[str]:
    for pattern in _DEVICE_FILES:
        for path in sysfs.folders(root / "dev", pattern):
            if not path.is_dir() and not sysfs.accessible(path):
                yield f"/{path.relative_to(root)}"
