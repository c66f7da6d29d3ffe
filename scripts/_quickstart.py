"""The second half of scripts/quickstart: a daemon, a deployment, an answer; run with the Python of .venv.

Everything that is started registers its undoing on one ExitStack before the next step, so that an end at any point,
Ctrl-C and SIGTERM included, undoes exactly what was done. Engines outlive agentd by design: the deployment is
therefore deleted first, and `--once` looks afterwards whether any process was left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from agent.config import default_paths

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
EXAMPLE = "configs/examples/smollm2.yaml"
NAME = "smollm2"
QUESTION = "What is the moon? Answer in two sentences."

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
START_SECONDS = 30.0  # agentd is ready in under one; a cold disk may need some more for Python's files
CALL_SECONDS = 120.0  # above every deadline of agentctl itself except that of `wait`
READY_SECONDS = 300.0  # a 94 MB model loads in one; this is for a machine that swaps
ANSWER_SECONDS = 60.0  # until the next piece of the answer; a busy machine reads the question that long
STOP_SECONDS = 30.0
LOG_LINES = 15

began = time.monotonic()


class Failure(Exception):
    """A step did not work; the message is the reason, for people."""


class Interrupted(BaseException):
    """A signal asked us to end. Not an Exception: no handler of errors shall take it for one."""


@dataclass(frozen=True, slots=True)
class Node:
    """The daemon that is talked to: through which socket, in which environment, and as which process if it is ours."""

    environ: Mapping[str, str]
    control: Path
    log: Path
    daemon: subprocess.Popen[bytes] | None

    def ctl(self, *arguments: str, quiet: bool = False, limit: float = CALL_SECONDS) -> tuple[int, str]:
        """Runs agentctl to its end and returns its exit status; what it prints is shown, or with `quiet` returned."""
        pipe = subprocess.PIPE if quiet else None
        environ = {**self.environ, "AGENTD_SOCKET": str(self.control)}
        process = spawn("agentctl", *arguments, env=environ, cwd=ROOT, stdout=pipe, stderr=pipe)
        try:
            with interruptible():
                told, _ = process.communicate(timeout=limit)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process.returncode, (told or b"").decode()

    def must(self, *arguments: str, limit: float = CALL_SECONDS) -> None:
        """Like `ctl`, but its failure is ours."""
        status, _ = self.ctl(*arguments, limit=limit)
        if status != 0:
            raise Failure(f"`agentctl {' '.join(arguments)}` ended with {status}")


def main() -> int:
    once = "--once" in sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # see `interruptible`
    for number in STOPS:
        signal.signal(number, _interrupt)
    try:
        with contextlib.ExitStack() as undo:
            try:
                quickstart(undo, once=once)
            finally:
                _ignore_signals()  # the undoing is bounded, and half of it helps nobody
    except (Failure, OSError, subprocess.TimeoutExpired) as problem:
        print(f"\nquickstart failed: {problem}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        return 0 if interrupted.args[0] == signal.SIGINT and not once else 128 + int(interrupted.args[0])
    return 0


def quickstart(undo: contextlib.ExitStack, *, once: bool) -> None:
    node = private_node(undo) if once else users_node(undo)
    endpoint = deploy(node, undo)
    say(f"asking it: {QUESTION}")
    chat(endpoint)
    say("agentctl status")
    node.must("status")
    if not once:
        stay(node, endpoint)


def private_node(undo: contextlib.ExitStack) -> Node:
    """A daemon whose directories are all temporary; afterwards nothing of it is left."""
    root = Path(tempfile.mkdtemp(prefix="quickstart-"))
    undo.callback(shutil.rmtree, root, ignore_errors=True)
    places = {f"XDG_{name}": str(root / name) for name in ("STATE_HOME", "CACHE_HOME", "CONFIG_HOME", "RUNTIME_DIR")}
    environ = {key: value for key, value in os.environ.items() if not key.startswith("AGENTD_")} | places
    undo.callback(remove_cgroups, default_paths("user", environ).state / "node.uid")
    undo.callback(no_leftovers, root)
    return started(environ, root / "agentd.log", undo)


def users_node(undo: contextlib.ExitStack) -> Node:
    """The daemon of this user: the one that runs, or a new one."""
    paths = default_paths("user", os.environ)
    if _listens(paths.control_socket):
        say("using the agentd that runs already for this user")
        return Node(os.environ, paths.control_socket, paths.logs, None)
    return started(os.environ, paths.logs / "agentd.log", undo)


def started(environ: Mapping[str, str], log: Path, undo: contextlib.ExitStack) -> Node:
    """Starts agentd in a session of its own, so that Ctrl-C reaches only us, and waits until its socket answers."""
    say(f"starting agentd (its log: {log})")
    control = default_paths("user", environ).control_socket
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        daemon = spawn(
            "agentd",
            "--user",
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    undo.callback(stop_daemon, daemon)
    deadline = time.monotonic() + START_SECONDS
    while not _listens(control):
        if daemon.poll() is not None:
            raise Failure(f"agentd ended with status {daemon.returncode}; the end of its log:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise Failure(f"agentd did not answer within {START_SECONDS:.0f} s; the end of its log:\n{_tail(log)}")
        with interruptible():
            time.sleep(0.02)
    return Node(environ, control, log, daemon)


def deploy(node: Node, undo: contextlib.ExitStack) -> str:
    """Applies the example, waits until it is ready, and returns its endpoint. What was there before stays there."""
    known, _ = node.ctl("get", NAME, "-o", "json", quiet=True)
    if known != 0:
        undo.callback(delete, node)
    say(f"agentctl apply -f {EXAMPLE}")
    node.must("apply", "-f", EXAMPLE)
    say(f"agentctl wait --for ready {NAME}")
    try:
        node.must("wait", "--for", "ready", NAME, "--timeout", f"{READY_SECONDS:.0f}s", limit=READY_SECONDS + 10)
    except Failure:
        node.ctl("describe", NAME)
        if node.daemon is not None:
            print(_tail(node.log), file=sys.stderr)
        raise
    status, shown = node.ctl("get", NAME, "-o", "json", quiet=True)
    endpoint = json.loads(shown)["endpoint"] if status == 0 else ""
    if not endpoint:
        raise Failure(f"{NAME} is ready but has no endpoint: {shown}")
    return str(endpoint)


def chat(endpoint: str) -> None:
    """Asks the model one question, prints the answer as it comes, and how fast it came."""
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 100,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(  # noqa: S310  (the endpoint is http, and agentctl's own answer)
        f"{endpoint}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    asked = time.monotonic()
    first = last = 0.0
    tokens = 0
    with interruptible(), urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as reply:  # noqa: S310
        for message in _server_sent(reply):
            tokens = (message.get("usage") or {}).get("completion_tokens") or tokens
            text = "".join(choice["delta"].get("content") or "" for choice in message.get("choices", ()))
            if text:
                last = time.monotonic()
                first = first or last
                print(text, end="", flush=True)
    if not first:
        raise Failure(f"{endpoint} answered without any text")
    rate = f"{(tokens - 1) / (last - first):.0f} tokens per second, " if tokens > 1 and last > first else ""
    print(f"\n\n{tokens} tokens, {rate}the first after {(first - asked) * 1000:.0f} ms")


def stay(node: Node, endpoint: str) -> NoReturn:
    """Keeps everything running until a signal comes."""
    say(f"""it serves at {endpoint} until you press Ctrl-C, which stops what was started here. Try, elsewhere:

  .venv/bin/agentctl describe {NAME}      what was decided for it, and why
  .venv/bin/agentctl events -f            then kill -9 the engine, and watch
  curl {endpoint}/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{{"messages": [{{"role": "user", "content": "Hello!"}}]}}'
