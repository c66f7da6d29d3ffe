"""Container engines that give devices to containers. What vendors have in them is played, and so is the hardware."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.docker.parts import Docker, Missing


class Old(Exception):
    """Why the part that is here cannot do it; a newer one can."""


class OtherDocker(Docker):
    """One on another host."""

    def __init__(self, root: Path, host: OtherHost) -> None:
        super().__init__(root)
        self.host = host

    def command(self) -> list[str | Path]:
        return [*self.host.prefix, *super().command()]


class CdiDocker(Docker):
    """One that reads CDI specifications from a folder of its own."""

    def __init__(self, root: Path) -> None:
        settings = root / "daemon.json"
        super().__init__(root, "--config-file", str(settings))
        self.specifications = root / "cdi"

    def command(self) -> list[str | Path]:
        if self.version() < (25,):
            raise Old("CDI needs Docker 25 or newer")
        self.specifications.mkdir(exist_ok=True)
        settings = {"features": {"cdi": True}, "cdi-spec-dirs": [str(self.specifications)]}
        (self.root / "daemon.json").write_text(json.dumps(settings))
        return super().command()


class NvidiaDocker(Docker):
    """One with NVIDIA's runtime, here its default one, and with NVIDIA's hook, if `hook`: what `nvidia-ctk runtime
    configure --set-as-default` makes of it. Both say what they were asked for, in `asked`; neither needs a driver."""

    def __init__(self, root: Path, *, hook: bool = True) -> None:
        self.programs = root / "bin"
        runtime = self.programs / "nvidia-container-runtime"
        super().__init__(root, "--add-runtime", f"nvidia={runtime}", "--default-runtime", "nvidia")
        self.asked = root / "asked"
        self.known = root / "known"  # the UUIDs that the driver knows, a line each
        self.hook = hook

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PATH": f"{self.programs}:{os.environ['PATH']}"}

    def command(self) -> list[str | Path]:
        self.programs.mkdir(exist_ok=True)
        self._program("nvidia-container-runtime", NVIDIA_RUNTIME)
        if self.hook:
            self._program("nvidia-container-runtime-hook", NVIDIA_HOOK)
        return super().command()

    @contextlib.contextmanager
    def stuck(self) -> Iterator[None]:
        """The driver does not answer the hook, which waits for somebody to write into a pipe."""
        known = self.known.rename(self.root / "known-before")
        os.mkfifo(self.known)
        try:
            yield
        finally:
            os.close(os.open(self.known, os.O_RDWR | os.O_NONBLOCK))
            known.replace(self.known)

    def _program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(
            f"#!{sys.executable}\nASKED, KNOWN = {str(self.asked)!r}, {str(self.known)!r}\n{text}"
        )
        (self.programs / name).chmod(0o755)


#: It does with a container what NVIDIA's does where no hook was asked for: it would give it what its variable names.
NVIDIA_RUNTIME = """
import json, os, pathlib, sys
if "create" in sys.argv:
    bundle = next((each.partition("=")[2] for each in sys.argv if each.startswith("--bundle=")), "")
    bundle = bundle or sys.argv[sys.argv.index("--bundle") + 1]
    env = json.loads(pathlib.Path(bundle, "config.json").read_text())["process"]["env"]
    visible = [each.partition("=")[2] for each in env if each.startswith("NVIDIA_VISIBLE_DEVICES=")]
    with open(ASKED, "a") as asked:
        asked.write("runtime " + ",".join(dict.fromkeys(visible)) + "\\n")
os.execvp("runc", ["runc", *sys.argv[1:]])
"""

#: The device nodes come into the container's own /dev, in its mount namespace and before its root is changed.
NVIDIA_HOOK = """
import json, pathlib, subprocess, sys
state = json.load(sys.stdin)
config = json.loads(pathlib.Path(state["bundle"], "config.json").read_text())
variables = dict(each.split("=", 1) for each in config["process"]["env"])
visible, known = variables["NVIDIA_VISIBLE_DEVICES"], pathlib.Path(KNOWN).read_text().split()
with open(ASKED, "a") as asked:
    asked.write(f"hook {visible} {variables['NVIDIA_DRIVER_CAPABILITIES']}\\n")
for uuid in visible.split(","):
    if uuid not in known:
        sys.exit(f"nvidia-container-cli: device error: {uuid}: unknown device")
    node = f"{config['root']['path']}/dev/nvidia{int(uuid.split('-')[1], 16)}"
    enter = ["nsenter", "--target", str(state["pid"]), "--mount"]
    subprocess.run([*enter, "mknod", "--mode=666", node, "c", "1", "3"], check=True)
"""


class OtherHost:
    """What this host would be with other hardware: a mount namespace in which the folders `sys` and `dev` of `tree` are
    laid over the host's own. Who is started by `prefix` is in there."""

    def __init__(self, tree: Path) -> None:
        enter = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "sh", "-ec", OTHER_HOST, "sh", str(tree)]
        self._process = subprocess.Popen(enter, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise Missing("this host lets nobody mount one folder over another")
        self.prefix = ("nsenter", f"--mount=/proc/{self._process.pid}/ns/mnt", "--wdns=/")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


#: What is mounted below the two is brought back, for a mount hides what is below it.
OTHER_HOST = """
for place in sys/fs/cgroup dev/pts dev/shm; do
    mkdir -p "$1/kept/$place"
    mount --rbind "/$place" "$1/kept/$place"
done
for place in sys dev; do mount -t overlay overlay -o "lowerdir=$1/$place:/$place" "/$place"; done
for place in sys/fs/cgroup dev/pts dev/shm; do mount --rbind "$1/kept/$place" "/$place"; done
echo ready
exec sleep infinity
"""
