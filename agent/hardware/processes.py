"""Who a process is: the user and the command, as far as the kernel lets this one see.

User names come from /etc/passwd alone: to ask the name service may mean to ask the network.
"""

from __future__ import annotations

from pathlib import Path

from agent.hardware import sysfs
from agent.hardware.inventory import DeviceProcess

#: Characters of a command that are shown. Arguments are not: they may hold a secret.
_LONGEST = 120
#: The kernel's number of the first PID namespace (PROC_PID_INIT_INO in include/linux/proc_ns.h).
_FIRST_PID_NAMESPACE = "pid:[4026531836]"


def sees_all(root: Path) -> bool:
    """Whether process ids that the kernel gives outside of /proc are those of /proc: not so inside of a container."""
    return sysfs.link(root / "proc/self/ns/pid") == _FIRST_PID_NAMESPACE


def describe(root: Path, pid: int, memory_bytes: int | None) -> DeviceProcess:
    """The process with what it holds of a device."""
    folder = root / "proc" / str(pid)
    return DeviceProcess(pid, memory_bytes, user=_user(root, folder), command=_command(folder))


def _command(folder: Path) -> str:
    """The program, as it was called; the kernel's short name where there is no command line."""
    program = sysfs.text(folder / "cmdline").split("\0", 1)[0] or sysfs.text(folder / "comm")
    return program[:_LONGEST]


def _user(root: Path, folder: Path) -> str:
    """The name, or the number of a user who is not in /etc/passwd; "" when the process has ended."""
    fields = (line.split() for line in sysfs.text(folder / "status").splitlines())
    uid = next((row[1] for row in fields if row and row[0] == "Uid:" and len(row) > 1), "")
    if not uid:
        return ""
    entries = (line.split(":") for line in sysfs.text(root / "etc/passwd").splitlines())
    return next((entry[0] for entry in entries if len(entry) > 2 and entry[2] == uid), uid)
