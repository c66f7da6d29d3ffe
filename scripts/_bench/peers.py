"""The supervisors that the agent is compared with, over the same child: runit's runsv, supervisord, a loop of sh."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from scripts._bench.place import Place

Start = Callable[[Place, Path, Sequence[str], Mapping[str, str]], None]


def _loop(place: Place, _directory: Path, child: Sequence[str], environ: Mapping[str, str]) -> None:
    place.spawn(["sh", "-c", f"while :; do {shlex.join(child)}; done"], environ)


def _runit(place: Place, directory: Path, child: Sequence[str], environ: Mapping[str, str]) -> None:
    run = directory / "run"
    run.write_text(f"#!/bin/sh\nexec {shlex.join(child)}\n")
    run.chmod(0o755)
    place.spawn(["runsv", str(directory)], environ)


def _supervisord(place: Place, directory: Path, child: Sequence[str], environ: Mapping[str, str]) -> None:
    supervisord(place, directory, {"child": child}, environ)


def supervisord(
    place: Place, directory: Path, children: Mapping[str, Sequence[str]], environ: Mapping[str, str]
) -> int:
    """Returns the pid. Everything that is not said stands at supervisord's default."""
    config = ["[supervisord]", "nodaemon=true", f"logfile={directory}/log", f"pidfile={directory}/pid"]
    for name, argv in children.items():
        config += [f"[program:{name}]", f"command={shlex.join(argv)}", "autorestart=true", "stdout_logfile=NONE",
                   "stderr_logfile=NONE"]  # fmt: skip
    path = directory / "supervisord.conf"
    path.write_text("\n".join(config) + "\n")
    return place.spawn(["supervisord", "-c", str(path)], environ).pid


#: By the name in the table: the program that it needs, and how it is started.
PEERS: Mapping[str, tuple[str, Start]] = {
    "sh loop": ("sh", _loop),
    "runit": ("runsv", _runit),
    "supervisord": ("supervisord", _supervisord),
}


def present(names: Sequence[str] = tuple(PEERS)) -> dict[str, Start]:
    """Those whose programs are installed."""
    return {name: PEERS[name][1] for name in names if shutil.which(PEERS[name][0])}