""")
    with interruptible():
        while node.daemon is None:
            signal.pause()
        status = node.daemon.wait()
    raise Failure(f"agentd ended with status {status}; the end of its log:\n{_tail(node.log)}")


def delete(node: Node) -> None:
    say(f"agentctl delete {NAME} --wait")
    if node.ctl("delete", NAME, "--ignore-missing", "--wait", "--timeout", f"{CALL_SECONDS - 10:.0f}s")[0] != 0:
        print(f"{NAME} may still run: its engine does not need agentd. Start agentd and delete it.", file=sys.stderr)


def stop_daemon(daemon: subprocess.Popen[bytes]) -> None:
    say("stopping agentd")
    daemon.terminate()
    try:
        daemon.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait(STOP_SECONDS)
        raise Failure(f"agentd did not stop within {STOP_SECONDS:.0f} s and was killed") from None


def no_leftovers(root: Path) -> None:
    """Ends every process that names `root` in its command line or environment, which only ours can, and complains."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look at
            if os.fsencode(root) in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
                os.kill(int(entry.name), signal.SIGKILL)
    if found:
        raise Failure("processes were left behind (now killed): " + "; ".join(f"{pid} {line}" for pid, line in found))


def remove_cgroups(uid: Path) -> None:
    """Removes the groups of a node, which its daemon leaves for the next one: here none comes."""
    if not uid.exists():
        return
    name = f"llm-node-agent-{uid.read_text().strip()[:8]}"
    for parent, folders, _ in os.walk("/sys/fs/cgroup"):  # goes on where a group vanishes meanwhile
        if name in folders:
            top = Path(parent, name)
            for group in (*top.glob("*/"), top):
                with contextlib.suppress(OSError):  # a process that was left is complained of already
                    group.rmdir()


def spawn(program: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(BIN / program), *arguments],
        preexec_fn=_default_signals,  # noqa: PLW1509  (there is one thread)
        **options,
    )


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Signals come in only where we wait, so that none falls between a start and the note that it was made."""
    _unblock_signals()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)


def say(text: str) -> None:
    print(f"\n[{time.monotonic() - began:5.1f} s] {text}", flush=True)


def _server_sent(reply: Any) -> Iterator[dict[str, Any]]:
    for line in reply:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield json.loads(line[6:])


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)  # only a hung daemon's full backlog blocks
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
    except OSError as error:
        return f"({error})"


def _interrupt(number: int, _frame: object) -> NoReturn:
    _ignore_signals()
    raise Interrupted(number)


def _ignore_signals() -> None:
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def _default_signals() -> None:
    """In a child, before its program starts. A Ctrl-C that came to it so early is dropped: we act on it."""
    for number in STOPS:
        if signal.getsignal(number) is _interrupt:  # ignored ones stay so: what undoes is not to be interrupted
            signal.signal(number, signal.SIG_IGN)
            signal.signal(number, signal.SIG_DFL)
    _unblock_signals()


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


if __name__ == "__main__":
    sys.exit(main())
