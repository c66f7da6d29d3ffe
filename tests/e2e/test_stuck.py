"""What does not answer, for ever: a look at an engine, a secret's file, a disk. The agent starts, answers and
supervises the rest all the same, and says what it waits for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from agent.errors import NotFound
from agent.v1 import agent_pb2 as pb
from tests.harness import PATIENCE, PHASE, Daemon, gone, wait_true

#: Runs a program for which a directory is on a file system that never answers: one of FUSE, which nobody serves. No
#: other process sees it.
_ON_DEAD_STORAGE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def done(result):
    if result:
        raise OSError(ctypes.get_errno(), "not permitted")
done(libc.unshare(0x20000))
done(libc.mount(b"none", b"/", None, 0x44000, None))
fuse = os.open("/dev/fuse", os.O_RDWR)
os.set_inheritable(fuse, True)
done(libc.mount(b"dead", sys.argv[1].encode(), b"fuse", 0, b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fuse))
os.execvp(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def dead(tmp_path: Path) -> Path:
    """A directory that dies with the next start of an agent by `die`."""
    folder = tmp_path / "dead"
    folder.mkdir()
    if subprocess.run((*on_dead_storage(folder), "true"), capture_output=True, check=False).returncode:
        pytest.skip("needs root and /dev/fuse")
    return folder


def on_dead_storage(folder: Path) -> tuple[str, ...]:
    return (sys.executable, "-c", _ON_DEAD_STORAGE, str(folder))


def die(node: Daemon, folder: Path) -> None:
    """The agent starts again, and the folder's disk does not."""
    node.kill()
    node.prefix = on_dead_storage(folder)
    node.start()


def hang_the_look(node: Daemon, name: str) -> Path:
    """The agent and an engine die, and how the engine ended cannot be read from the file that comes back."""
    folder = node.root / "state" / "instances" / node.get(name).instance.name.rpartition("/")[2]
    node.kill()
    processes = [each for each in node.engines() if each.environ()["LLM_NODE_AGENT_DEPLOYMENT"] == name]
    for process in processes:
        process.kill()
    wait_true(lambda: all(gone(process.pid) for process in processes))
    (folder / "exit").unlink(missing_ok=True)
    os.mkfifo(folder / "exit")
    return folder / "exit"


def served_again(deployment: pb.Deployment) -> bool:
    return PHASE[deployment.phase] == "ready" and deployment.instance.attempt == 2


def is_deleted(node: Daemon, name: str = "m") -> None:
    def there() -> bool:
        try:
            return bool(client.get_deployment(name))
        except NotFound:
            return False

    with node.client() as client:
        client.delete_deployment(name)
        wait_true(lambda: not there(), what="deleted")


def test_one_look_that_hangs_at_adoption_keeps_no_other_deployment_from_supervision(node: Daemon) -> None:
    node.start()
    for name in ("stuck", "other"):
        node.apply(name)
    before = {name: node.wait(name) for name in ("stuck", "other")}
    exit_file = hang_the_look(node, "stuck")

    node.start()

    adopted = node.get("other")
    assert (PHASE[adopted.phase], adopted.instance.pid) == ("ready", before["other"].instance.pid)
    assert '"deployment": "stuck", "error": "the look at it does not end"' in node.log_tail()
    psutil.Process(adopted.instance.pid).kill()
    node.wait_until(served_again, "other")
    assert node.get("stuck").instance.attempt == 1  # it may still run: nothing is started beside it
    exit_file.unlink()
    exit_file.write_text("137\n")
    node.wait_until(served_again, "stuck")
    assert node.stop() == 0


def test_what_ends_the_agent_is_told_and_no_look_that_hangs_keeps_it(node: Daemon) -> None:
    node.start().apply("stuck")
    node.wait("stuck")
    hang_the_look(node, "stuck")

    node.start(environ={"WATCHDOG_USEC": "soon"}, wait=False)

    assert node.process is not None
    assert node.process.wait(PATIENCE) == 1
    assert "agentd failed" in node.log_tail()


def test_a_secret_that_is_a_pipe_is_refused_and_holds_up_nobody(node: Daemon) -> None:
    token = node.root / "token"
    os.mkfifo(token)
    node.start().apply(secrets={"TOKEN": {"file": str(token)}})
    refused = node.wait(phase="failed")
    assert refused.diagnosis.code == "secret_missing"
    assert refused.diagnosis.message == f"secrets.TOKEN: {token}: it is no regular file"

    node.kill()
    node.start()

    assert PHASE[node.get().phase] == "failed"
    is_deleted(node)


def test_a_secret_on_dead_storage_fails_and_holds_up_nobody(node: Daemon, dead: Path) -> None:
    token = dead / "token"
    node.start().apply("other")
    pid = node.wait("other").instance.pid
    die(node, dead)

    node.apply(secrets={"TOKEN": {"file": str(token)}})

    assert node.get("other").instance.pid == pid
    refused = node.wait(phase="failed")
    assert refused.diagnosis.code == "secret_missing"
    assert refused.diagnosis.message == f"secrets.TOKEN: {token}: its storage does not answer within 5 s"
    is_deleted(node)


def test_an_engine_whose_key_is_on_dead_storage_by_now_is_adopted_and_probed(node: Daemon, dead: Path) -> None:
    (dead / "key").write_text("canary")
    node.start().apply(secrets={"LLAMA_API_KEY": {"file": str(dead / "key")}})
    before = node.wait().instance.pid

    die(node, dead)

    restarted = time.time()
    wait_true(lambda: any(each.time.seconds > restarted for each in node.get().instance.probes), what="probed")
    after = node.get()
    assert (PHASE[after.phase], after.instance.pid) == ("ready", before)


def test_a_model_whose_disk_is_dead_keeps_its_engine_and_holds_up_nobody(node: Daemon, dead: Path) -> None:
    model = dead / "tiny.gguf"
    shutil.copy(node.model, model)
    node.start().apply("stuck", model=f"file:{model}")
    node.apply("other")
    pids = {name: node.wait(name).instance.pid for name in ("stuck", "other")}

    die(node, dead)

    assert {name: node.get(name).instance.pid for name in pids} == pids
    psutil.Process(pids["stuck"]).kill()
    node.wait("stuck", phase="planning")
    psutil.Process(pids["other"]).kill()
    node.wait_until(served_again, "other")
    is_deleted(node, "stuck")
